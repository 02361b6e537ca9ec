"""Passes over sources that all lie there in one type, read as they are: they have loops of their own."""

import hashlib
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from minerua.kernels import passes, reference_passes
from minerua.kernels.passes import ALL_KEPT, NONE_KEPT, Mask, Source, Target

CHUNK = 1 << 16
SIZES = [1, 17, 4097, CHUNK + 21]
COUNTS = [1, 2, 3, 9]
RULES = {"none": {}, "signs": {"votes": "weights"}, "shares": {"votes": "weights", "shares": "weights"}}


def models(rng, dtype, size, count, *, has_base, not_finite=False):
    """Draws a base and models near it, many of whose differences are equal."""
    base = rng.standard_normal(size).astype(dtype)
    arrays = [(base.astype(np.float32) + np.round(rng.standard_normal(size)) / 4).astype(dtype) for _ in range(count)]
    if not_finite and size > 20:
        for k, value in enumerate([np.nan, np.inf, -np.inf][:count]):
            arrays[k][rng.integers(0, size, 2)] = value
    return [Source(array) for array in arrays], Source(base) if has_base else None


def widened(source):
    """The same numbers in float32 behind a row map, so that they are read by way of tiles."""
    if source is None:
        return None
    array = source.array.astype(np.float32).reshape(1, -1)
    return Source(array, rows=np.zeros(1, np.int64))


def flat(sources):
    return [Source(source.array.reshape(1, -1)) for source in sources]


def key_masks(rng, sources, base):
    """Thresholds whose budgets of equal keys end anywhere, and the two that end nowhere."""
    counts = rng.integers(0, sources[0].size + 1, len(sources))
    masks = [Mask(top=top) for top in passes.select_largest(sources, counts, base=base)]
    extremes = [Mask(), Mask(top=NONE_KEPT), Mask(top=ALL_KEPT)]
    return [extremes[k % 3] if k > 2 else mask for k, mask in enumerate(masks)]


def drawn_masks(size, count):
    masks = [Mask(keep=0.3 + 0.05 * k, model=k, tensor=7, seed=99) for k in range(count)]
    return [mask._replace(drawn=passes.draw(mask, size)) for mask in masks]


def merges(sources, masks, base, dtype, rule):
    """What every way to the same merge writes and counts: as stored, by tiles, and by the reference."""
    weights = [0.5 + k / 4 for k in range(len(sources))]
    given = {"factors": weights, "votes": None, "shares": None, "scale": 0.75}
    given |= dict.fromkeys(RULES[rule], weights)
    tiles = [widened(source) for source in sources]
    for merge, ways, start in [
        (passes.merge_masked, sources, base),
        (passes.merge_masked, tiles, widened(base)),
        (reference_passes.merge_masked, sources, base),
    ]:
        out = np.full(sources[0].array.shape, 7, dtype)
        with np.errstate(all="ignore"):
            counts = merge(ways, masks, base=start, target=Target(out.dtype, out), **given)
        yield out.astype(np.float32).reshape(-1), counts


def assert_all_alike(results):
    (first, counts), *others = results
    for values, other in others:
        np.testing.assert_array_equal(values, first)  # NaN equals NaN
        np.testing.assert_array_equal(np.signbit(values), np.signbit(first))
        np.testing.assert_array_equal(other, counts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("has_base", [True, False])
def test_merges_of_stored_sources_are_those_by_way_of_tiles(rng, dtype, size, rule, has_base):
    for count in COUNTS:
        sources, base = models(rng, dtype, size, count, has_base=has_base, not_finite=count % 2 == 1)
        sources = flat(sources)
        base = base and flat([base])[0]
        for masks in (key_masks(rng, sources, base), drawn_masks(size, count)):
            assert_all_alike(merges(sources, masks, base, dtype, rule))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_base", [True, False])
def test_sums_and_products_of_stored_sources_are_those_by_way_of_tiles(rng, dtype, size, has_base):
    for count in COUNTS:
        sources, base = models(rng, dtype, size, count, has_base=has_base)
        sources, base = flat(sources), base and flat([base])[0]
        tiles, start = [widened(source) for source in sources], widened(base)
        masks = drawn_masks(size, count)
        sums = [passes.masked_sums(ways, masks, base=b) for ways, b in ((sources, base), (tiles, start))]
        np.testing.assert_array_equal(*sums)
        again = passes.masked_sums(sources, [mask._replace(drawn=None) for mask in masks], base=base)
        np.testing.assert_array_equal(sums[0], again)
        np.testing.assert_array_equal(passes.gram(sources, base=base), passes.gram(tiles, base=start))


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_of_stored_sources_are_those_of_the_reference(rng, dtype, size):
    sources, base = models(rng, dtype, size, 3, has_base=True, not_finite=True)
    for counts in ([0, size // 2, size], [size // 3, 1, size // 7]):
        with np.errstate(all="ignore"):
            expected = reference_passes.select_largest(sources, counts, base=base)
        assert passes.select_largest(sources, counts, base=base) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_sum_that_only_rounding_makes_infinite_is_counted(dtype):
    dtype = np.dtype(dtype)
    largest = np.array([0x7BFF if dtype == np.float16 else 0x7F7F], np.uint16).view(dtype)
    sources = [Source(np.repeat(largest, 40)), Source(np.repeat(largest, 40))]
    out = np.empty(40, dtype)
    numbers = {"factors": [0.5, 0.5078125], "votes": None, "shares": None, "scale": 1.0}
    counts = passes.merge_masked(sources, [Mask(), Mask()], base=None, target=Target(dtype, out), **numbers)
    assert counts.tolist() == [0, 0, 0, 40]
    assert np.isinf(out.astype(np.float32)).all()


def everything():
    """The digest of all results for one input."""
    digest = hashlib.sha256()
    for dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        rng = np.random.default_rng(5)
        for count in (2, 3, 5):
            sources, base = models(rng, dtype, 2 * CHUNK + 21, count, has_base=True)
            drawn = drawn_masks(sources[0].size, count)
            for masks in (key_masks(rng, sources, base), drawn):
                out = np.empty(sources[0].size, dtype)
                weights = [0.5 + k / 4 for k in range(count)]
                numbers = {"factors": weights, "votes": weights, "shares": weights, "scale": 0.75}
                passes.merge_masked(sources, masks, base=base, target=Target(dtype, out), **numbers)
                digest.update(out.tobytes())
            digest.update(passes.masked_sums(sources, drawn, base=base).tobytes())
            digest.update(passes.gram(sources, base=base).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_stored_sources_the_same_bits(isa):
    script = "from test_stored_passes import everything; print(everything())"
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "MINERUA_ISA": isa}
    got = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if "does not run it" in got.stderr or "of those built for this machine" in got.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert got.stdout.strip() == everything(), got.stderr
