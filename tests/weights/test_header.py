import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.values import TensorSpec
from minerua.weights.header import DTYPES, encode_header, nbytes, parse_header, parse_object, shown


def _faults(content: object, data_bytes: int = 8) -> list[str]:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return list(parse_header(text, data_bytes=data_bytes).faults)


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_a_header_that_was_encoded_is_parsed_back():
    specs = (TensorSpec("b", (2, 3), "bfloat16"), TensorSpec("α", (), "int64"), TensorSpec("z", (0, 4), "bool"))
    encoded = encode_header(specs, {"b": "2", "a": "1"})
    length = int.from_bytes(encoded[:8], "little")
    header = parse_header(encoded[8:], data_bytes=20)
    assert (length % 8, len(encoded)) == (0, 8 + length)
    assert header.faults == ()
    assert tuple(place.spec for place in header.places) == specs
    assert [(place.begin, place.end) for place in header.places] == [(0, 12), (12, 20), (20, 20)]
    assert header.metadata == {"a": "1", "b": "2"}


@pytest.mark.parametrize("code", DTYPES)
def test_every_code_takes_the_bytes_of_its_numpy_type(code):
    assert nbytes(TensorSpec("w", (3, 5), DTYPES[code].name)) == np.empty((3, 5), DTYPES[code]).nbytes


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], "its entry is not an object: found []"),
        (_entry(dtype="F4"), "dtype 'F4' is unknown; known are BOOL"),
        (_entry(dtype=None), "dtype None is unknown"),
        (_entry(dtype=[1]), "dtype [1] is unknown"),
        (_entry(shape=[-2]), "shape [-2] is not a list of non-negative integers"),
        (_entry(shape=[True, 2]), "shape [True, 2] is not a list"),
        (_entry(shape=[2.0]), "shape [2.0] is not a list"),
        (_entry(shape=2), "shape 2 is not a list"),
        (_entry(shape=None), "shape None is not a list"),
        (_entry(shape=[10**19, 10**19]), "is larger than any memory"),
        (_entry(shape=[0, 2**61, 2**61]), "is larger than any memory"),
        (_entry(shape=[1] * 65), "shape has 65 dimensions, numpy's limit is 64"),
        (_entry(data_offsets=[8, 0]), "data_offsets [8, 0] end before they begin"),
        (_entry(data_offsets=[0, 4, 8]), "data_offsets [0, 4, 8] are not two non-negative integers"),
        (_entry(data_offsets=[-8, 0]), "data_offsets [-8, 0] are not two"),
        (_entry(data_offsets="08"), "data_offsets '08' are not two"),
        (_entry(shape=[3]), "shape [3] of F32 takes 12 bytes, but data_offsets [0, 8] span 8"),
    ],
)
def test_a_wrong_entry_is_named_with_what_it_says(entry, words):
    (fault,) = _faults({"layer.w": entry})
    assert fault.startswith("tensor 'layer.w': ")
    assert words in fault


def test_a_number_with_a_million_digits_is_a_fault_and_takes_no_time():
    (fault,) = _faults(b'{"w":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,8]}}')
    assert "shape [inf] is not a list of non-negative integers" in fault


def test_nesting_of_any_depth_is_a_fault():
    for depth in (*range(0, 900, 50), *range(900, 1100)):
        text = b'{"w":{"dtype":' + b"[" * depth + b"]" * depth + b',"shape":[2],"data_offsets":[0,8]}}'
        assert len(_faults(text)) == 1


def test_half_of_a_surrogate_pair_is_no_name():
    (fault,) = _faults(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')
    assert fault == "tensor '\\ud800': its name holds half of a surrogate pair, which is not a Unicode text"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the header is not JSON"),
        (b"\xff{}", "the header is not UTF-8: byte 0 of 3 is 0xff"),
        (b"[1]", "the header is JSON, but not an object: found list"),
        (b"{", "the header is not JSON"),
        (b"[" * 200_000, "the header is nested deeper than any checkpoint's"),
        (b'{"__metadata__":{},"__metadata__":{}}', "the header has the key '__metadata__' more than once"),
        (b'{"__metadata__":[]}', "__metadata__ is not an object: found []"),
        (b'{"__metadata__":{"a":1}}', "__metadata__ entry 'a' is not a text: found 1"),
    ],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(text, words):
    assert any(words in fault for fault in _faults(text, 0))


def test_a_key_given_twice_inside_an_entry_is_a_fault():
    text = b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
    assert _faults(text) == ["the header has the key 'dtype' more than once"]


def test_all_faults_of_all_entries_are_listed():
    faults = _faults({"a": _entry(dtype="X", shape=[-1], data_offsets=[3]), "b": 1, "__metadata__": {"n": None}})
    assert len(faults) == 5


@pytest.mark.parametrize(
    ("second", "size", "words"),
    [
        ([12, 20], 20, "tensor 'b': a hole of 4 bytes lies between it and tensor 'a'"),
        ([4, 12], 12, "tensor 'b': its bytes [4, 12] overlap those of tensor 'a', which end at 8"),
        ([0, 8], 8, "overlap those of tensor 'a', which end at 8"),
        ([8, 16], 10, "the tensors need 16 bytes, the file holds 10 of them; 6 bytes are missing"),
        ([8, 16], 21, "5 bytes at the end of the file belong to no tensor"),
    ],
)
def test_places_that_do_not_tile_the_file_are_refused(second, size, words):
    (fault,) = _faults({"a": _entry(), "b": _entry(data_offsets=second)}, size)
    assert words in fault


def test_an_empty_tensor_inside_another_is_an_overlap():
    (fault,) = _faults({"a": _entry(), "b": _entry(shape=[0], data_offsets=[4, 4])})
    assert "tensor 'b': its bytes [4, 4] overlap" in fault


def test_a_text_from_a_file_is_shown_escaped_and_short():
    assert shown("a\nb\x1b") == "'a\\nb\\x1b'"
    assert len(shown("x" * 10**6)) <= 120
    assert len(shown(["x"] * 1000)) <= 120


def test_a_value_that_is_nested_too_deeply_to_be_shown_is_described():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a deeply nested list"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*DTYPES]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=20,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES]) | _JSON,
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=4) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 40) | st.integers(), min_size=2, max_size=2) | _JSON,
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=4), _ENTRY | _JSON, max_size=4), st.integers(0, 100))
def test_no_object_makes_the_parser_raise(content, data_bytes):
    header = parse_header(json.dumps(content).encode(), data_bytes=data_bytes)
    if not header.faults:
        assert sum(nbytes(place.spec) for place in header.places) == data_bytes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(text):
    parse_header(text, data_bytes=len(text))
    parse_object(text, what="the header")


def test_a_huge_claim_allocates_nothing_like_it():
    tracemalloc.start()
    try:
        _faults({"w": _entry(shape=[2**40, 2**10], data_offsets=[0, 2**52])})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
