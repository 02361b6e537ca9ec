"""What every merge method keeps: laws that hold whatever it does, over two small tensors of three models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minerua.conformance.report import Check, Found
from minerua.conformance.subject import Subject, is_weighted, same
from minerua.values import MergeInputs, MergeMethodSpec, MergeTensors, MergeTile

if TYPE_CHECKING:
    import numpy as np

Model = Mapping[str, Any]

_SHAPES: Mapping[str, tuple[int, ...]] = {"layer.weight": (6, 5), "layer.bias": (6,)}
_TOLERANCE = 1e-3
"""Methods that solve systems are right to some four digits in float32."""


# ── one way to call all five kinds ───────────────────────────────────────────────────────────────────────────────────


def merged(
    spec: MergeMethodSpec,
    base: Model,
    experts: Sequence[Model],
    weights: Sequence[float],
    settings: Mapping[str, Any],
    *,
    dtype: str = "float32",
    order: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Merges models with one method, called as its kind is called.

    Args:
        spec: The method.
        base: Tensor name → array, float32.
        experts: K like it.
        weights: K numbers.
        settings: Parameter name → value, over the defaults.
        dtype: What a method with `uses="tensors"` is asked to write.
        order: Which expert stands where, so that its inputs go with it; by default 0, 1, 2 and so on.

    Returns:
        Tensor name → merged weights; of kinds that return task vectors, with the base added.
    """
    owners = list(order or range(len(experts)))
    ways: Mapping[str, Callable[[], dict[str, Any]]] = {
        "weights": lambda: _by_vectors(spec, base, experts, weights, owners),
        "grams": lambda: _by_vectors(spec, base, experts, weights, owners),
        "model": lambda: _by_model(spec, base, experts, weights, owners),
        "tiles": lambda: _by_tiles(spec, base, experts, _parameters(spec, weights, settings)),
        "tensors": lambda: _by_tensors(spec, base, experts, _parameters(spec, weights, settings), dtype),
    }
    return ways[spec.uses]()


def _by_vectors(
    spec: MergeMethodSpec, base: Model, experts: Sequence[Model], weights: Sequence[float], owners: Sequence[int]
) -> dict[str, Any]:
    result = {}
    for name, array in base.items():
        vectors = [expert[name] - array for expert in experts]
        grams = [_seen(base, k)[name] for k in owners] if array.ndim == 2 else None
        extra = () if spec.uses == "weights" else (grams and [rows.T @ rows for rows in grams],)
        result[name] = _sum(array, spec.merge(vectors, list(weights), *extra))
    return result


def _sum(array: np.ndarray, vector: Any) -> Any:
    """Returns base and task vector together; what is no array of the shape is returned as it is, to be told."""
    return array + vector if getattr(vector, "shape", None) == array.shape else vector


def _by_model(
    spec: MergeMethodSpec, base: Model, experts: Sequence[Model], weights: Sequence[float], owners: Sequence[int]
) -> dict[str, Any]:
    inputs = MergeInputs(base, tuple(experts), lambda tensors, k: _seen(tensors, owners[k]))
    changes = spec.merge(inputs, list(weights))
    return {name: _sum(array, changes[name]) if name in changes else array for name, array in base.items()}


def _seen(tensors: Model, k: int) -> dict[str, np.ndarray]:
    """Returns what reaches the matrices on expert k's inputs: drawn, the same whatever the weights."""
    import numpy as np

    matrices = {name: array for name, array in tensors.items() if array.ndim == 2}
    return {name: _normal(np.random.default_rng(k), (16, array.shape[1])) for name, array in matrices.items()}


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.normal(size=shape).astype("float32")


def _by_tiles(spec: MergeMethodSpec, base: Model, experts: Sequence[Model], parameters: Model) -> dict[str, Any]:
    result = {}
    for name, array in base.items():
        flat = None if spec.base == "ignored" else array.reshape(-1)
        tile = MergeTile(name, tuple(expert[name].reshape(-1) for expert in experts), flat, parameters)
        answer = spec.merge(tile)
        fits = getattr(answer, "shape", None) == (array.size,)
        result[name] = answer.reshape(array.shape) if fits else answer
    return result


def _by_tensors(
    spec: MergeMethodSpec, base: Model, experts: Sequence[Model], parameters: Model, dtype: str
) -> dict[str, Any]:
    import ml_dtypes
    import numpy as np

    from minerua.kernels.sources import Source, Target

    wanted = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    every = [
        MergeTensors(
            name,
            array.shape,
            int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"),
            tuple(Source(expert[name]) for expert in experts),
            None if spec.base == "ignored" else Source(array),
            parameters,
        )
        for name, array in base.items()
    ]
    prepared = spec.prepare(every) if spec.prepare else None
    result = {}
    for one in every:
        result[one.name] = np.full(one.shape, np.nan, wanted)  # what is not written stays NaN, and is found
        spec.merge(replace(one, prepared=prepared), Target(wanted, result[one.name]))
    return result


def _parameters(spec: MergeMethodSpec, weights: Sequence[float], settings: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in spec.parameters:
        value = settings.get(parameter.name, parameter.default)
        if value is None:
            value = min(max(0.5, parameter.fewest or 0.0), 0.5 if parameter.most is None else parameter.most)
        values[parameter.name] = (value,) * len(weights) if parameter.per_model else value
    if "weight" in values:
        values["weight"] = tuple(weights)
    return values


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _drawn(seed: int, *, scale: float = 1.0, base: Model | None = None) -> dict[str, np.ndarray]:
    import numpy as np

    generator = np.random.default_rng(seed)
    drawn = {name: np.float32(scale) * _normal(generator, shape) for name, shape in _SHAPES.items()}
    made = drawn if base is None else {name: base[name] + array for name, array in drawn.items()}
    for array in made.values():
        array.setflags(write=False)
    return made


def _base() -> dict[str, np.ndarray]:
    return _drawn(9)


def _experts(count: int) -> list[dict[str, np.ndarray]]:
    return [_drawn(seed, scale=0.1, base=_base()) for seed in range(count)]


def _count(spec: MergeMethodSpec, wanted: int) -> int:
    """Returns the number of experts nearest to what is wanted that the method takes."""
    most = wanted if spec.most is None else min(wanted, spec.most)
    return max(most, spec.fewest)


def _equally(count: int) -> list[float]:
    return [1.0 / count] * count


def _merge(
    subject: Subject, experts: Sequence[Model], weights: Sequence[float], **options: Any
) -> dict[str, np.ndarray]:
    return merged(subject.spec, options.pop("base", None) or _base(), experts, weights, subject.settings, **options)


def _differences(found: Model, expected: Model, what: str) -> list[str]:
    wrong = [name for name in expected if not same(found[name], expected[name], tolerance=_TOLERANCE)]
    return [f"{name!r} {what}: off by {_farthest(found[name], expected[name])}" for name in wrong]


def _farthest(a: Any, b: Any) -> str:
    fits = getattr(a, "shape", None) == getattr(b, "shape", ())
    return f"up to {float(abs(a - b).max()):.3g}" if fits else "its shape or type"


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _shape_and_dtype(subject: Subject) -> Found:
    import numpy as np

    spec, found = subject.spec, list[str]()
    count = _count(spec, 3)
    for dtype in ("float32", "bfloat16") if spec.uses == "tensors" else ("float32",):
        for name, array in _merge(subject, _experts(count), _equally(count), dtype=dtype).items():
            if not isinstance(array, np.ndarray) or array.shape != _SHAPES[name] or array.dtype.name != dtype:
                shape, kind = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
                found.append(
                    f"{name!r} came back as {kind} of shape {shape}; {dtype} of shape {_SHAPES[name]} is wanted"
                )
            elif not np.isfinite(array.astype(np.float32)).all():
                found.append(f"{name!r} came back with NaN, infinity, or places that were not written")
    return found


def _zeros(subject: Subject) -> Found:
    import numpy as np

    nothing = {name: np.zeros(shape, np.float32) for name, shape in _SHAPES.items()}
    count = _count(subject.spec, 3)
    found = _merge(subject, [nothing] * count, _equally(count), base=nothing)
    return _differences(found, nothing, "of models that are all zero is not zero")


def _agreement(subject: Subject) -> Found:
    count = _count(subject.spec, 3)
    found = _merge(subject, [_base()] * count, _equally(count))
    return _differences(found, _base(), "of models that are all the same is another one")


def _one_expert(subject: Subject) -> Found:
    (expert,) = _experts(1)
    return _differences(_merge(subject, [expert], [1.0]), expert, "of one expert of weight 1 is not the expert's")


def _equal_experts(subject: Subject) -> Found:
    count = _count(subject.spec, 3)
    (expert,) = _experts(1)
    found = _merge(subject, [expert] * count, _equally(count))
    return _differences(found, expert, "of equal experts whose weights sum to 1 is not theirs")


def _zero_weight(subject: Subject) -> Found:
    count = max(subject.spec.fewest, 1) + 1
    experts, weights = _experts(count), _equally(count - 1)
    found = _merge(subject, experts, [*weights, 0.0])
    return _differences(found, _merge(subject, experts[:-1], weights), "changes with an expert of weight 0")


def _permutation(subject: Subject) -> Found:
    count = _count(subject.spec, 3)
    experts, weights = _experts(count), [0.5, 0.3, 0.2, *[0.1] * count][:count]
    found = _merge(subject, experts[::-1], weights[::-1], order=range(count)[::-1])
    return _differences(found, _merge(subject, experts, weights), "depends on the order of the experts")


def _repeats(subject: Subject) -> Found:
    count = _count(subject.spec, 3)
    first, second = (_merge(subject, _experts(count), _equally(count)) for _ in range(2))
    changed = [name for name in first if not same(first[name], second[name])]
    return [f"{name!r}, merged twice from the same models, has other bits" for name in changed]


def _borrows(subject: Subject) -> Found:
    count = _count(subject.spec, 3)
    experts = [{name: array.copy() for name, array in expert.items()} for expert in _experts(count)]
    base = {name: array.copy() for name, array in _base().items()}
    _merge(subject, experts, _equally(count), base=base)
    whole = all(same(expert, before) for expert, before in zip(experts, _experts(count), strict=True))
    return [] if whole and same(base, _base()) else ["the merge wrote into the weights that it was lent"]


def _takes_one(subject: Subject) -> bool:
    return is_weighted(subject.spec) and subject.spec.fewest <= 1


def _takes_several(subject: Subject) -> bool:
    return is_weighted(subject.spec) and _count(subject.spec, 3) > 1


def _can_leave_out(subject: Subject) -> bool:
    spec = subject.spec
    return is_weighted(spec) and (spec.most is None or spec.most > max(spec.fewest, 1))


_LAW = "repair the formula; where the method is not meant to keep this, declare the exemption and say why"

CHECKS: tuple[Check, ...] = (
    Check(
        "shape-and-dtype",
        "every merged tensor has the shape and dtype that was asked for, and finite numbers everywhere",
        "return a fresh float32 array of the inputs' shape, or write every element of the target",
        _shape_and_dtype,
    ),
    Check(
        "zeros",
        "models that are all zero merge to zero, without NaN",
        "guard every division by a norm or a sum",
        _zeros,
    ),
    Check("agreement", "models that are all the same as the base merge to it", _LAW, _agreement),
    Check("one-expert", "one expert of weight 1 merges to itself", _LAW, _one_expert, _takes_one),
    Check(
        "equal-experts",
        "equal experts whose weights sum to 1 merge to themselves",
        _LAW,
        _equal_experts,
        _takes_several,
    ),
    Check("zero-weight", "an expert of weight 0 changes nothing", _LAW, _zero_weight, _can_leave_out),
    Check(
        "permutation",
        "the order of the experts, each with its weight, changes nothing",
        _LAW,
        _permutation,
        _takes_several,
    ),
    Check(
        "repeatable",
        "the same models give the same bits",
        "draw whatever is random from the seed that is handed in",
        _repeats,
    ),
    Check("borrows", "a merge leaves the weights that it is lent as they are", "work on copies", _borrows),
)
