"""What sits an exam: one spec, with what its author handed over and what else its plugin provides."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

from minerua.conformance.report import NotJudged, Sample
from minerua.registry import KINDS, Kind, Registry
from minerua.values import MergeMethodSpec, RunContext, Skill, SkillContext

T = TypeVar("T")


@final
class Subject:
    """One thing in an exam.

    Args:
        kind: What it is; `None` for the plugin as a whole.
        spec: The thing itself.
        sample: What its author handed over.
        seconds: The longest that one call of an evaluator may take.
        plugin: Everything that its plugin provides.
    """

    def __init__(
        self,
        kind: Kind,
        spec: Any,
        sample: Sample | None = None,
        *,
        seconds: float = 60.0,
        plugin: Registry | None = None,
    ) -> None:
        self.kind, self.given, self.sample, self.seconds = kind, spec, sample or Sample(), seconds
        self.plugin = Registry.of() if plugin is None else plugin
        self._kept: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Returns what `make` returned the first time, so that several checks share a thing that takes long."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    @property
    def is_family(self) -> bool:
        """Whether it is made from settings."""
        return getattr(self.given, "configure", None) is not None

    @property
    def spec(self) -> Any:
        """The spec; for a family the one that the sample's settings describe."""
        return self.once("configured", self._configured) if self.is_family else self.given

    def _configured(self) -> Any:
        return self.given.configure(dict(self.sample.settings or {}), self.context)

    @property
    def context(self) -> RunContext | SkillContext:
        """What a family may look at."""
        if isinstance(self.given, Skill):
            return SkillContext(self.sample.folder, self.plugin.models)
        return RunContext(self.sample.folder, self.sample.base)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of every call; those of a family are spent when it is configured."""
        return {} if self.is_family else dict(self.sample.settings or {})

    @property
    def where(self) -> str:
        """File and line of its first function."""
        places = (definition(function) for function in functions_of(self.kind, self.given))
        return next((place for place in places if place), "its functions have no source")


def kind_of(spec: object) -> Kind | None:
    """Returns what kind of thing a spec is, or `None`."""
    return next((kind for kind in KINDS if isinstance(spec, kind.spec)), None)


def functions_of(kind: Kind, spec: object) -> list[Callable[..., Any]]:
    """Returns the functions of a spec that a plugin wrote."""
    found = [getattr(spec, field, None) for field in (*kind.callables, *kind.optional)]
    return [
        function for function in found if callable(function) and getattr(function, "__name__", "") != "_unconfigured"
    ]


def definition(function: Callable[..., Any]) -> str:
    """Returns file and line of a function; empty where it has none."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def within(seconds: float, call: Callable[[], T]) -> T | NotJudged:
    """Returns what a call returns, or that it took too long; a call that hangs is left behind in its thread.

    Raises:
        BaseException: Whatever the call raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="minerua-exam")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return results[0] if results else NotJudged(f"a call did not end within {seconds:g} s")


def same(a: Any, b: Any, *, tolerance: float = 0.0) -> bool:
    """Tells whether two results are equal: arrays and tensors within a tolerance, and of one shape and dtype."""
    import numpy as np

    if hasattr(a, "detach") and hasattr(b, "detach"):
        a, b = a.detach().cpu(), b.detach().cpu()
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | _near(a, b, tolerance)).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.all((a == b) | _near(a, b, tolerance)))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance=tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, tolerance=tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b) or abs(a - b) <= tolerance * max(1.0, abs(a))
    return type(a) is type(b) and bool(a == b)


def _near(a: Any, b: Any, tolerance: float) -> Any:
    """Tells of each number whether it is near the other, or neither is a number."""
    numbers = (a != a) & (b != b)
    if not tolerance or "int" in str(a.dtype) or "bool" in str(a.dtype):
        return numbers
    return numbers | (abs(a - b) <= tolerance * (1.0 + abs(a)))


def is_weighted(spec: MergeMethodSpec) -> bool:
    """Tells whether a merge method has a weight per expert."""
    return spec.uses in ("weights", "grams", "model") or any(p.name == "weight" for p in spec.parameters)
