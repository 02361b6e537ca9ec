"""The passes over tensors: the compiled core against the reference, bit for bit, and the laws of masks."""

import os
import resource
import signal
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import KernelError
from minerua.kernels import passes, reference_passes
from minerua.kernels.passes import ALL_KEPT, NONE_KEPT, Mask, Source, Target, Threshold

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
CHUNK = 1 << 16
SIZES = [0, 1, 15, 16, 17, 63, 64, 65, 129, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]
TWINS = [passes, reference_passes]


def drawn(rng, shape, dtype, *, steps=0.0):
    """Draws normal numbers; with steps they are multiples of it, so that many are equal."""
    values = rng.standard_normal(shape)
    return (np.round(values / steps) * steps if steps else values).astype(dtype)


def alike(rng, size, count, *, has_base, steps=0.0):
    """Draws a base and sources, each with a type of its own; a few numbers are not finite."""
    base = drawn(rng, size, DTYPES[size % 3], steps=steps)
    sources = []
    for k in range(count):
        x = (base.astype(np.float32) + drawn(rng, size, np.float32, steps=steps)).astype(DTYPES[(size + k) % 3])
        if size > 20 and k % 2:
            x[rng.integers(0, size, 3)] = [np.nan, np.inf, -np.inf]
        sources.append(Source(x))
    return sources, Source(base) if has_base else None


def assert_same_bits(left, right):
    assert left.dtype == right.dtype
    wide, other = left.astype(np.float32), right.astype(np.float32)
    nan = np.isnan(other)
    np.testing.assert_array_equal(np.isnan(wide), nan)
    np.testing.assert_array_equal(wide[~nan].view(np.uint32), other[~nan].view(np.uint32))


def written(operation, dtype, size, *arguments, **named):
    """Calls the twins of an operation that writes; checks counts and bits, and returns what was written."""
    out = [np.full(size, 7, dtype) for _ in TWINS]
    with np.errstate(all="ignore"):
        counts = [
            getattr(twin, operation)(*arguments, target=Target(o.dtype, o), **named)
            for twin, o in zip(TWINS, out, strict=True)
        ]
    np.testing.assert_array_equal(*counts)
    assert_same_bits(*out)
    return out[0]


def settled(sources, *, votes=None, shares=None):
    """Returns the numbers of a merge."""
    return {"factors": [0.5 + k for k in range(len(sources))], "votes": votes, "shares": shares, "scale": 0.7}


def merged(sources, masks, base, target, **numbers):
    """Merges by the compiled core."""
    return passes.merge_masked(sources, masks, base=base, target=target, **settled(sources, **numbers))


def combined(sources, masks, base, target):
    """Sums by the compiled core; there are no masks."""
    return passes.combine(sources, [0.3] * len(sources), base=base, target=target)


def some_masks(rng, sources, base, columns=1):
    """Draws a mask of another kind for each source."""
    counts = rng.integers(0, sources[0].size + 1, len(sources))
    top = passes.select_largest(sources, counts, base=base)
    but = passes.select_largest(sources, counts // 3, base=base)
    spread = 0.4 if columns > 1 else 0.0
    kinds = [
        {"top": top[0]},
        {"keep": 0.6, "inverse": True, "spread": spread, "columns": columns},
        {"top": ALL_KEPT, "but": NONE_KEPT, "keep": 1.0},
        {"keep": 0.3, "top": NONE_KEPT},
        {"keep": 0.0, "inverse": True},
        {"keep": 0.25},
        {},
    ]
    masks = []
    for k in range(len(sources)):
        kind = dict(kinds[int(rng.integers(len(kinds)))])
        if rng.random() < 0.5:
            kind |= {"top": top[k], "but": but[k]}
        masks.append(Mask(**kind, model=k, tensor=2**32 - 1, seed=int(rng.integers(2**63)) * 2 + 1))
    return masks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_base", [False, True])
def test_compiled_sums_equal_the_reference_bit_for_bit(rng, dtype, size, has_base):
    for count in (1, 2, 5):
        sources, base = alike(rng, size, count, has_base=has_base)
        numbers = rng.standard_normal(count)
        written("combine", dtype, size, sources, np.float32(numbers), base=base)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (7, 64), (300, 300), (2, 3 * CHUNK), (1, 9), (5, 1)])
def test_coefficients_may_differ_from_row_to_row(rng, dtype, rows, columns):
    sources, base = alike(rng, rows * columns, 3, has_base=True)
    numbers = rng.standard_normal((rows, 3)).astype(np.float32)
    written("combine", dtype, rows * columns, sources, numbers, base=base)
    products = [twin.gram(sources[:1], base=base, rows=rows) for twin in TWINS]
    np.testing.assert_allclose(*products, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
def test_inner_products_equal_the_reference_up_to_the_rounding_of_float64(rng, size):
    base, *arrays = [drawn(rng, size, dtype) for dtype in [*DTYPES, *DTYPES]]
    for count in (1, 4, 5):
        sources = [Source(array) for array in arrays[:count]]
        got, expected = [twin.gram(sources, base=Source(base)) for twin in TWINS]
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-9)
        np.testing.assert_array_equal(got, got.transpose(0, 2, 1))


def built_sources(rng, rows, columns, dtype):
    """Makes a source of every kind, all of one shape."""
    left, right = drawn(rng, (rows, 3), np.float32), drawn(rng, (3, columns), np.float32)
    stored, extra = drawn(rng, (rows + 2, columns), dtype), drawn(rng, (4, columns), np.float32)
    picked = rng.integers(-4, rows + 2, rows)
    return [
        Source(drawn(rng, (rows, columns), dtype)),
        Source(drawn(rng, (rows, columns), dtype), left=left, right=right),
        Source(stored, rows=picked, extra=extra),
        Source(stored, rows=abs(picked) % rows, left=left, right=right),
        Source(drawn(rng, (rows, columns), dtype), left=left[:, :0].copy(), right=right[:0]),
    ]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 17), (40, 64), (5, 4099), (700, 129), (2, CHUNK + 3)])
def test_factors_and_chosen_rows_are_what_the_reference_says(rng, dtype, rows, columns):
    sources = built_sources(rng, rows, columns, dtype)
    size = rows * columns
    for begin, end in ((0, size), (size // 3, size - size // 5), (size, size)):
        for source in sources:
            assert_same_bits(*[twin.load(source, begin, end) for twin in TWINS])
    for base in (None, *sources):
        numbers = np.float32(rng.standard_normal(len(sources)))
        written("combine", dtype, size, sources, numbers, base=base)
    masks = some_masks(rng, sources, sources[1], columns=columns)
    written("merge_masked", dtype, size, sources, masks, base=sources[1], **settled(sources))


def test_a_source_without_dimensions_is_one_number():
    one = Source(np.array(2.0, np.float32))
    assert passes.load(one, 0, 1) == [2.0]
    out = np.zeros((), np.float32)
    assert list(passes.combine([one], [3.0], base=None, target=Target(out.dtype, out))) == [0, 0, 0]
    assert out == 6.0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [0.0, 0.5])
def test_keys_are_counted_like_in_the_reference(rng, size, steps):
    sources, base = alike(rng, size, 3, has_base=True, steps=steps)
    got, expected = [twin.histogram(sources, base=base) for twin in TWINS]
    np.testing.assert_array_equal(got, expected)
    largest = expected.argmax(axis=1)
    fine = [twin.histogram(sources, base=base, prefixes=largest) for twin in TWINS]
    np.testing.assert_array_equal(*fine)
    keys = (largest << 16) | fine[0].argmax(axis=1)
    np.testing.assert_array_equal(*[twin.count_equal(sources, base=base, keys=keys) for twin in TWINS])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [0.0, 0.5])
def test_the_largest_are_those_of_the_reference(rng, size, steps):
    sources, base = alike(rng, size, 4, has_base=True, steps=steps)
    for counts in ([0, size, size // 2, 1 if size else 0], rng.integers(0, size + 1, 4)):
        assert passes.select_largest(sources, counts, base=base) == (
            reference_passes.select_largest(sources, counts, base=base)
        )


def crowded(rng, size):
    """Tensors on which a sample is of little use."""
    zeros = np.zeros(size, np.float32)
    sparse = np.where(rng.random(size) < 0.6, 0, rng.standard_normal(size)).astype(np.float32)
    wide = np.exp(rng.standard_normal(size) * 10).astype(np.float32)
    ordered = np.linspace(0, 1, size, dtype=np.float32)
    late = np.where(np.arange(size) % 4096 == 4095, 9.0, 1e-30).astype(np.float32)
    return [Source(x) for x in (zeros, sparse, wide, ordered, late)]


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 2e-4, 0.2, 0.4, 0.5, 0.9, 1.0])
def test_a_large_tensor_is_sampled_first_and_still_exact(rng, fraction):
    size = (1 << 19) + 77
    sources = crowded(rng, size)
    counts = [round(fraction * size)] * len(sources)
    found = passes.select_largest(sources, counts, base=None)
    assert found == reference_passes.select_largest(sources, counts, base=None)
    for source, threshold, count in zip(sources, found, counts, strict=True):
        keys = reference_passes.keys_of(source.array)
        assert reference_passes.among_largest(keys, threshold).sum() == count


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [0.0, 0.25])
def test_merges_of_masked_tensors_equal_the_reference_bit_for_bit(rng, dtype, size, steps):
    for count in (1, 3, 5):
        sources, base = alike(rng, size, count, has_base=count != 3, steps=steps)
        masks = some_masks(rng, sources, base)
        numbers = [1.0, 0.5, -0.25, 2.0, 1.0][:count]
        written("merge_masked", dtype, size, sources, masks, base=base, **settled(sources))
        written("merge_masked", dtype, size, sources, masks, base=base, **settled(sources, votes=numbers))
        written(
            "merge_masked", dtype, size, sources, masks, base=base, **settled(sources, votes=numbers, shares=numbers)
        )
        with np.errstate(all="ignore"):
            sums = [twin.masked_sums(sources, masks, base=base) for twin in TWINS]
        np.testing.assert_allclose(*sums, rtol=1e-11, equal_nan=True)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (33, 3), (9, 1023), (7, 1024), (3, 4097), (2, CHUNK + 7)])
@pytest.mark.parametrize("steps", [0.0, 0.5])
def test_probabilities_by_rank_are_those_of_the_reference(rng, rows, columns, steps):
    sources, base = alike(rng, rows * columns, 3, has_base=True, steps=steps)
    masks = [
        Mask(keep=0.5, spread=0.4, columns=columns, inverse=True, seed=1),
        Mask(keep=0.9, spread=0.3, columns=columns, model=1),  # runs from 0.6 to 1.2
        Mask(keep=0.1, spread=-0.3, columns=columns, model=2),  # the smallest magnitudes are the likeliest
    ]
    written("merge_masked", np.float32, rows * columns, sources, masks, base=base, **settled(sources))


def test_more_models_than_registers_hold_take_part_in_an_election(rng):
    sources, base = alike(rng, 1000, 19, has_base=True)
    masks = some_masks(rng, sources, base)
    votes = list(rng.standard_normal(19))
    written("merge_masked", np.float32, 1000, sources, masks, base=base, **settled(sources, votes=votes, shares=votes))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 300),
    count=st.integers(1, 5),
    steps=st.sampled_from([0.0, 0.5]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_masks_of_any_tensors_give_the_bits_of_the_reference(rows, columns, count, steps, dtype, seed):
    rng = np.random.default_rng(seed)
    sources, base = alike(rng, rows * columns, count, has_base=bool(seed % 2), steps=steps)
    masks = some_masks(rng, sources, base, columns=columns)
    votes = None if seed % 3 == 0 else list(rng.standard_normal(count))
    shares = votes if seed % 3 == 1 else None
    written(
        "merge_masked", dtype, rows * columns, sources, masks, base=base, **settled(sources, votes=votes, shares=shares)
    )


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("twin", TWINS, ids=["compiled", "reference"])
def test_a_threshold_keeps_exactly_as_many_as_were_asked_for(rng, twin):
    values = drawn(rng, 3 * CHUNK, np.float32, steps=0.5)  # a chunk has thousands of equal numbers
    out = np.empty_like(values)
    for count in (0, 1, CHUNK, 2 * CHUNK + 17, values.size - 1, values.size):
        (threshold,) = twin.select_largest([Source(values + 3)], [count], base=None)
        twin.merge_masked(
            [Source(values + 3)],
            [Mask(top=threshold)],
            base=None,
            factors=[0.0],
            votes=None,
            shares=None,
            scale=1.0,
            target=Target(out.dtype, out),
        )
        kept = twin.masked_sums([Source(np.ones_like(values))], [Mask(top=(0x3F800000, count))], base=None)
        assert kept[0, 1] == count
        inside, outside = (
            twin.masked_sums([Source(values + 3)], [m], base=None)[0, 1]
            for m in (Mask(top=threshold), Mask(but=threshold))
        )
        assert inside + outside == pytest.approx(np.abs(values + 3).sum(dtype=np.float64), rel=1e-12)


def test_random_masks_keep_their_share_and_depend_on_model_tensor_and_seed():
    ones = np.ones(1 << 18, np.float32)
    kept = []
    for mask in (Mask(keep=0.3), Mask(keep=0.3, model=1), Mask(keep=0.3, tensor=1), Mask(keep=0.3, seed=1)):
        out = np.empty_like(ones)
        merged([Source(ones)], [mask], None, Target(out.dtype, out))
        kept.append(out > 0)
        assert kept[-1].mean() == pytest.approx(0.3, abs=0.005)
    for k in range(1, 4):
        assert (kept[0] & kept[k]).mean() == pytest.approx(0.09, abs=0.005)


KNOWN_WORDS = [  # counter and key in words, and the answer: Random123, kat_vectors, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_WORDS)
def test_random_words_are_those_of_the_authors(counter, key, answer):
    words = reference_passes.philox([np.array([word], np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in words) == answer


@pytest.mark.parametrize("word", range(4))
def test_the_compiled_core_draws_the_words_of_the_authors(word):
    answer = KNOWN_WORDS[0][2][word]
    values = np.ones(64, np.float32)
    for share, is_kept in ((answer, False), (answer + 2**8, True)):  # as near as float32 comes
        keep = float(np.nextafter(np.float32(share / 2**32), np.float32(is_kept)))
        out = np.empty_like(values)
        merged([Source(values)], [Mask(keep=keep)], None, Target(out.dtype, out))
        assert (out[16 * word] > 0) == is_kept


# ── threads, instruction sets, files ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [0.0, 0.25, 1 - 2**-24, 1.0])
def test_what_is_drawn_once_is_what_every_pass_draws(size, keep):
    mask = Mask(keep=keep, model=3, tensor=77, seed=12345678901234)
    once = mask._replace(drawn=passes.draw(mask, size))
    bits = [np.unpackbits(twin.draw(mask, size).view(np.uint8), bitorder="little")[:size] for twin in TWINS]
    np.testing.assert_array_equal(*bits)
    source = Source(drawn(np.random.default_rng(4), size, np.float32))
    np.testing.assert_array_equal(*(passes.masked_sums([source], [one], base=None) for one in (mask, once)))
    for inverse in (False, True):
        out = [np.empty(size, np.float32) for _ in range(2)]
        for one, merge in zip((mask, once), out, strict=True):
            merged([source], [one._replace(inverse=inverse)], None, Target(merge.dtype, merge))
        assert_same_bits(*out)


def test_a_mask_without_a_probability_has_nothing_to_draw():
    for mask in (Mask(), Mask(keep=0.5, spread=0.1)):
        with pytest.raises(KernelError, match="the tensor 5 elements; pass a probability, and no spread"):
            passes.draw(mask, 5)


def everything(rng):
    """Returns the bytes of all results for one input of several chunks with many ties."""
    sources, base = alike(rng, 5 * (CHUNK + 1), 3, has_base=True, steps=0.5)
    sources = [Source(np.nan_to_num(s.array.astype(np.float32), posinf=0, neginf=0)) for s in sources]
    size = sources[0].size
    top = passes.select_largest(sources, [size // 2, size // 3, size - 1], base=base)
    masks = [Mask(top=t, keep=0.7, inverse=True, model=k) for k, t in enumerate(top)]
    out = np.empty(size, ml_dtypes.bfloat16)
    merged(sources, masks, base, Target(out.dtype, out), votes=[1, 1, 1], shares=[1, 1, 1])
    results = [np.array(top), out, passes.masked_sums(sources, masks, base=base), passes.gram(sources, base=base)]
    ranked = [Mask(keep=0.5, spread=0.3, columns=size)] * 3
    masks = [mask._replace(drawn=passes.draw(mask, size)) for mask in masks]
    results.append(passes.masked_sums(sources, masks, base=base))
    return [*results, passes.masked_sums(sources, ranked, base=base), passes.gram(sources, base=base, rows=5)]


def test_the_number_of_threads_does_not_change_a_bit(threads):
    threads(1)
    alone = [result.tobytes() for result in everything(np.random.default_rng(1))]
    for count in (2, 3, 8):
        threads(count)
        assert [result.tobytes() for result in everything(np.random.default_rng(1))] == alone


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(isa):
    script = "import hashlib, numpy; from {0} import everything; print(hashlib.sha256(b''.join(r.tobytes() for r in \
everything(numpy.random.default_rng(1)))).hexdigest())"
    path = {"PYTHONPATH": os.path.dirname(__file__)}

    def digest(**extra):
        environment = {k: v for k, v in os.environ.items() if k != "MINERUA_ISA"} | path | extra
        command = [sys.executable, "-c", script.format("test_passes")]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    got = digest(MINERUA_ISA=isa)
    if "does not run it" in got.stderr or "of those built for this machine" in got.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert got.stdout == digest().stdout != ""


def test_several_python_threads_may_pass_at_once(threads):
    threads(3)
    expected = [result.tobytes() for result in everything(np.random.default_rng(1))]
    results = [None] * 3

    def run(slot):
        results[slot] = [result.tobytes() for result in everything(np.random.default_rng(1))]

    callers = [threading.Thread(target=run, args=(slot,)) for slot in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [expected] * 3


@pytest.mark.parametrize("size", [1, 100, CHUNK, 3 * CHUNK + 5])
def test_a_file_gets_at_its_offset_what_an_array_gets(rng, dtype, tmp_path, size):
    sources, base = alike(rng, size, 2, has_base=True)
    masks = [Mask(keep=0.5), Mask()]
    expected = np.empty(size, dtype)
    path = tmp_path / "merged"
    for operation, given_masks in ((merged, masks), (combined, None)):
        counts = operation(sources, given_masks, base, Target(dtype, expected))
        path.write_bytes(b"head" + bytes(size * dtype.itemsize) + b"tail")
        with path.open("r+b") as file:
            target = Target(dtype, file=file.fileno(), offset=4)
            np.testing.assert_array_equal(operation(sources, given_masks, base, target), counts)
        assert path.read_bytes() == b"head" + expected.tobytes() + b"tail"


def test_memory_larger_than_the_caches_is_filled_whatever_its_address(rng, dtype):
    size = (3 << 20) + 5
    source = Source(drawn(rng, size, dtype))
    memory = np.zeros(size * dtype.itemsize + 64, np.uint8)
    for first in (0, dtype.itemsize, 16):
        out = memory[first : first + size * dtype.itemsize].view(dtype)
        passes.combine([source], [1.0], base=None, target=Target(dtype, out))
        assert out.tobytes() == source.array.tobytes()


@pytest.mark.parametrize("twin", TWINS, ids=["compiled", "reference"])
def test_a_file_that_cannot_grow_is_an_error_of_the_system(rng, tmp_path, twin, threads):
    threads(2)
    source = Source(drawn(rng, 4 * CHUNK, np.float32))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (tmp_path / "full").open("wb") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * 5, limits[1]))
            target = Target(np.dtype(np.float32), file=file.fileno())
            with pytest.raises(OSError, match="File too large"):
                twin.combine([source], np.ones(1, np.float32), base=None, target=target)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_descriptor_that_is_not_open_is_an_error_of_the_system():
    target = Target(np.dtype(np.float32), file=2**20)
    with pytest.raises(OSError, match="Bad file descriptor"):
        passes.combine([Source(np.ones(5, np.float32))], [1.0], base=None, target=target)


def test_the_environment_or_a_missing_core_gives_the_reference(monkeypatch):
    def fail():
        raise AssertionError("the core was asked")

    monkeypatch.setattr("minerua.kernels.compiled_passes.require_core", fail)
    sources = [Source(np.array([1.0, -2.0], np.float32))]
    monkeypatch.setenv("MINERUA_BACKEND", "reference")
    assert passes.select_largest(sources, [1], base=None) == [Threshold(0x40000000, 1)]
    monkeypatch.delenv("MINERUA_BACKEND")
    monkeypatch.setattr("minerua.kernels.compiled.core", None)
    assert passes.gram(sources, base=None) == [[[5.0]]]
