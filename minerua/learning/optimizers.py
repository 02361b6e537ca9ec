"""Optimizers for learning: torch's own under their names, and Muon with AdamW beside it.

Left out are optimizers that the loop cannot serve: L-BFGS evaluates the loss several times per step through a closure,
while a step here is one gradient; Rprop needs whole-data gradients; SparseAdam takes sparse gradients alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from minerua.errors import LearningError
from minerua.learning.settings import refusal, unknown_settings, with_numbers
from minerua.values import OptimizerSpec

if TYPE_CHECKING:
    import torch

_OF_GROUPS = ("params", "param_names")
"""What a parameter group holds beside settings."""


class _Own(NamedTuple):
    """One of torch's optimizers.

    Args:
        attribute: Its class in `torch.optim`.
        since: The first release of torch that has it.
        composite: The name of what is built in its place, in `minerua.learning.muon`; empty: the class itself.
    """

    attribute: str
    since: str = "2.4"
    composite: str = ""


_OWN: Mapping[str, _Own] = {
    "sgd": _Own("SGD"),
    "adam": _Own("Adam"),
    "adamw": _Own("AdamW"),
    "adafactor": _Own("Adafactor", since="2.5"),
    "muon": _Own("Muon", since="2.9", composite="MuonWithAdamW"),
    "rmsprop": _Own("RMSprop"),
    "adagrad": _Own("Adagrad"),
    "adadelta": _Own("Adadelta"),
    "adamax": _Own("Adamax"),
    "nadam": _Own("NAdam"),
    "radam": _Own("RAdam"),
}


def optimizers() -> list[OptimizerSpec]:
    """Returns minerua's own optimizers; torch is imported when one is built.

    `adam` decays weights through the gradient, as torch's does; `adamw` apart from it. `muon` takes the matrices, and
    gives everything else to AdamW.

    Example:
        >>> [spec.name for spec in optimizers()][:4]
        ['sgd', 'adam', 'adamw', 'adafactor']
    """
    return [OptimizerSpec(name, _builder(name, own)) for name, own in _OWN.items()]


def _builder(name: str, own: _Own) -> Callable[..., Any]:
    def build(parameters: Iterable[Any], **settings: Any) -> torch.optim.Optimizer:
        """Builds the optimizer.

        Args:
            parameters: Parameter groups, or tensors.
            settings: Settings of the class in `torch.optim`, under its names.

        Raises:
            TypeError: A setting is unknown, of the call or of a group; names all of them.
            LearningError: The installed torch does not have this optimizer.
        """
        maker = _maker(name, own)
        entries = list(parameters)
        _check(name, entries, settings, _settings_of(maker))
        made: torch.optim.Optimizer = maker([_group(entry) for entry in entries], **with_numbers(settings))
        return made

    return build


def _maker(name: str, own: _Own) -> Callable[..., Any]:
    import torch

    if not hasattr(torch.optim, own.attribute):
        needs = f"optimizer {name!r} needs torch {own.since} or later, and this is torch {torch.__version__}"
        raise LearningError(f"{needs}; update torch, or choose 'adamw'")
    if own.composite:
        from minerua.learning import muon

        return getattr(muon, own.composite)
    return getattr(torch.optim, own.attribute)


@cache
def _settings_of(maker: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(maker).parameters if name != "params")


def _check(name: str, entries: Sequence[Any], settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    faults = unknown_settings(settings, known)
    for number, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            own = [key for key in entry if key not in _OF_GROUPS]
            faults += [f"parameter group {number}: {fault}" for fault in unknown_settings(own, known)]
    if faults:
        raise refusal(f"optimizer {name!r}", faults)


def _group(entry: Any) -> Any:
    """Returns a parameter group that is the optimizer's own: torch writes its defaults into it."""
    if not isinstance(entry, Mapping):
        return entry
    return {key: value if key in _OF_GROUPS else with_numbers(value) for key, value in entry.items()}
