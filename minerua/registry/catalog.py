"""What became of each plugin, and what has which name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar, final

from minerua.errors import DuplicateName, UnknownName, unknown

ALLOWED_VARIABLE = "MINERUA_PLUGINS_ALLOWED"
"""Environment variable: the only plugins, besides minerua's own, that are imported; empty allows all."""

DISABLED_VARIABLE = "MINERUA_PLUGINS_DISABLED"
"""Environment variable: plugins or distributions, joined by commas, that are not imported; `all`: all but minerua's."""

Status = Literal["ok", "quarantined", "disabled"]
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """What became of one plugin.

    Args:
        name: Name of its entry point; for an object given to `Registry.of`, its module's or its type's name.
        distribution: The installed distribution that declares it; `"given"` for an object given to `Registry.of`.
        version: The distribution's version; empty for a given object.
        status: `"ok"`, `"quarantined"` (nothing of it is used) or `"disabled"` (not even imported).
        reason: Why it is quarantined or disabled, in one line; `None` when it is ok.
        provides: Hook name → the names provided there, sorted; empty hooks are left out.
        load_seconds: Wall time of importing it, calling its hooks and checking its specs.
        notices: What it does that it should not, without harm to what it provides, such as `"takes 1.4 s …"`.
    """

    name: str
    distribution: str
    version: str
    status: Status = "ok"
    reason: str | None = None
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    load_seconds: float = 0.0
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version}".rstrip() + ")"


@final
class Catalog(Mapping[str, T], Generic[T]):
    """All things of one kind, by name, read-only, in the order of their names.

    A name that two plugins provide is contested: it is neither counted nor iterated over, and asking for it raises
    `DuplicateName`, so that no answer depends on the order in which plugins happen to be found.

    Args:
        singular: What one of the things is called in a message, for example `"skill"`.
        provided: Name → every spec that was provided under it, with its plugin; never empty.
        absent: The plugins that are quarantined or disabled, and so might have provided a name that is missing.
    """

    def __init__(
        self, singular: str, provided: Mapping[str, Sequence[tuple[Plugin, T]]], *, absent: Sequence[Plugin] = ()
    ) -> None:
        self._singular = singular
        self._absent = tuple(absent)
        self._sole = {name: provided[name][0] for name in sorted(provided) if len(provided[name]) == 1}
        self.contested: Mapping[str, tuple[Plugin, ...]] = MappingProxyType(
            {name: tuple(p for p, _ in provided[name]) for name in sorted(provided) if len(provided[name]) > 1}
        )

    def __getitem__(self, name: str) -> T:
        return self._find(name)[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sole)

    def __len__(self) -> int:
        return len(self._sole)

    def __contains__(self, name: object) -> bool:
        return name in self._sole

    def get(self, name: str, default: Any = None) -> Any:
        """Returns what has the name, or `default` where nobody provides it.

        Raises:
            DuplicateName: Two plugins provide the name; a contested name is never taken for a missing one.
        """
        try:
            return self[name]
        except UnknownName:
            return default

    def provider(self, name: str) -> Plugin:
        """Returns the plugin that provides the name.

        Raises:
            UnknownName: Nobody provides it; the message has the nearest names and the plugins that are not in use.
            DuplicateName: Two plugins or more provide it; the message names them all.
        """
        return self._find(name)[0]

    def __repr__(self) -> str:
        return f"<{self._singular} catalog: {', '.join(self) or 'empty'}>"

    def _find(self, name: str) -> tuple[Plugin, T]:
        if name in self._sole:
            return self._sole[name]
        if name in self.contested:
            raise DuplicateName(self.quarrel(name))
        message = unknown(self._singular, name, tuple(self))
        if self._absent:
            message += ". A plugin that is not in use may provide it; `minerua plugins check` says what to repair:"
        raise UnknownName(message, [f"{plugin} is {plugin.status}: {plugin.reason}" for plugin in self._absent])

    def quarrel(self, name: str) -> str:
        """Returns the sentence about a contested name: who provides it, and what to do about it."""
        rivals = self.contested[name]
        return (
            f"the {self._singular} {name!r} is provided by {' and by '.join(map(str, rivals))}, so neither is used; "
            f"uninstall one, or set {DISABLED_VARIABLE}={rivals[-1].name}"
        )
