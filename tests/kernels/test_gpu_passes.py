"""The passes on device tensors against the reference.

On a device where there is one; and on the CPU where there is a C++ compiler, with the library's own kernels, run thread
by thread by tests/cpp/cuda_emulation.hpp.
"""

import contextlib
import ctypes
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from minerua.errors import CoreUnavailable, KernelError
from minerua.kernels import cuda, cuda_checks, cuda_passes, cuda_steps, cuda_tables, passes, reference_passes
from minerua.kernels.arrays import Described, on_host, restored
from minerua.kernels.cuda_passes import Group, Weights
from minerua.kernels.sources import ALL_KEPT, NONE_KEPT, Mask, Source, Target, Threshold

REPOSITORY = Path(__file__).parents[2]
FOLDERS = [REPOSITORY / folder for folder in ("tests/cpp/emulated", "tests/cpp", "csrc")]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
HAS_DEVICE = torch.cuda.is_available() and not cuda.absence_reason()
NAMES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """The library's passes, compiled for the CPU; afterwards no check of the emulation may have failed."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not (REPOSITORY / "csrc").exists():
        pytest.skip("needs a C++ compiler and the sources of the core")
    path = tmp_path_factory.mktemp("emulated") / "libminerua_emulated.so"
    includes = [f"-I{folder}" for folder in FOLDERS]
    source = str(FOLDERS[0] / "library.cpp")
    subprocess.run([compiler, *FLAGS, *includes, source, "-o", str(path)], check=True, capture_output=True)
    library = ctypes.CDLL(str(path))
    cuda.declare(library, cuda.PASS_SIGNATURES)
    assert library.minerua_cuda_abi() == cuda.ABI
    yield library
    assert library.minerua_emulation_failures() == 0


@pytest.fixture(
    params=[
        "emulated",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not HAS_DEVICE, reason="needs a CUDA device that torch can use, and libminerua_cuda.so"
                ),
            ],
        ),
    ]
)
def device(request, monkeypatch):
    """The device that tensors go to; `cpu` with the emulated library."""
    if request.param == "cuda":
        return torch.device("cuda")
    library = request.getfixturevalue("emulated_library")
    monkeypatch.setattr(cuda, "library", lambda: library)
    monkeypatch.setattr(cuda, "on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "queued", lambda numbers, device: torch.from_numpy(numbers.copy()))
    monkeypatch.setattr(cuda_checks, "is_resident", lambda value: isinstance(value, torch.Tensor))
    return torch.device("cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def drawn(rng, shape, name="float32", *, coarse=False):
    """Random numbers of a dtype; coarse ones have many ties and zeros."""
    numbers = rng.standard_normal(shape).astype(np.float32)
    numbers = np.round(numbers * 4) / 4 if coarse else numbers
    return numbers.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def sent(array, device, offset=0):
    """The array as a tensor on the device, `offset` elements behind an aligned address."""
    like = torch.empty(0)
    spare = np.zeros(offset, array.dtype)
    return restored(np.concatenate([spare, array.reshape(-1)]), like).to(device)[offset:].view(array.shape)


def moved(source, device, offset=0):
    factors = [None if part is None else sent(part, device) for part in (source.left, source.right)]
    return Source(sent(source.array, device, offset), *factors)


def moved_group(sources, base, device, offset=0):
    own = [moved(source, device, offset) for source in sources]
    return Group(own, None if base is None else moved(base, device, offset))


def random_case(rng, shape, count, has_base, *, coarse=False):
    sources = [Source(drawn(rng, shape, NAMES[k % 3], coarse=coarse)) for k in range(count)]
    return sources, Source(drawn(rng, shape, "bfloat16", coarse=coarse)) if has_base else None


def like(shape, name, device, offset=0):
    return torch.full((int(np.prod(shape)) + offset,), 7, dtype=getattr(torch, name), device=device)[offset:]


def reference_target(size, name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return Target(dtype, np.empty(size, dtype))


def same_bits(tensor, array):
    got = on_host(tensor)
    return np.array_equal(got.reshape(-1).view(np.uint8), np.ascontiguousarray(array).reshape(-1).view(np.uint8))


SHAPES = [(0,), (1,), (7,), (8,), (64, 3), (2049,), (33, 65)]


# ── sums of tensors ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_combine_has_the_bits_of_the_reference_for_many_tensors_at_once(device, rng, count, has_base):
    cases = [random_case(rng, shape, count, has_base) for shape in SHAPES]
    coefficients = [rng.standard_normal((1, count)).astype(np.float32) for _ in cases]
    for name in NAMES:
        for offset in (0, 1):
            groups = [moved_group(*case, device, offset) for case in cases]
            outs = [like(shape, name, device, offset) for shape in SHAPES]
            counts = cuda_passes.combine_many(groups, coefficients, outs=outs)
            for case, c, out, got, shape in zip(cases, coefficients, outs, counts, SHAPES, strict=True):
                target = reference_target(int(np.prod(shape)), name)
                expected = reference_passes.combine(case[0], c, base=case[1], target=target)
                assert same_bits(out, target.array)
                assert got.tolist() == expected.tolist()


def test_combine_takes_coefficients_for_every_row_and_low_rank_factors(device, rng):
    left, right = drawn(rng, (31, 3)), drawn(rng, (3, 13))
    sources = [Source(drawn(rng, (31, 13), "float16"), left, right), Source(drawn(rng, (31, 13)))]
    base = Source(drawn(rng, (31, 13), "bfloat16"), right.T[:31].copy().repeat(3, 0)[:31].copy(), right)
    coefficients = rng.standard_normal((31, 2)).astype(np.float32)
    out, target = like((31, 13), "float32", device), reference_target(31 * 13, "float32")
    reference_passes.combine(sources, coefficients, base=base, target=target)
    group = moved_group(sources, base, device)
    cuda_passes.combine(group.sources, coefficients, base=group.base, target=Target(np.dtype("float32"), out))
    assert same_bits(out, target.array)


def test_combine_counts_what_is_not_finite(device):
    sources = [Source(np.array([1, np.inf, 3e4, 1], np.float32)), Source(np.array([np.nan, 1, 3e4, 1], np.float32))]
    base = Source(np.array([0, 0, 0, -np.inf], np.float16))
    group, out = moved_group(sources, base, device), like((4,), "float16", device)
    counts = cuda_passes.combine(group.sources, [2, 2], base=group.base, target=Target(np.dtype("float16"), out))
    target = reference_target(4, "float16")
    assert counts.tolist() == [1, 1, 1, 4]
    assert reference_passes.combine(sources, np.full((1, 2), 2, np.float32), base=base, target=target).tolist() == [
        *(1, 1, 1, 4)
    ]


@pytest.mark.parametrize("has_base", [False, True])
def test_gram_is_the_reference_to_rounding_and_the_same_beside_other_tensors(device, rng, has_base):
    shapes, counts, rows = [(300,), (64, 33), (5000,), (0,)], [3, 6, 9, 2], [1, 64, 4, 1]
    cases = [random_case(rng, shape, count, has_base) for shape, count in zip(shapes, counts, strict=True)]
    groups = [moved_group(*case, device) for case in cases]
    together = cuda_passes.gram_many(groups, rows=rows)
    for case, group, row, got in zip(cases, groups, rows, together, strict=True):
        expected = reference_passes.gram(case[0], base=case[1], rows=row)
        np.testing.assert_allclose(on_host(got), expected, rtol=1e-12, atol=1e-12)
        alone = cuda_passes.gram(group.sources, base=group.base, rows=row)
        assert same_bits(got, alone)
        assert np.array_equal(alone, alone.transpose(0, 2, 1))


def test_load_returns_a_range_of_what_is_meant(device, rng):
    source = Source(drawn(rng, (9, 7), "float16"), drawn(rng, (9, 2)), drawn(rng, (2, 7)))
    got = cuda_passes.load(moved(source, device), 5, 40)
    assert same_bits(torch.from_numpy(got), reference_passes.load(source, 5, 40))


# ── the largest numbers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("has_base", [False, True])
def test_histograms_count_as_the_reference(device, rng, has_base, coarse):
    cases = [random_case(rng, shape, 3, has_base, coarse=coarse) for shape in [(5003,), (40, 70)]]
    cases[0][0][0].array[:9] = [np.inf, 0, -0.0, 1e30, 5, 3e38, 2, 1e-40, -2]
    groups = [moved_group(*case, device) for case in cases]
    upper = cuda_passes.histogram_many(groups)
    prefixes = [[int(np.argmax(on_host(row))) for row in rows] for rows in upper]
    lower = cuda_passes.histogram_many(groups, prefixes=prefixes)
    for case, group, up, low, own in zip(cases, groups, upper, lower, prefixes, strict=True):
        assert np.array_equal(on_host(up), reference_passes.histogram(case[0], base=case[1]))
        expected = reference_passes.histogram(case[0], base=case[1], prefixes=own)
        assert np.array_equal(on_host(low), expected)
        assert np.array_equal(cuda_passes.histogram(group.sources, base=group.base, prefixes=own), expected)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("has_base", [False, True])
def test_select_largest_is_exact_ties_included(device, rng, monkeypatch, has_base, coarse):
    monkeypatch.setattr(cuda_steps, "SELECTED_TOGETHER", 5)  # so that there are several batches
    cases = [random_case(rng, shape, 2, has_base, coarse=coarse) for shape in [(1,), (0,), (700,), (4099,)]]
    counts = [[0, 1], [0, 0], [350, 700], [1, 4098]]
    groups = [moved_group(*case, device) for case in cases]
    found = cuda_passes.select_largest_many(groups, counts)
    for case, own, got in zip(cases, counts, found, strict=True):
        assert got == reference_passes.select_largest(case[0], own, base=case[1])
    alone = cuda_passes.select_largest(groups[3].sources, counts[3], base=groups[3].base)
    assert alone == found[3]


def test_nan_is_larger_than_everything(device):
    source = Source(np.array([1, np.nan, np.inf, 2], np.float32))
    group = moved_group([source], None, device)
    (limit,) = cuda_passes.select_largest(group.sources, [1], base=None)
    assert limit.key > 0x7F800000
    assert limit.equal == 1


def test_count_equal_counts_as_the_reference(device, rng):
    cases = [random_case(rng, shape, 3, True, coarse=True) for shape in [(5003,), (0,), (40, 70)]]
    keys = [[0, 0x3F800000, 0x3E800000], [0, 1, 2], [0x3F000000, 0, 77]]
    groups = [moved_group(*case, device) for case in cases]
    for case, own, got in zip(cases, keys, cuda_passes.count_equal_many(groups, keys), strict=True):
        assert got.tolist() == reference_passes.count_equal(case[0], base=case[1], keys=own).tolist()
    assert cuda_passes.count_equal(groups[1].sources, base=groups[1].base, keys=keys[1]).tolist() == [0, 0, 0]


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def masks_of(sources, base, seed=11):
    """Masks of every kind, fitted to the sources; of equal numbers some are kept, some not."""
    size = sources[0].size
    top = reference_passes.select_largest(sources, [size * 2 // 3] * len(sources), base=base)
    but = reference_passes.select_largest(sources, [size // 9] * len(sources), base=base)
    columns = max(1, sources[0].shape[-1])
    kinds = [
        Mask(top=top[0], but=but[0]),
        Mask(keep=0.4, inverse=True, model=3, tensor=1 << 31, seed=(seed << 40) + 5),
        Mask(top=top[2 % len(top)], keep=0.7, model=2, tensor=9, seed=seed),
        Mask(keep=0.5, spread=0.3, columns=columns, inverse=True, seed=seed),
        Mask(top=ALL_KEPT, but=NONE_KEPT, keep=1.0, inverse=True),
        Mask(keep=0.0, inverse=True),
    ]
    return [kinds[k % len(kinds)] for k in range(len(sources))]


ELECTIONS = [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize(("votes", "shares"), ELECTIONS)
@pytest.mark.parametrize("count", [1, 3, 4, 8, 10])
def test_merge_masked_has_the_bits_of_the_reference(device, rng, count, votes, shares):
    has_base = count != 3
    shapes = [(1,), (0,), (63,), (2100,), (40, 70)]
    cases = [random_case(rng, shape, count, has_base, coarse=True) for shape in shapes]
    masks = [masks_of(*case) if case[0][0].size else [Mask()] * count for case in cases]
    weights = [
        Weights(
            rng.standard_normal(count),
            rng.standard_normal(count) if votes else None,
            rng.standard_normal(count) if shares else None,
            scale=0.9,
        )
        for _ in cases
    ]
    groups = [moved_group(*case, device, offset) for offset, case in enumerate(cases)]
    name = NAMES[count % 3]
    outs = [like(shape, name, device) for shape in shapes]
    counts = cuda_passes.merge_masked_many(groups, masks, weights, outs=outs)
    for case, own, how, out, got in zip(cases, masks, weights, outs, counts, strict=True):
        target = reference_target(case[0][0].size, name)
        expected = reference_passes.merge_masked(
            case[0],
            own,
            base=case[1],
            factors=how.factors,
            votes=how.votes,
            shares=how.shares,
            scale=how.scale,
            target=target,
        )
        assert same_bits(out, target.array)
        assert got.tolist() == expected.tolist()


def test_masks_keep_the_first_of_equal_numbers_across_pieces(device, monkeypatch):
    monkeypatch.setattr(cuda_tables, "PIECE_ELEMENTS", 64)
    source = Source(np.ones(1000, np.float32))
    group = moved_group([source], None, device)
    for equal in (0, 1, 63, 64, 65, 500, 999, 1000, 1 << 62):
        out = like((1000,), "float32", device)
        cuda_passes.merge_masked(
            group.sources,
            [Mask(top=Threshold(0x3F800000, equal))],
            base=None,
            factors=[1],
            votes=None,
            shares=None,
            scale=1,
            target=Target(np.dtype("float32"), out),
        )
        kept = min(equal, 1000)
        assert on_host(out).tolist() == [1] * kept + [0] * (1000 - kept)


def test_a_budget_of_equal_numbers_beyond_what_there_is_keeps_them_all(device):
    source = Source(np.tile(np.array([1, 0.5, 0.25], np.float32), 50))
    group, kept = moved_group([source], None, device), []
    for equal in (49, 50, 51):
        mask = Mask(top=Threshold(0x3F000000, equal), but=Threshold(0x3F800000, 3))
        kept.append(cuda_passes.masked_sums(group.sources, [mask], base=None)[0, 1])
    assert kept == [47 + 49 * 0.5, 47 + 50 * 0.5, 47 + 50 * 0.5]


def test_masked_sums_are_those_of_the_reference_to_rounding(device, rng):
    cases = [random_case(rng, shape, 6, has_base, coarse=True) for shape in [(63,), (40, 70)] for has_base in (0, 1)]
    masks = [masks_of(*case) for case in cases]
    groups = [moved_group(*case, device) for case in cases]
    together = cuda_passes.masked_sums_many(groups, masks)
    for case, own, group, got in zip(cases, masks, groups, together, strict=True):
        expected = reference_passes.masked_sums(case[0], own, base=case[1])
        np.testing.assert_allclose(on_host(got), expected, rtol=1e-12)
        assert same_bits(got, cuda_passes.masked_sums(group.sources, own, base=group.base))


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_door_sends_tensors_of_a_device_to_their_twins(device, monkeypatch):
    if device.type == "cpu":
        monkeypatch.setattr(passes, "described", lambda array: Described("torch", device="cuda:0"))
    source, out = resident(device, 2, 2), like((2, 2), "float16", device)
    assert passes.load(source, 1, 3).tolist() == [1, 1]
    assert passes.combine([source], [3], base=None, target=Target(np.dtype("float16"), out)).tolist() == [0, 0, 0]
    assert on_host(out).tolist() == [3, 3, 3, 3]
    assert passes.gram([source], base=None).tolist() == [[[4]]]
    assert passes.histogram([source], base=None)[0, 0x3F80] == 4
    assert passes.count_equal([source], base=None, keys=[0x3F800000]).tolist() == [4]
    (limit,) = passes.select_largest([source], [3], base=None)
    assert passes.masked_sums([source], [Mask(top=limit)], base=None).tolist() == [[4, 3]]
    how = {"factors": [2], "votes": [1], "shares": [1], "scale": 1, "target": Target(np.dtype("float16"), out)}
    passes.merge_masked([source], [Mask(but=limit)], base=None, **how)
    assert on_host(out).tolist() == [0, 0, 0, 2]


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def refusal(function, *arguments, **named):
    with pytest.raises(KernelError) as error:
        function(*arguments, **named)
    return str(error.value)


def resident(device, *shape, dtype=torch.float32):
    return Source(torch.ones(shape, dtype=dtype, device=device))


def test_all_faults_of_all_groups_are_told_at_once(device):
    good = resident(device, 4, 3)
    wide = resident(device, 3, 4)
    outs = [torch.empty(12, device=device), torch.empty(11, device=device)]
    message = refusal(cuda_passes.combine_many, [Group([good]), Group([good, wide])], [[1, 2], [1]], outs=outs)
    assert "combine cannot take these arguments (2 faults):" in message
    assert "group 0: coefficients are of shape (2,), must have (1,), or (R, 1) for R rows" in message
    assert "group 1: source 1 has shape (3, 4), source 0 has (4, 3); they must be alike" in message
    message = refusal(cuda_passes.combine_many, [Group([good]), Group([good])], [[1], [1]], outs=outs)
    assert "group 1: the tensor for the result has 11 elements, the sources have 12; make it as large" in message


def factors_of(device, left, right):
    stored = torch.ones(4, 3, device=device)
    return Source(stored, None if left is None else left.to(device), None if right is None else right.to(device))


SOURCE_FAULTS = [
    (lambda device: Source(np.ones(3, np.float32)), "source 0 is a ndarray; pass a Source of a CUDA tensor"),
    (
        lambda device: resident(device, 3, dtype=torch.int8),
        "source 0 has dtype torch.int8; convert it to one of float32",
    ),
    (
        lambda device: Source(torch.ones(4, 3, device=device).T),
        "source 0 is not contiguous; copy it with contiguous()",
    ),
    (
        lambda device: Source(torch.ones(4, 3, device=device), rows=np.zeros(1, np.int64)),
        "source 0 chooses rows, which passes on a device cannot; choose them with torch.index_select first",
    ),
    (
        lambda device: factors_of(device, torch.ones(4, 2), None),
        "source 0 has one low-rank factor without the other; pass left and right, or neither",
    ),
    (
        lambda device: factors_of(device, torch.ones(4, 2), torch.ones(2, 4)),
        "source 0's right is torch.float32 of shape (2, 4); a factor on a device must be contiguous float32 of shape (",
    ),
    (
        lambda device: Source(torch.ones(4, 3, device=device), np.ones((4, 1)), np.ones((1, 3))),
        ", where the stored tensor is; move it there",
    ),
]


@pytest.mark.parametrize(("make", "expected"), SOURCE_FAULTS)
def test_sources_that_cannot_be_taken_are_refused(device, make, expected):
    assert expected in refusal(cuda_passes.gram_many, [Group([make(device)])])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("gram_many", {"rows": [5]}, "12 elements cannot be cut into 5 rows of equal length"),
        ("gram_many", {"rows": [1, 1]}, "there are 2 rows for 1 groups; pass one for each"),
        ("histogram_many", {"prefixes": [[1 << 15]]}, "prefixes are [32768], must be 1 whole numbers from 0 to 32767"),
        ("count_equal_many", {"keys": [[-1]]}, "keys are [-1], must be 1 whole numbers"),
        ("select_largest_many", {"counts": [[13]]}, "counts are [13], must be 1 whole numbers from 0 to 12"),
        ("masked_sums_many", {"masks": [[]]}, "there are 0 masks for 1 sources; pass one for each"),
    ],
)
def test_other_arguments_that_cannot_be_taken_are_refused(device, name, arguments, expected):
    assert expected in refusal(getattr(cuda_passes, name), [Group([resident(device, 4, 3)])], **arguments)


def test_nothing_to_do_is_refused(device):
    assert "there are 0 groups; pass at least one" in refusal(cuda_passes.gram_many, [])
    some = Group([resident(device, 3)])
    message = refusal(cuda_passes.gram_many, [Group([]), some])
    assert "group 0: there are 0 sources; pass at least one" in message


def test_merges_refuse_shares_without_votes_and_results_on_the_host(device):
    group, weights = Group([resident(device, 3)]), Weights([1, 2], shares=[1])
    message = refusal(cuda_passes.merge_masked_many, [group], [[Mask()]], [weights], outs=[np.ones(3, np.float32)])
    assert "factors are [1, 2], must be 1 numbers" in message
    assert "shares are given without votes; pass votes too, or shares=None" in message
    assert "the result is to go to a ndarray; pass a CUDA tensor" in message


def test_a_tensor_on_another_device_is_refused():
    elsewhere = cuda_checks.tensor_faults("source 1", torch.ones(3), torch.device("meta"))
    assert list(elsewhere) == ["source 1 lies on cpu, the first source on meta; move it there"]


def test_tensors_of_the_host_are_refused():
    message = refusal(cuda_passes.gram_many, [Group([Source(torch.ones(3))])])
    assert "source 0 is a cpu tensor; pass a Source of a CUDA tensor" in message


@pytest.mark.skipif(bool(cuda.absence_reason()), reason=f"needs libminerua_cuda.so: {cuda.absence_reason()}")
def test_the_library_refuses_wrong_arguments_before_it_touches_a_device():
    crowded = cuda.Pass(16, 16, 16, 1 << 31, 2, 0)
    for name, arguments, expected in [
        ("gram", (ctypes.byref(crowded), None), "gram: a pointer is null"),
        ("combine", (ctypes.byref(crowded), 16, 16), "a pass over 2147483648 blocks; fewer than 2^31 can be queued"),
        ("histogram", (ctypes.byref(cuda.Pass()), None, 16), "histogram: 0 pieces of up to 0 sources"),
    ]:
        with pytest.raises(CoreUnavailable) as error:
            cuda.call_pass(f"minerua_cuda_{name}", *arguments, None)
        assert str(error.value) == f"minerua_cuda_{name} failed: {expected}"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tables_are_laid_out_as_the_library_has_them(emulated_library):
    sizes = (ctypes.c_int64 * 8)()
    emulated_library.minerua_emulation_layout(sizes)
    names = ("SOURCE", "TENSOR", "PIECE", "SELECTION", "PLACE", "MASK", "SUM")
    tables = [getattr(cuda_tables, name).itemsize for name in names]
    assert list(sizes) == [*tables, ctypes.sizeof(cuda.Pass)]


def test_pieces_cover_every_row_once_and_in_order():
    pieces = cuda_tables.pieces_of([10, 0, 12], [2, 1, 3], 3)
    assert pieces["begin"].tolist() == [0, 3, 5, 8, 0, 3, 4, 7, 8, 11]
    assert pieces["count"].tolist() == [3, 2, 3, 2, 3, 1, 3, 1, 3, 1]
    assert pieces["tensor"].tolist() == [0] * 4 + [2] * 6
    assert pieces["at"].tolist() == [0, 0, 1, 1, 3, 3, 4, 4, 5, 5]


def test_pieces_of_histograms_grow_with_the_model():
    group = Group([Source(torch.ones(8, device="meta"))])
    assert cuda_tables.balanced_length([group]) == 1 << 17
    assert cuda_tables.balanced_length([Group([Source(torch.empty(1 << 29, device="meta"))])]) == 1 << 19
    assert cuda_tables.balanced_length([Group([Source(torch.empty(1 << 34, device="meta"))])]) == 1 << 20
