"""How tests merge one tensor: by minerua's method of a name, and by mergekit's, which is an oracle and nothing else.

mergekit computes in the dtype of its inputs, so that with float64 it is an oracle for every precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from minerua.kernels.sources import Source, Target
from minerua.merge.methods import minerua_merge_methods
from minerua.values import MergeMethodSpec, MergeTensors, MergeTile

METHODS: dict[str, MergeMethodSpec] = {spec.name: spec for spec in minerua_merge_methods()}

SHAPES = [(37,), (6, 35), (3, 4, 10), (1, 1), ()]
"""A vector, a matrix, a packed layer of three matrices, one number with axes and one without."""


def mergekit_methods() -> Any:
    """Returns mergekit's module of merge methods; skips the test where mergekit is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mergekit.merge_methods", reason="mergekit is the oracle")


def mergekit(
    name: str,
    experts: Sequence[np.ndarray],
    base: np.ndarray | None = None,
    *,
    dtype: str = "float32",
    **parameters: Any,
) -> np.ndarray:
    """Returns what mergekit's method makes of these tensors, in this dtype.

    Args:
        name: mergekit's name of the method.
        experts: K arrays of one shape.
        base: The base, or `None`.
        dtype: In which it computes.
        parameters: As recipes name them; `lambda_` is `lambda`. Values per model in the order of the experts.
    """
    methods = mergekit_methods()
    import torch

    tensors = [_torch(array, dtype) for array in ([] if base is None else [base]) + list(experts)]
    group = methods.TensorGroup.from_tensors(tensors, base_index=None if base is None else 0)
    (merged,) = methods.get(name)([group], parameters={key.rstrip("_"): value for key, value in parameters.items()})
    assert merged.shape == tensors[0].shape
    return np.asarray(merged.to(getattr(torch, dtype)).to(torch.float64).numpy())  # ramplus_tl widens bfloat16


def minerua(
    name: str,
    experts: Sequence[np.ndarray],
    base: np.ndarray | None = None,
    *,
    dtype: str = "float32",
    semantics: Any = "mergekit",
    seed: int = 0,
    number: int = 0,
    prepared: Any = None,
    **parameters: Any,
) -> np.ndarray:
    """Returns what minerua's method makes of these tensors: read as they are, written in this dtype, as float64.

    Args:
        name: mergekit's or minerua's name of the method.
        experts: K arrays of one shape, float32 or bfloat16.
        base: The base, or `None`.
        dtype: Of what is written.
        semantics: `"mergekit"` or `"paper"`.
        seed: Of random masks.
        number: The tensor's place in the model.
        prepared: What the method's `prepare` returned.
        parameters: As `mergekit` takes them; those left out have their defaults.
    """
    return merge(name, experts, base, dtype, semantics, seed, number, prepared, **parameters)[0]


def merge(
    name: str,
    experts: Sequence[np.ndarray],
    base: np.ndarray | None = None,
    dtype: str = "float32",
    semantics: Any = "mergekit",
    seed: int = 0,
    number: int = 0,
    prepared: Any = None,
    **parameters: Any,
) -> tuple[np.ndarray, list[int]]:
    """Returns what `minerua` returns, and the counts of numbers that are not finite."""
    spec = METHODS[name.replace("_", "-")]
    settings = filled(spec, len(experts), parameters)
    like = experts[0] if base is None else base
    merged = np.zeros(like.shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    if spec.uses == "tiles":
        tile = MergeTile("w", tuple(np.float32(e).reshape(-1) for e in experts), _flat(base), settings)
        merged[...] = spec.merge(tile).reshape(like.shape)
        return merged.astype(np.float64), []
    tensors = tensors_of(experts, base, settings, semantics=semantics, seed=seed, number=number, prepared=prepared)
    counts = spec.merge(tensors, Target(merged.dtype, merged))
    return merged.astype(np.float64), [] if counts is None else [int(count) for count in counts]


def tensors_of(
    experts: Sequence[np.ndarray],
    base: np.ndarray | None,
    settings: dict[str, Any],
    *,
    semantics: Any = "mergekit",
    seed: int = 0,
    number: int = 0,
    prepared: Any = None,
) -> MergeTensors:
    """Returns a tensor in memory as merge methods are given it, named after its number."""
    like = experts[0] if base is None else base
    sources = tuple(Source(expert) for expert in experts)
    start = None if base is None else Source(base)
    return MergeTensors(f"w{number or ''}", like.shape, number, sources, start, settings, semantics, seed, prepared)


def filled(spec: MergeMethodSpec, count: int, given: dict[str, Any]) -> dict[str, Any]:
    """Returns all parameters of a method, defaults included, one value per model where the method wants that."""
    given = {key.rstrip("_"): value for key, value in given.items()}
    assert given.keys() <= {parameter.name for parameter in spec.parameters}, f"{spec.name} has no {given}"
    settings = {}
    for parameter in spec.parameters:
        value = given.get(parameter.name, parameter.default)
        assert value is not None, f"{spec.name} needs {parameter.name}"
        if parameter.per_model:
            value = tuple(value) if isinstance(value, Sequence) else (value,) * count
            assert len(value) == count
        settings[parameter.name] = value
    return settings


def drawn(count: int, shape: tuple[int, ...], *, seed: int = 0, spread: float = 0.3) -> tuple[list[np.ndarray], Any]:
    """Returns experts and the base that they were trained from, float32: normal numbers, and normal changes to them."""
    generator = np.random.default_rng(seed)
    base = np.asarray(generator.normal(size=shape), np.float32)
    experts = [np.asarray(base + generator.normal(0, spread, shape), np.float32) for _ in range(count)]
    return experts, base


def in_bfloat16(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays rounded to bfloat16."""
    return [array.astype(ml_dtypes.bfloat16) for array in arrays]


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, tolerance: float = 1e-6) -> None:
    """Asserts that two results agree to this part of the largest number."""
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(float(np.abs(theirs).max(initial=0)), 1e-30))


def error(found: np.ndarray, true: np.ndarray) -> float:
    """Returns the root of the mean square of the differences."""
    return float(np.sqrt(np.mean((found - true) ** 2)))


def _flat(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.asarray(array, np.float32).reshape(-1)


def _torch(array: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(np.array(array, np.float64)).to(getattr(torch, dtype))
