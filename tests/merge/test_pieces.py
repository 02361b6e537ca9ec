import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.kernels import reference_passes
from minerua.kernels.sources import NONE_KEPT, Source, Target
from minerua.merge.methods import pieces

from .oracle import METHODS, drawn, filled, tensors_of


@given(rows=st.integers(0, 50), unit=st.integers(1, 9), step=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_spans_cover_everything_once_in_whole_rows(rows, unit, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_ELEMENTS", step)
        found = list(pieces.spans(rows * unit, unit))
    assert [i for begin, end in found for i in range(begin, end)] == list(range(rows * unit))
    assert all(begin % unit == 0 and end - begin <= max(step, unit) for begin, end in found)


@given(values=st.lists(st.sampled_from([0.0, 1e-40, 0.5, 1.0, 3.0, np.inf]), max_size=40), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_largest_are_those_that_the_kernels_select(values, data):
    array = np.array(values, np.float32)
    counts = [data.draw(st.integers(0, len(values))) for _ in range(2)]
    cut = data.draw(st.integers(0, len(values)))
    seen = []

    def wanted(size, nonzero):
        seen.append((size, nonzero))
        return counts

    found = pieces.select_largest(lambda use: map(use, [array[:cut], array[cut:]]), wanted)
    assert seen == [(len(values), np.count_nonzero(array))]
    assert found == reference_passes.select_largest([Source(array)] * 2, counts, base=None)
    for threshold, count in zip(found, counts, strict=True):
        kept = pieces.among_largest(array, threshold)
        np.testing.assert_array_equal(kept, reference_passes.among_largest(reference_passes.keys_of(array), threshold))
        assert kept.sum() == count


def test_nothing_is_among_the_none_largest():
    assert not pieces.among_largest(np.float32([0, 1, np.inf]), NONE_KEPT).any()


def test_pieces_hold_all_models_and_zeros_for_a_missing_base():
    experts, base = drawn(2, (4, 6))
    (piece,) = pieces.each(tensors_of(experts, base, {}), lambda piece: piece)
    np.testing.assert_array_equal(piece.deltas, [(expert - base).reshape(-1) for expert in experts])
    (piece,) = pieces.each(tensors_of(experts, None, {}), lambda piece: piece)
    np.testing.assert_array_equal(piece.deltas, [expert.reshape(-1) for expert in experts])
    assert (piece.size, piece.begin) == (24, 0)


def test_what_is_written_is_rounded_once_and_counted(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 5)
    experts, base = drawn(2, (4, 6))
    experts[0][1, 2], base[3, 3] = np.nan, np.inf
    merged = np.zeros((4, 6), np.float16)
    tensors = tensors_of(experts, base, {})
    target = Target(merged.dtype, merged)
    counts = pieces.write(tensors, target, lambda piece: piece.experts[1] * np.float32(5e4))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(merged, (experts[1] * np.float32(5e4)).astype(np.float16))
    assert counts.tolist() == [1, 0, 1, np.isinf(merged).sum()]
    assert 0 < counts[3] < merged.size


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("sce", {"select_topk": 0.3}),
        ("ramplus-tl", {}),
        ("arcee-fusion", {}),
        ("nuslerp", {"weight": 1.0, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ],
)
def test_memory_is_bounded_by_pieces_whatever_the_tensor_s_size(name, asked, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 1 << 16)
    experts, base = drawn(METHODS[name].most or 2, (1 << 11, 1 << 11))
    merged = np.zeros_like(base)
    tensors = tensors_of(experts, base, filled(METHODS[name], len(experts), asked))
    tracemalloc.start()
    METHODS[name].merge(tensors, Target(merged.dtype, merged))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < base.nbytes


def test_pieces_come_in_order_though_several_threads_make_them(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 1)
    experts, base = drawn(1, (40,))
    threads = set()

    def late(piece):
        threads.add(threading.get_ident())
        time.sleep(0.002 * (piece.begin % 3))
        return piece.begin

    assert list(pieces.each(tensors_of(experts, base, {}), late)) == list(range(40))
    assert threading.get_ident() not in threads


def test_what_a_thread_raises_arrives(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 10)
    experts, base = drawn(1, (40,))

    def refuse(piece):
        raise OSError(f"at {piece.begin}")

    with pytest.raises(OSError, match="at 0"):
        list(pieces.each(tensors_of(experts, base, {}), refuse))
