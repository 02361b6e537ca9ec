"""The definition of correct for passes over tensors, in plain numpy: whole tensors at once, in float32 mostly.

Twins share names with the compiled operations, which agree bit for bit but for the sums in float64 (`gram`,
`masked_sums`), whose order differs. Here a tensor is held whole, there a tile at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from minerua.kernels.sources import Mask, Source, Target, Threshold

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def load(source: Source, begin: int, end: int) -> np.ndarray:
    """Returns elements [begin, end) of a source, float32.

    The factors' products are added one after another in the order of r, to the stored element.
    """
    columns = max(1, source.shape[-1]) if source.shape else 1
    first, last = begin // columns, -(-end // columns)
    if source.rows is not None:
        picked = source.rows[first:last]
        stored = np.empty((len(picked), columns), np.float32)
        own = picked >= 0
        stored[own] = source.array[picked[own]].astype(np.float32)
        if source.extra is not None:
            stored[~own] = source.extra[-1 - picked[~own]]
        stored = stored.reshape(-1)[begin - first * columns : end - first * columns]
    else:
        stored = source.array.reshape(-1)[begin:end].astype(np.float32)
    if source.left is None or source.right is None:
        return stored
    added = stored
    index = np.arange(begin, end)
    for r in range(source.left.shape[1]):
        added = added + source.left[index // columns, r] * source.right[r, index % columns]
    return added


def combine(sources: Sequence[Source], coefficients: np.ndarray, *, base: Source | None, target: Target) -> np.ndarray:
    """Writes Σ_k c_k x_k, or with a base b + Σ_k c_k (x_k − b), summed in the order of k.

    Args:
        sources: K sources of one shape.
        coefficients: Shape (K,), or (R, K) for R rows of equal length; float32.
        base: One more source, or `None`.
        target: Where the result goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each source, of the base, and of the result are not finite.
    """
    start = None if base is None else load(base, 0, base.size)
    rows = coefficients.reshape(-1, len(sources))  # (R, K)
    counts = np.zeros(len(sources) + 2, np.int64)

    def products() -> Iterator[np.ndarray]:
        for k, source in enumerate(sources):
            x = load(source, 0, source.size)
            counts[k] = np.count_nonzero(~np.isfinite(x))
            term = x if start is None else x - start
            yield (rows[:, k, None] * term.reshape(len(rows), -1)).reshape(-1)

    with np.errstate(all="ignore"):
        total = reduce(np.add, products()) if start is None else reduce(np.add, products(), start)
        return _written(total, start, counts, target)


def gram(sources: Sequence[Source], *, base: Source | None, rows: int = 1) -> np.ndarray:
    """Returns all inner products of x_k, or with a base of x_k − b (float32), per row.

    Args:
        sources: K sources of one shape.
        base: One more source, or `None`.
        rows: R; into how many rows of equal length the tensor is cut.

    Returns:
        Shape (R, K, K), float64; products and sums in float64.
    """
    terms = np.stack(_terms(sources, base)).astype(np.float64).reshape(len(sources), rows, -1)
    with np.errstate(all="ignore"):
        return np.einsum("krn,lrn->rkl", terms, terms)


def histogram(sources: Sequence[Source], *, base: Source | None, prefixes: Sequence[int] | None = None) -> np.ndarray:
    """Counts magnitudes by the bits of their keys.

    Args:
        sources: K sources of one shape.
        base: One more source, or `None`.
        prefixes: `None`, or K upper parts of keys (15 bits).

    Returns:
        Without prefixes shape (K, 32768): how many numbers have each upper part, key >> 16. With prefixes shape
        (K, 65536): how many of the numbers with that upper part have each lower part, key & 0xffff. int64.
    """
    every = [keys_of(term) for term in _terms(sources, base)]
    if prefixes is None:
        return np.stack([np.bincount(keys >> 16, minlength=32768) for keys in every])
    below = [keys[keys >> 16 == prefix] & 0xFFFF for keys, prefix in zip(every, prefixes, strict=True)]
    return np.stack([np.bincount(keys, minlength=65536) for keys in below])


def count_equal(sources: Sequence[Source], *, base: Source | None, keys: Sequence[int]) -> np.ndarray:
    """Returns, shape (K,), int64, how many numbers of each source have exactly this key."""
    terms = _terms(sources, base)
    return np.array([np.count_nonzero(keys_of(t) == key) for t, key in zip(terms, keys, strict=True)], np.int64)


def select_largest(sources: Sequence[Source], counts: Sequence[int], *, base: Source | None) -> list[Threshold]:
    """Returns the threshold that keeps exactly `counts[k]` of the numbers of source k, each in [0, size]."""
    found = []
    for term, count in zip(_terms(sources, base), counts, strict=True):
        keys = np.sort(keys_of(term))[::-1]
        if count == 0:
            found.append(Threshold(1 << 31, 0))
            continue
        key = int(keys[count - 1])
        found.append(Threshold(key, count - int(np.count_nonzero(keys > key))))
    return found


def draw(mask: Mask, size: int) -> np.ndarray:
    """Returns what a mask without a spread draws: bit i % 64 of number i // 64 is that of element i.

    Returns:
        Shape (size // 64 + 2,), uint64; bits beyond the size mean nothing.
    """
    numbers = size // 64 + 2
    limit = np.floor(np.float64(np.float32(mask.keep or 0)) * 2.0**32)
    kept = random_words(mask, 0, 64 * numbers) < limit
    return np.packbits(kept, bitorder="little").view(np.uint64)


def masked_sums(sources: Sequence[Source], masks: Sequence[Mask], *, base: Source | None) -> np.ndarray:
    """Returns, shape (K, 2), float64, Σ|δ_k| and Σ|kept δ_k| (`inverse` not applied), δ_k = x_k − b."""
    sums = []
    for term, mask in zip(_terms(sources, base), masks, strict=True):
        kept, _ = kept_elements(term, mask)
        sizes = np.abs(term.astype(np.float64))
        sums.append([sizes.sum(), sizes[kept].sum()])
    return np.array(sums)


def merge_masked(
    sources: Sequence[Source],
    masks: Sequence[Mask],
    *,
    base: Source | None,
    factors: Sequence[float],
    votes: Sequence[float] | None,
    shares: Sequence[float] | None,
    scale: float,
    target: Target,
) -> np.ndarray:
    """Writes b + scale · Σ_k f_k d_k ÷ divisor, of the kept parts d_k of the task vectors δ_k = x_k − b.

    Per element: d_k is δ_k where it is kept (divided by its probability where the mask says `inverse`), else 0. With
    `votes`, the elected sign is + if Σ_k v_k d_k >= 0 and − otherwise, and only models whose v_k d_k has the elected
    sign take part (zero has no sign). With `shares`, the divisor is Σ s_k over those that take part, 1 if that is 0.

    Args:
        sources: K sources of one shape.
        masks: K masks.
        base: One more source; `None` means zero.
        factors: f, K numbers, rounded to float32.
        votes: v, K numbers, rounded to float32; or `None`: all take part.
        shares: s, K numbers, rounded to float32; or `None`: the divisor is 1. Needs `votes`.
        scale: Rounded to float32.
        target: Where the result goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each source, of the base, and of the result are not finite.
    """
    start = None if base is None else load(base, 0, base.size)
    size = sources[0].size
    counts = np.zeros(len(sources) + 2, np.int64)
    kept_parts = []
    with np.errstate(all="ignore"):
        for k, (source, mask) in enumerate(zip(sources, masks, strict=True)):
            x = load(source, 0, size)
            counts[k] = np.count_nonzero(~np.isfinite(x))
            term = x if start is None else x - start
            kept, probability = kept_elements(term, mask)
            part = np.where(kept, term, np.float32(0))
            kept_parts.append(np.where(kept, part / probability, part) if mask.inverse else part)
        total: np.ndarray = np.zeros(size, np.float32)
        divisor: np.ndarray = np.zeros(size, np.float32)
        elected: np.ndarray = np.zeros(size, np.float32)
        for vote, part in zip(() if votes is None else votes, kept_parts, strict=False):
            elected = elected + np.float32(vote) * part
        for k, part in enumerate(kept_parts):
            agrees = np.ones(size, bool)
            if votes is not None:
                vote_of = np.float32(votes[k]) * part
                agrees = np.where(elected >= 0, vote_of > 0, vote_of < 0)
            total = np.where(agrees, total + np.float32(factors[k]) * part, total)
            if shares is not None:
                divisor = np.where(agrees, divisor + np.float32(shares[k]), divisor)
        if shares is not None:
            total = total / np.where(divisor == 0, np.float32(1), divisor)
        moved = np.float32(scale) * total
        return _written(moved if start is None else start + moved, start, counts, target)


def keys_of(term: np.ndarray) -> np.ndarray:
    """Returns the keys of float32 numbers: the 31 bits of their magnitudes, which order as these do; int64."""
    return (np.ascontiguousarray(term).view(np.uint32) & 0x7FFFFFFF).astype(np.int64)


def among_largest(keys: np.ndarray, threshold: tuple[int, int]) -> np.ndarray:
    """Returns which elements are among the largest, as `Threshold` defines it."""
    key, equal = threshold
    at = keys == key
    return (keys > key) | (at & (np.cumsum(at) <= equal))


def kept_elements(term: np.ndarray, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Returns which elements of a flat task vector a mask keeps, and the probability of each, float32.

    A random number r of 32 bits keeps its element if r < floor(p · 2^32), p in float32, or if p >= 1. `drawn` is not
    looked at here: it says the same.
    """
    keys = keys_of(term)
    kept = np.ones(len(term), bool)
    if mask.top is not None:
        kept &= among_largest(keys, mask.top)
    if mask.but is not None:
        kept &= ~among_largest(keys, mask.but)
    probability = np.ones(len(term), np.float32)
    if mask.keep is not None:
        probability = probabilities(keys, mask)
        limit = np.floor(probability.astype(np.float64) * 2.0**32)
        kept &= random_words(mask, 0, len(term)) < limit
    return kept, probability


def probabilities(keys: np.ndarray, mask: Mask) -> np.ndarray:
    """Returns each element's probability, float32: `keep`, or by its rank in its row where there is a spread.

    With rank 0 for the last of the row in the order of `Threshold` and n elements in the row,
    p = (keep − spread) + rank ÷ (n − 1) · (2 · spread), all in float32; in a row of one element p = keep.
    """
    keep, spread = np.float32(mask.keep or 0), np.float32(mask.spread)
    if mask.spread == 0 or mask.columns == 1:
        return np.full(len(keys), keep, np.float32)
    rows = keys.reshape(-1, mask.columns)
    order = np.argsort(-rows, axis=1, kind="stable")  # the largest first, equal ones by index
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(mask.columns)[::-1][None, :].repeat(len(rows), 0), axis=1)
    share = ranks.astype(np.float32) / np.float32(mask.columns - 1)
    return ((keep - spread) + share * (np.float32(2) * spread)).reshape(-1).astype(np.float32)


def random_words(mask: Mask, begin: int, end: int) -> np.ndarray:
    """Returns the random 32-bit word of elements [begin, end), uint32: Philox4x32-10 of (seed, model, tensor, element).

    Element i takes word (i // 16) % 4 of the counter (c mod 2^32, c // 2^32, tensor, model) with c = i // 64 · 16 +
    i % 16 and the key (seed mod 2^32, seed // 2^32), so that sixteen neighbours come from sixteen counters.

    Source: Salmon 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3.
    """
    index = np.arange(begin, end, dtype=np.uint64)
    counter = index // np.uint64(64) * np.uint64(16) + index % np.uint64(16)
    low = np.uint64(0xFFFFFFFF)
    tensor, model = np.full_like(index, mask.tensor), np.full_like(index, mask.model)
    x = philox((counter & low, counter >> np.uint64(32), tensor, model), (mask.seed & 0xFFFFFFFF, mask.seed >> 32))
    word = (index // np.uint64(16) % np.uint64(4)).astype(np.int64)
    return np.choose(word, x).astype(np.uint32)


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Returns the four words that Philox4x32-10 makes of counters of four words (32 bits each, in uint64)."""
    x, low = list(counter), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = np.uint64(_MULTIPLIERS[0]) * x[0], np.uint64(_MULTIPLIERS[1]) * x[2]
        x = [
            (second >> np.uint64(32)) ^ x[1] ^ np.uint64(key[0]),
            second & low,
            (first >> np.uint64(32)) ^ x[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = ((key[0] + _WEYL[0]) & 0xFFFFFFFF, (key[1] + _WEYL[1]) & 0xFFFFFFFF)
    return x


def _terms(sources: Sequence[Source], base: Source | None) -> list[np.ndarray]:
    start = None if base is None else load(base, 0, base.size)
    with np.errstate(all="ignore"):
        loaded = [load(source, 0, source.size) for source in sources]
        return loaded if start is None else [x - start for x in loaded]


def _written(total: np.ndarray, start: np.ndarray | None, counts: np.ndarray, target: Target) -> np.ndarray:
    if start is not None:
        counts[-2] = np.count_nonzero(~np.isfinite(start))
    rounded = total.astype(target.dtype)
    counts[-1] = np.count_nonzero(~np.isfinite(rounded.astype(np.float32)))
    target.write(0, total)
    return counts
