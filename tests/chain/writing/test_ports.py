"""Ports: how they are written, what fits, and that the quick check says what the thorough one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua import TensorSpec
from minerua.chain.graph import PortType
from minerua.chain.writing import ports
from minerua.chain.writing.ports import (
    WORDS,
    PortCheck,
    described,
    dtype_of,
    found,
    parse_port,
    short,
    type_fits,
    value_faults,
)
from minerua.errors import ChainError

IMAGE = TensorSpec("image", ("batch", 2), "float32")
LABEL = TensorSpec("label", ("batch",), "int64")
extents = st.one_of(st.integers(0, 99), st.sampled_from(["batch", "n", "länge"]).filter(str.isascii))
dtypes = st.sampled_from(["float32", "bfloat16", "bool", "int8"])
tensors = st.builds(TensorSpec, st.just("x"), st.lists(extents, max_size=4).map(tuple), dtypes)


# ── written and read ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.one_of(tensors, st.sampled_from(list(WORDS.values()))))
def test_what_is_written_is_read_as_the_same(port: PortType) -> None:
    assert parse_port(described(port), "x") == port


def test_spaces_do_not_matter_and_scalars_have_empty_brackets() -> None:
    assert parse_port(" float32 [ batch ,64 ] ", "x") == TensorSpec("x", ("batch", 64), "float32")
    assert parse_port("int64[]") == TensorSpec("", (), "int64")


def test_other_types_are_called_by_their_full_name() -> None:
    assert described(Path) == "path"
    assert described(dict) == "mapping"
    assert described(tuple) == "tuple"
    assert described(np.random.Generator).endswith("numpy.random._generator.Generator")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "txt",
            "no port type is named 'txt'; did you mean 'text'? Known: array, bytes, flag, integer, list, mapping, ",
        ),
        ("builtins.str", "and arrays such as float32[batch, 64]"),
        ("floot32[3]", "'floot32' in 'floot32[3]' is no dtype of numpy; write float32, int64, bool and so on"),
        ("float32[-1]", "the extent '-1' in 'float32[-1]' is neither a count nor a name such as batch"),
        ("float32[1,]", "the extent '' in 'float32[1,]' is neither a count nor"),
        ("float32[" + "9" * 99 + "]", "is neither a count nor a name"),
        ("float32[[3]]", "no port type is named"),
        ("int32\n", "no port type is named 'int32\\n'"),
    ],
)
def test_what_is_no_port_is_refused(text: str, message: str) -> None:
    with pytest.raises(ChainError) as caught:
        parse_port(text)
    assert message in str(caught.value)


def test_dtypes_of_ml_dtypes_are_known_and_other_names_are_not() -> None:
    assert dtype_of("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    assert dtype_of("float32") == np.float32
    assert dtype_of("nonsense") is None


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("port", "value", "fits"),
    [
        (float, 1, True),
        (float, True, True),
        (float, np.float32(1), True),
        (float, np.int8(1), True),
        (float, "1", False),
        (int, np.int64(1), True),
        (int, True, True),
        (int, 1.0, False),
        (bool, np.True_, True),
        (bool, 1, False),
        (str, "a", True),
        (str, b"a", False),
        (object, None, True),
        (Path, Path("a"), True),
        (Path, "a", False),
        (np.ndarray, np.zeros(3), True),
        (np.ndarray, [3], False),
        (TensorSpec("x", (), "str"), np.array("abc"), True),
        (TensorSpec("x", (), "str"), np.array(b"abc"), False),
        (TensorSpec("x", (2,), "bfloat16"), np.zeros(2, ml_dtypes.bfloat16), True),
        (LABEL, [1, 2], False),
        (LABEL, np.zeros(2, np.int32), False),
        (LABEL, np.zeros((2, 2), np.int64), False),
        (LABEL, np.zeros(0, np.int64), True),
    ],
)
def test_a_value_fits_a_port(port: PortType, value: object, fits: bool) -> None:
    assert (value_faults({"x": port}, {"x": value}, where="here") == []) is fits
    check = PortCheck({"x": port}, {"x": port})
    assert (check.inputs({"x": value}) == ()) is fits
    assert (check.outputs({"x": value}) == ()) is fits


def test_faults_say_what_is_wanted_and_what_is_there() -> None:
    values = {"image": np.zeros((3, 4), np.float64), "size": Unreadable(), "more": 1}
    faults = value_faults({"image": IMAGE, "size": int, "label": LABEL}, values, where="an input of see")
    assert faults == [
        "'image', an input of see, must be float32[batch, 2], found float64[3, 4]",
        f"'size', an input of see, must be integer, found {__name__}.Unreadable (its text raises RuntimeError)",
        "'label', an input of see, is missing; int64[batch] is wanted there",
        "no port is named 'more'. Known: image, label, size (an input of see)",
    ]


def test_something_else_than_a_mapping_is_a_fault() -> None:
    faults = value_faults({}, None, where="an output")
    assert faults == ["a mapping from names to values is wanted as an output, found NoneType"]
    assert PortCheck({}, {}).outputs(None) == tuple(faults)  # type: ignore[arg-type]


def test_extents_of_one_name_are_one_count_in_inputs_and_outputs() -> None:
    check = PortCheck({"image": IMAGE, "label": LABEL}, {"label": LABEL})
    counted: dict[str, int] = {}
    right = {"image": np.zeros((3, 2), np.float32), "label": np.zeros(3, np.int64)}
    for _ in range(2):  # the second time from memory
        assert check.inputs(right, counted) == ()
        assert counted == {"batch": 3}
        assert check.outputs({"label": np.zeros(3, np.int64)}, counted) == ()
        (fault,) = check.outputs({"label": np.zeros(4, np.int64)}, counted)
        assert fault.endswith("found int64[4]: axis 0 has 4 instead of 3, where batch is 3")
        assert check.outputs({"label": np.zeros(4, np.int64)}) == ()
    (fault,) = check.inputs({**right, "image": np.zeros((3, 5), np.float32)})
    assert fault.endswith("found float32[3, 5]: axis 1 has 5 instead of 2")


def test_optional_inputs_may_be_missing_and_no_others() -> None:
    check = PortCheck({"a": int, "b": int}, {}, ("b",))
    assert check.inputs({"a": 1}) == ()
    assert check.inputs({"b": 1}) == ("'a', an input, is missing; integer is wanted there",)


def test_a_check_remembers_a_bounded_number_of_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_MOST_SHAPES", 3)
    check = PortCheck({"label": LABEL}, {})
    for count in range(9):
        assert check.inputs({"label": np.zeros(count, np.int64)}) == ()
    assert len(check._fast[0].known) <= 3


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.one_of(tensors, st.sampled_from([int, float, str, object])), max_size=3),
    st.data(),
)
def test_the_quick_check_says_what_the_thorough_one_says(types: dict[str, PortType], data: st.DataObject) -> None:
    values: dict[str, Any] = {}
    for name, port in types.items():
        if isinstance(port, TensorSpec):
            shape = tuple(data.draw(st.sampled_from([2, 3])) if isinstance(e, str) else min(e, 4) for e in port.shape)
            values[name] = np.zeros(shape, dtype_of(port.dtype))
        else:
            values[name] = data.draw(st.sampled_from([1, 1.0, "a", None]))
    check = PortCheck(types, types)
    for _ in range(2):
        quick, slow = dict[str, int](), dict[str, int]()
        faults = tuple(value_faults(types, values, where="an input", extents=slow))
        assert check.inputs(values, quick) == faults
        assert faults or quick == slow
    known = {"batch": 2}
    outputs = tuple(value_faults(types, values, where="an output", extents=dict(known)))
    assert check.outputs(values, known) == outputs
    assert known == {"batch": 2}


def test_two_ports_are_checked_in_about_a_microsecond(hold_to_budget: Any) -> None:
    """The engine may cost 15 microseconds per step; checking is the smaller part of that."""
    import time

    check = PortCheck({"image": IMAGE, "name": str}, {})
    values = {"image": np.zeros((3, 2), np.float32), "name": "a"}

    def measure() -> float:
        start = time.process_time()
        for _ in range(2000):
            check.inputs(values)
        return (time.process_time() - start) / 2000

    hold_to_budget(measure, 3e-6)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_values_are_told_in_the_words_of_ports() -> None:
    assert found(np.zeros((2, 3), np.int8)) == "int8[2, 3]"
    assert found("a") == "text"
    assert short("a" * 99, longest=9) == "'aaaaa..."


def test_arrays_of_any_dtype_fit_until_they_are_seen() -> None:
    assert type_fits(np.ndarray, IMAGE)
    assert type_fits(IMAGE, np.ndarray)
    assert type_fits(IMAGE, object)
    assert not type_fits(LABEL, IMAGE)
    assert not type_fits(str, IMAGE)
