"""What the passes refuse, and in which words."""

import numpy as np
import pytest

from minerua.errors import KernelError
from minerua.kernels import passes
from minerua.kernels.passes import Mask, Source, Target

FLOAT = np.dtype(np.float32)
ONES = np.ones((2, 3), np.float32)
ONE = Source(ONES)
OUT = Target(FLOAT, np.empty((2, 3), np.float32))
READ_ONLY = np.ones((2, 3), np.float32)
READ_ONLY.setflags(write=False)


def refusal(operation, *args, **kwargs):
    with pytest.raises(KernelError) as caught:
        operation(*args, **kwargs)
    return str(caught.value) + "\n"


SOURCE_FAULTS = [
    ([], "there are 0 sources; pass at least one"),
    ([ONES], "source 0 is a ndarray; pass a Source of a numpy array"),
    ([ONE, Source([1.0])], "source 1 is a Source; pass a Source of a numpy array"),
    (
        [Source(ONES.astype(int))],
        "source 0 has dtype int64; convert it to one of float32, float16, bfloat16, in native byte order",
    ),
    ([Source(ONES.astype(">f4"))], "source 0 has dtype >f4; convert it to one of float32"),
    ([Source(ONES.T)], "source 0 is not contiguous in row-major order; copy it with numpy.ascontiguousarray"),
    ([ONE, Source(ONES.reshape(3, 2))], "source 1 has shape (3, 2), source 0 has (2, 3); they must be alike"),
    ([Source(ONES[0], rows=np.zeros(1, np.int64))], "source 0 has rows to choose, and 1 dimensions; it needs 2"),
    ([Source(ONES, left=ONES)], "source 0 has one low-rank factor without the other; pass left and right, or neither"),
    (
        [Source(ONES, left=ONES, right=ONES)],
        "source 0's left is float32 of shape (2, 3); it must be contiguous float32 of shape (2, 2)",
    ),
    (
        [Source(ONES, left=np.ones((3, 2), np.float32).T, right=np.ones((3, 3)))],
        "source 0's left is float32 of shape (2, 3), not contiguous; it must be contiguous float32 of shape (2, 3)",
    ),
    (
        [Source(ONES, left=ONES, right=np.ones((3, 3)))],
        "source 0's right is float64 of shape (3, 3); it must be contiguous float32 of shape (3, 3)",
    ),
    (
        [Source(ONES, rows=np.zeros(2, np.int32))],
        "source 0's rows is int32 of shape (2,); it must be contiguous int64 of shape (2,)",
    ),
    (
        [Source(ONES, rows=np.array([2, -1]), extra=ONES[:, :2].copy())],
        "source 0's extra is float32 of shape (2, 2); it must be contiguous float32 of shape (2, 3)",
    ),
    (
        [Source(ONES, rows=np.array([2, -2]), extra=ONES[:1])],
        "source 0 takes rows -2 to 2, of 2 stored and 1 extra ones (−1 is the first extra)",
    ),
]


@pytest.mark.parametrize(("sources", "sentence"), SOURCE_FAULTS, ids=[f[1][:50] for f in SOURCE_FAULTS])
def test_sources_that_cannot_be_taken_are_named(sources, sentence):
    assert f"  - {sentence}" in refusal(passes.gram, sources, base=None)
    if len(sources) == 1:
        assert sentence.replace("source 0", "the base") in refusal(passes.gram, [ONE], base=sources[0])


TARGET_FAULTS = [
    (Target(np.dtype(int), np.ones(6, int)), "the target's dtype is int64; use one of float32, float16, bfloat16"),
    (
        Target(FLOAT),
        "the target is file -1 at byte 0; pass an array, or an open file descriptor and an offset from 0 on",
    ),
    (Target(FLOAT, file=1, offset=-4), "the target is file 1 at byte -4; pass an array, or an open file descriptor"),
    (Target(FLOAT, [1.0]), "the target's array is a list; pass a numpy array"),
    (
        Target(FLOAT, np.ones(5)),
        "the target's array is float64 with 5 elements; it must be float32 with 6",
    ),
    (Target(FLOAT, READ_ONLY), "the target's array is read-only, or not contiguous; pass one that can be filled in"),
]


@pytest.mark.parametrize(("target", "sentence"), TARGET_FAULTS, ids=[f[1][:50] for f in TARGET_FAULTS])
def test_targets_that_cannot_be_filled_are_named(target, sentence):
    assert f"  - {sentence}" in refusal(passes.combine, [ONE], [1.0], base=None, target=target)


MASK_FAULTS = [
    ([], "there are 0 masks for 1 sources; pass one for each"),
    (
        [Mask(top=(1 << 32, 0))],
        "mask 0 has top=(4294967296, 0); a key is at most 2^31 and a number of equal ones at most 2^62",
    ),
    ([Mask(but=(0, -1))], "mask 0 has but=(0, -1); a key is at most 2^31"),
    ([Mask(keep=0.5, spread=0.1, columns=4)], "mask 0 has rows of 4 elements, the tensor has 6; use the length"),
    (
        [Mask(model=1 << 32)],
        "mask 0 has model 4294967296, tensor 0, seed 0; they must be at least 0, and below 2^32, 2^32 and 2^64",
    ),
    ([Mask(keep=0.5, drawn=np.zeros(3, np.uint64))], "mask 0 has a drawn that does not belong to it; pass what draw"),
    ([Mask(drawn=np.zeros(2, np.uint64))], "mask 0 has a drawn that does not belong to it"),
    ([Mask(seed=-1)], "mask 0 has model 0, tensor 0, seed -1; they must be at least 0"),
    (
        [Mask(keep=0.5, spread=0.1, columns=2), Mask(keep=0.5, spread=0.1, columns=3)],
        "masks with a spread have rows of [2, 3] elements; use one length for all",
    ),
]


@pytest.mark.parametrize(("masks", "sentence"), MASK_FAULTS, ids=[f[1][:50] for f in MASK_FAULTS])
def test_masks_that_cannot_be_taken_are_named(masks, sentence):
    assert f"  - {sentence}" in refusal(passes.masked_sums, [ONE] * max(1, len(masks)), masks, base=None)


NUMBER_FAULTS = [
    (
        (passes.combine, [ONE], "many"),
        {"target": OUT},
        "coefficients are no numbers, must have (1,), or (R, 1) for R rows",
    ),
    ((passes.combine, [ONE], [1.0, 2.0]), {"target": OUT}, "coefficients are of shape (2,), must have (1,), or (R, 1)"),
    (
        (passes.combine, [ONE], [[1.0]] * 4),
        {"target": OUT},
        "6 elements cannot be cut into 4 rows of equal length; use a divisor",
    ),
    ((passes.gram, [ONE]), {"rows": 0}, "6 elements cannot be cut into 0 rows of equal length; use a divisor"),
    (
        (passes.select_largest, [ONE], [7]),
        {},
        "counts are [7], must be 1 whole numbers from 0 to 6, one for each source",
    ),
    (
        (passes.select_largest, [ONE], [0.5]),
        {},
        "counts are [0.5], must be 1 whole numbers from 0 to 6, one for each source",
    ),
    ((passes.histogram, [ONE]), {"prefixes": [1 << 15]}, "prefixes are [32768], must be 1 whole numbers from 0 to"),
    ((passes.count_equal, [ONE]), {"keys": []}, "keys are [], must be 1 whole numbers from 0 to 2147483647"),
]


@pytest.mark.parametrize(("call", "more", "sentence"), NUMBER_FAULTS, ids=[f[2][:50] for f in NUMBER_FAULTS])
def test_numbers_that_do_not_fit_are_shown(call, more, sentence):
    operation, *arguments = call
    assert f"  - {sentence}" in refusal(operation, *arguments, base=None, **more)


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (3, 2), (0, 7)])
def test_elements_outside_the_source_are_not_loaded(begin, end):
    text = refusal(passes.load, ONE, begin, end)
    assert f"elements {begin} to {end} were asked for; the source has 6" in text


def test_all_faults_of_a_merge_are_reported_at_once():
    text = refusal(
        passes.merge_masked,
        [ONE, ONE],
        [Mask()],
        base=Source(ONES[:1]),
        factors=[1.0],
        votes=None,
        shares=[1.0, "x"],
        scale="one",
        target=Target(FLOAT),
    )
    assert text.startswith("merge_masked cannot take these arguments (7 faults):\n")
    assert "  - factors are [1.0], must be 2 numbers\n" in text
    assert "  - scale are ['one'], must be 1 numbers\n" in text
    assert "  - shares are given without votes; pass votes too, or shares=None\n" in text


def test_long_values_are_cut_in_messages():
    text = refusal(passes.select_largest, [ONE], list(range(100)), base=None)
    assert "counts are [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,... must be"[:60] in text
