"""A LoRA adapter from a full fine-tune: of every changed weight matrix, the nearest matrix of low rank.

The nearest matrix is found by a randomised block Krylov method (`minerua.weights.truncation`). Nothing in it depends on
luck that is not reported: what an adapter leaves out is measured against the matrix itself.

One matrix is in memory at a time, beside the adapter. The same checkpoints, settings and seed give the same adapter on
the same machine; LAPACK's last digits may differ on another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from minerua.errors import CheckpointError, ConfigError
from minerua.weights import Checkpoint, Factors, find_non_finite, is_floating, write_adapter
from minerua.weights.truncation import balanced, enough_for, nearest_of_rank, squared_norm, squared_rest

EMBEDDINGS = r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe|shared|relative_attention_bias)$"
"""Module paths of embeddings, as transformers names them: tables of rows, whose adapters have another layout. Nothing
in a checkpoint tells them from linear layers but the name."""


@dataclass(frozen=True)
class ExtractedMatrix:
    """What became of one weight matrix.

    Args:
        name: The tensor's name.
        rank: The rank of its factors; 0 if all singular values were too small, and nothing was written.
        norm: Frobenius norm of its task vector.
        lost_fraction: The share of the squared norm that the factors leave out, in [0, 1], measured.
    """

    name: str
    rank: int
    norm: float
    lost_fraction: float

    @property
    def error_bound(self) -> float:
        """Frobenius norm of what the factors leave out: no input of length one is answered with a larger error."""
        return self.norm * math.sqrt(self.lost_fraction)


@dataclass(frozen=True)
class Extraction:
    """What an adapter holds of a fine-tune, and what it does not.

    Args:
        matrices: The changed matrices, sorted by name.
        unchanged: Names of the matrices that equal the base's.
        left_out: Tensor name → why its change is not in the adapter.
        lost_fraction: Over the matrices together, the share of the task vector's squared norm that is not in the
            adapter.
    """

    matrices: tuple[ExtractedMatrix, ...]
    unchanged: tuple[str, ...]
    left_out: Mapping[str, str]
    lost_fraction: float


class _Settings(NamedTuple):
    rank: int
    energy: float | None
    epsilon: float
    seed: int
    oversampling: int
    iterations: int


class _Choice(NamedTuple):
    """Which modules are wanted."""

    include: Sequence[str]
    exclude: Sequence[str]
    embeddings: str


class _Change(NamedTuple):
    """A tensor that an adapter cannot hold, or is not to hold."""

    name: str
    reason: str
    is_chosen: bool  # left out because somebody said so


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    folder: str | Path,
    *,
    rank: int = 128,
    energy: float | None = None,
    epsilon: float = 0.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: str = EMBEDDINGS,
    skip_undecomposable: bool = False,
    seed: int = 0,
    oversampling: int = 10,
    iterations: int = 3,
    base_name: str | None = None,
    fan_in_fan_out: bool = False,
    on_matrix: Callable[[ExtractedMatrix], None] | None = None,
) -> Extraction:
    """Writes the LoRA adapter that comes nearest to a fine-tune, in PEFT's layout.

    An adapter holds changes of weight matrices of linear layers: tensors of two axes whose names end in `.weight`.
    Changed biases, norms, embeddings and tensors of more axes are faults, unless they are excluded or skipped.

    Args:
        base: The checkpoint that the fine-tune began with.
        tuned: The fine-tune.
        folder: The folder to make; its parent exists, and it does not, or is empty.
        rank: The most that a matrix's factors may have.
        energy: The share of a matrix's squared norm that is enough: the rank is the least that keeps it, or `rank` if
            none does. Default: as much as the rank allows.
        epsilon: Singular values up to here are left out; an absolute number.
        include: Regular expressions; modules in whose path none is found are left out. Default: all.
        exclude: The same; modules in whose path one is found are left out.
        embeddings: A regular expression found in the paths of embeddings.
        skip_undecomposable: Whether a change that an adapter cannot hold is left out and named in the result, instead
            of refused.
        seed: Of the random block; at least 0.
        oversampling: By how many columns the block is wider than the rank.
        iterations: How many pairs of products follow the first. With 3 the loss of a slowly falling spectrum is within
            a thousandth of the least possible.
        base_name: The base's name, for the adapter's reader.
        fan_in_fan_out: Whether the base stores its matrices transposed (GPT-2's Conv1D).
        on_matrix: Called with each matrix when it is done; for a progress bar.

    Returns:
        What the adapter holds; the caller decides whether that is enough.

    Raises:
        ConfigError: A setting is out of its range, or not a regular expression; lists all faults.
        CheckpointError: The checkpoints do not fit together, hold NaN or infinity, change what an adapter cannot hold,
            or change no matrix at all; lists all faults, and nothing has been written.
        StorageError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> from minerua.weights import open_checkpoint, write_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/a.safetensors", {"q.weight": np.zeros((4, 3), np.float32)})
        ...     write_checkpoint(f"{folder}/b.safetensors", {"q.weight": np.ones((4, 3), np.float32)})
        ...     base, tuned = (open_checkpoint(f"{folder}/{file}.safetensors") for file in "ab")
        ...     found = extract(base, tuned, f"{folder}/adapter", rank=2)
        >>> [(matrix.name, matrix.rank, round(matrix.norm, 3)) for matrix in found.matrices]
        [('q.weight', 1, 3.464)]
    """
    settings = _Settings(rank, energy, epsilon, seed, oversampling, iterations)
    choice = _Choice(include, exclude, embeddings)
    faults = [*_setting_faults(settings), *_pattern_faults(choice)]
    if faults:
        raise ConfigError("an adapter cannot be extracted with these settings", faults)
    names, left_out = _plan(base, tuned, choice, skip=skip_undecomposable)
    matrices: list[ExtractedMatrix] = []
    factors: dict[str, Factors] = {}
    for name in names:
        pair, found = _extract_matrix(name, _difference(base, tuned, name), settings)
        if found is not None:
            matrices.append(found)
            if pair is not None:
                factors[name] = pair
            if on_matrix is not None:
                on_matrix(found)
    if not factors:
        raise CheckpointError(f"{tuned.path} has nothing to extract", [_nothing(len(names), len(matrices), epsilon)])
    largest = max(pair.right.shape[0] for pair in factors.values())
    write_adapter(folder, factors, rank=largest, base_name=base_name, fan_in_fan_out=fan_in_fan_out)
    changed = {matrix.name for matrix in matrices}
    unchanged = tuple(name for name in names if name not in changed)
    return Extraction(tuple(matrices), unchanged, MappingProxyType(left_out), _lost_in_all(matrices))


# ── one matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _extract_matrix(name: str, delta: np.ndarray, settings: _Settings) -> tuple[Factors | None, ExtractedMatrix | None]:
    """Returns a matrix's factors, if any singular value is large enough, and what became of it, if it has changed."""
    total = squared_norm(delta)
    if total == 0:
        return None, None
    left, sigma, right = nearest_of_rank(
        delta,
        settings.rank,
        seed=settings.seed,
        oversampling=settings.oversampling,
        iterations=settings.iterations,
    )
    count = _rank(sigma, total, settings)
    if count == 0:
        return None, ExtractedMatrix(name, 0, math.sqrt(total), 1.0)
    pair = balanced(left[:, :count], sigma[:count], right[:, :count])
    lost = squared_rest(delta, pair)
    return pair, ExtractedMatrix(name, count, math.sqrt(total), min(1.0, lost / total))


def _rank(sigma: np.ndarray, total: float, settings: _Settings) -> int:
    """Returns how many of the singular values are kept."""
    count = int((sigma > settings.epsilon).sum())
    if settings.energy is None:
        return count
    return min(count, enough_for(settings.energy, sigma, total))


def _difference(base: Checkpoint, tuned: Checkpoint, name: str) -> np.ndarray:
    one, two = tuned.tensor(name), base.tensor(name)
    wide = np.result_type(one.dtype, two.dtype, np.float32)
    with np.errstate(over="ignore"):
        delta = (one.astype(wide) - two.astype(wide)).astype(np.float32)
    if not np.isfinite(delta).all():
        raise CheckpointError(
            f"{tuned.path} cannot be extracted as an adapter", [f"tensor {name!r}: its change overflows float32"]
        )
    return np.asarray(delta)


def _lost_in_all(matrices: Sequence[ExtractedMatrix]) -> float:
    lost = math.fsum(matrix.error_bound**2 for matrix in matrices)
    return lost / math.fsum(matrix.norm**2 for matrix in matrices)


def _nothing(names: int, changed: int, epsilon: float) -> str:
    if changed:
        return f"no singular value of the {changed} changed matrices is above epsilon {epsilon}; lower it"
    if names:
        return f"all {names} matrices that were looked at equal the base's: these are one model"
    return "no tensor of two axes whose name ends in .weight is left to look at; widen what is included"


# ── which tensors ────────────────────────────────────────────────────────────────────────────────────────────────────


def _plan(base: Checkpoint, tuned: Checkpoint, choice: _Choice, *, skip: bool) -> tuple[list[str], dict[str, str]]:
    """Returns the matrices to extract, and what else has changed; refuses what cannot be held, unless it is skipped."""
    names, changes = [], []
    for name in sorted({*base.specs, *tuned.specs}):
        change = _left_out(name, base, tuned, choice)
        if change is None:
            names.append(name)
        elif _is_changed(name, base, tuned):
            changes.append(change)
    faults = [f"base: {fault}" for fault in find_non_finite(base)]
    faults += [f"fine-tune: {fault}" for fault in find_non_finite(tuned)]
    faults += [
        f"tensor {change.name!r} has changed and an adapter cannot hold it: {change.reason}; exclude it, or skip what "
        "cannot be decomposed"
        for change in changes
        if not skip and not change.is_chosen
    ]
    if faults:
        raise CheckpointError(f"{tuned.path} cannot be extracted as an adapter for {base.path}", faults)
    return names, {change.name: change.reason for change in changes}


def _left_out(name: str, base: Checkpoint, tuned: Checkpoint, choice: _Choice) -> _Change | None:
    """Returns why a tensor is not looked at; `None` if it is."""
    module = name.removesuffix(".weight")
    for pattern in choice.exclude:
        if re.search(pattern, module):
            return _Change(name, f"excluded by {pattern!r}", is_chosen=True)
    if choice.include and not any(re.search(pattern, module) for pattern in choice.include):
        return _Change(name, "not among what is included", is_chosen=True)
    reason = next(_obstacles(name, module, base, tuned, choice.embeddings), None)
    return None if reason is None else _Change(name, reason, is_chosen=False)


def _obstacles(name: str, module: str, base: Checkpoint, tuned: Checkpoint, embeddings: str) -> Iterator[str]:
    """Yields what keeps an adapter from holding a change of this tensor."""
    if name not in base.specs or name not in tuned.specs:
        yield f"the {'base' if name in tuned.specs else 'fine-tune'} has no such tensor"
        return
    shape, found = base.specs[name].shape, tuned.specs[name].shape
    if shape != found:
        yield f"its shape is {list(found)}, the base's {list(shape)}"
    if not (is_floating(base, name) and is_floating(tuned, name)):
        yield f"its dtype is {tuned.specs[name].dtype}, the base's {base.specs[name].dtype}, not both real numbers"
    if len(shape) != 2 or 0 in shape:
        yield f"its shape is {list(shape)}, and factors make matrices"
    if not name.endswith(".weight"):
        yield "its name does not end in .weight, as those of linear layers do"
    if re.search(embeddings, module):
        yield "it is an embedding by its name"


def _is_changed(name: str, base: Checkpoint, tuned: Checkpoint) -> bool:
    if name not in base.specs or name not in tuned.specs:
        return True
    return not np.array_equal(tuned.tensor(name), base.tensor(name))


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _setting_faults(settings: _Settings) -> Iterator[str]:
    if settings.rank < 1:
        yield f"rank is {settings.rank}; factors have at least 1"
    if settings.energy is not None and not 0 < settings.energy <= 1:
        yield f"energy is {settings.energy}; it is a share, above 0 and up to 1"
    if not settings.epsilon >= 0:
        yield f"epsilon is {settings.epsilon}; singular values are not negative"
    for name in ("seed", "oversampling", "iterations"):
        value = getattr(settings, name)
        if value < 0:
            yield f"{name} is {value}; it counts from 0"


def _pattern_faults(choice: _Choice) -> Iterator[str]:
    patterns = [("include", p) for p in choice.include] + [("exclude", p) for p in choice.exclude]
    for where, pattern in [*patterns, ("embeddings", choice.embeddings)]:
        fault = _pattern_fault(pattern)
        if fault is not None:
            yield f"{where}: {pattern!r} is no regular expression that can be searched for: {fault}"


def _pattern_fault(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None
