"""What a value is: names by content, forms that nobody can change, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minerua.chain.keeping import content
from minerua.chain.keeping.cache import ContentCache
from minerua.chain.keeping.content import Frozen, Opaque
from minerua.values import Skill

SKILL = Skill("see", pure=True)
KEYS = [bytes([n]) * 16 for n in range(256)]


def key_of(*values: Any) -> bytes | None:
    return ContentCache.key(SKILL, {f"x{n}": value for n, value in enumerate(values)})


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.binary(max_size=5)
)
DTYPES = st.sampled_from(["f4", ">f4", "f8", "i1", "u8", "?", "c8", "U3", "S2", "M8[s]", "f2"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def spelt(value: Any) -> Any:
    """Says all that counts about a value, so that two are the same if and only if this is equal."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return ("dict", frozenset((key, spelt(one)) for key, one in value.items()))
    if isinstance(value, list | tuple):
        return (type(value).__name__, tuple(map(spelt, value)))
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else value.hex())
    if isinstance(value, complex):
        return ("complex", spelt(value.real), spelt(value.imag))
    return (type(value).__name__, value)


@given(VALUES, VALUES)
@settings(max_examples=300, deadline=None)
def test_two_inputs_have_one_key_if_and_only_if_they_are_the_same(one: Any, other: Any) -> None:
    if "nan" not in repr(spelt(one)):  # of NaN there are many
        assert (key_of(one) == key_of(other)) == (spelt(one) == spelt(other))
    assert key_of(one) is not None


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_inputs_does_not_count(inputs: dict[str, Any], random: Any) -> None:
    shuffled = list(inputs.items())
    random.shuffle(shuffled)
    assert ContentCache.key(SKILL, inputs) == ContentCache.key(SKILL, dict(shuffled))


@given(ARRAYS)
@settings(max_examples=100, deadline=None)
def test_the_layout_of_an_array_does_not_count(array: np.ndarray) -> None:
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    layouts = [
        array.copy(),
        np.array(array, order="F"),
        wide[..., 0],
        array[::-1].copy()[::-1] if array.ndim else array,
    ]
    assert {key_of(one) for one in layouts} == {key_of(array)}


def test_a_strided_array_larger_than_a_piece_has_the_key_of_its_copy() -> None:
    array = np.arange(600_000, dtype=np.float32).reshape(3, 200_000)[:, ::2]
    assert key_of(array) == key_of(array.copy()) != key_of(array + 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("1", b"1"),
        (np.float32(1), np.float64(1)),
        (np.float32(1), np.asarray(np.float32(1))),
        (np.zeros(2, ">f4"), np.zeros(2, "<f4")),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(0), np.zeros((0, 1))),
        ([1, [2]], [[1], 2]),
        (["ab", "c"], ["a", "bc"]),
        ((), []),
        ({}, []),
        (None, "None"),
        (0, 256),
        (-1, 255),
        (np.zeros(2, ml_dtypes.bfloat16), np.zeros(2, np.float16)),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), np.zeros(2, ml_dtypes.float8_e5m2)),
    ],
)
def test_what_looks_alike_has_keys_of_its_own(one: Any, other: Any) -> None:
    assert None not in (key_of(one), key_of(other))
    assert key_of(one) != key_of(other)


def test_names_and_versions_count_and_do_not_run_into_each_other() -> None:
    skills = [Skill("ab", version="c"), Skill("a", version="bc"), Skill("ab", version="d")]
    assert len({ContentCache.key(skill, {"x": 1}) for skill in skills}) == 3
    assert ContentCache.key(SKILL, {"a": 1, "b": 2}) != ContentCache.key(SKILL, {"b": 1, "a": 2})


def test_nan_has_a_key() -> None:
    assert key_of(math.nan) == key_of(float("nan")) is not None
    assert key_of(np.array([np.nan])) == key_of(np.array([np.nan]))


class _Text(str):
    pass


class _Array(np.ndarray):
    pass


def nested_in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: 2},
        {1},
        bytearray(b"x"),
        _Text("x"),
        np.array([object()]),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2).view(_Array),
        np.ma.masked_array([1, 2], [True, False]),
        np.array(["a"], np.dtypes.StringDType()),
        [object()],
        ({"a": object()},),
        nested_in_itself(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_mean_more_than_its_bytes_has_no_key_and_is_not_kept(value: Any) -> None:
    assert key_of(value) is None
    cache = ContentCache(1000)
    outputs = {"y": value}
    assert cache.put(KEYS[0], outputs) is outputs
    assert cache.get(KEYS[0]) is None
    assert cache.statistics().memory.refused == 1


def test_torch_tensors_are_named_by_content_and_kept_as_copies() -> None:
    import torch

    one = torch.arange(12.0).reshape(3, 4)
    assert key_of(one) == key_of(one.clone()) == key_of(one.T.contiguous().T)
    assert len({key_of(x) for x in (one, one.bfloat16(), one.T, one + 1, one.numpy(), torch.tensor(0.0))}) == 6
    assert key_of(one.requires_grad_()) is None
    cache = ContentCache(1 << 16)
    cache.put(KEYS[0], {"y": (kept := torch.ones(3, dtype=torch.bfloat16))})
    kept[:] = 2
    for _ in range(2):
        found = cache.get(KEYS[0])
        assert found is not None
        assert found["y"].tolist() == [1, 1, 1]
        found["y"][:] = 3


def test_a_value_alone_has_a_digest_too() -> None:
    assert content.value_digest([1, 2]) == content.value_digest([1, 2]) != content.value_digest([2, 1])
    assert content.value_digest(object()) is None


# ── keeping, files ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_view_of_memory_that_nobody_can_write_to_is_kept_and_counted_with_all_that_it_holds() -> None:
    owner = np.zeros(1000, np.uint8)
    owner.flags.writeable = False
    frozen = Frozen({"a": owner[:10], "b": owner[10:20]})
    assert frozen.outputs()["a"].base is owner
    assert 1000 <= frozen.nbytes < 1500
    text = np.frombuffer(b"x" * 500, np.uint8)
    assert Frozen({"a": text}).outputs()["a"] is text
    assert 500 <= Frozen({"a": text}).nbytes < 800


def test_a_mapped_file_is_copied_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\1" * 16)
    mapped = np.memmap(tmp_path / "x", np.uint8, "r")
    found = Frozen({"y": mapped}).outputs()["y"]
    assert type(found) is np.ndarray
    assert not isinstance(found.base, np.memmap)
    assert key_of(mapped) == key_of(np.array(mapped))


def test_outputs_of_which_one_is_opaque_stay_as_they_are() -> None:
    array = np.ones(2)
    with pytest.raises(Opaque):
        Frozen({"a": array, "b": object()})
    assert array.flags.writeable


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_file_gives_back_what_was_stored_bit_by_bit(outputs: dict[str, Any]) -> None:
    stored = b"".join(content.pack(KEYS[3], outputs))
    found = content.unpack(KEYS[3], stored)
    assert found is not None
    assert list(found) == list(outputs)
    assert ContentCache.key(SKILL, found) == ContentCache.key(SKILL, outputs)
    assert content.unpack(KEYS[4], stored) is None
