"""Before the run: which experts will hardly merge, told from their task vectors alone.

s, the similarity of two experts' spectra, went with success in CycleQD's table 4: a correlation of 0.83 over six pairs
of one model family (SAM). That is a hint and no proof, and so are the sentences here: a run goes on whatever they say.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

from minerua.report import Pair, Preflight
from minerua.run.record import Record
from minerua.run.seeds import Founder
from minerua.values import Genome
from minerua.weights import Core, Subspace, compare_spectra, cosines, norms, spectra

TABLE_4: Final = ((0.99, 0.96), (0.98, 0.97), (0.97, 0.92), (0.95, 0.83), (0.93, 0.62), (0.88, 0.70))
"""s of two experts → their merge's scores divided by their own, both averaged. Source: CycleQD, arXiv 2410.14735."""

HARDLY: Final = 0.96
"""An expert whose highest s is below this is named: it parts table 4 into those that kept 92 % and the rest."""

MUCH: Final = 5.0
"""Times the others' median norm from which on an expert is named: chosen by eye, no source."""

SAME: Final = 0.999
"""Cosine from which on two experts are named as one: chosen by eye, no source."""

BUDGET: Final = 1e12
"""Multiplications that the spectra may cost: a minute or two on two cores. Three adapters of an 8-billion-parameter
model need 3 %; of its full fine-tunes it pays for single matrices."""

Announce = Callable[[Preflight], None]
"""Called with what was found, once, before the first seed of a fresh run is scored."""


def check_experts(
    record: Record, subspace: Subspace, founders: Sequence[Founder], announce: Announce | None = None
) -> None:
    """Measures a run's experts, writes what was found into the journal and announces it.

    Args:
        record: The journal. A resumed run compares what it finds with what the journal has and announces nothing.
        subspace: The space of the population.
        founders: Its seeds; only the experts among them are measured.
        announce: Called if the run is fresh.

    Raises:
        JournalError: If the journal holds something else.
        StorageError: If it cannot be written.
    """
    fresh = not record.replaying
    found = preflight(subspace, {founder.name: founder.genome for founder in founders if founder.expert})
    record.confirm({"event": "preflight", **found.fields()})
    if fresh and announce:
        announce(found)


def preflight(subspace: Subspace, experts: Mapping[str, Genome], *, budget: float = BUDGET) -> Preflight:
    """Returns how alike experts are, and in one sentence each what speaks against merging them.

    Numbers are rounded to what a person reads and another machine repeats.

    Args:
        subspace: The space of the population.
        experts: Name → genome, two or more.
        budget: Multiplications that the spectra may cost. Where all matrices need more, s is taken over as many as it
            pays for, at least one; which ones, their names decide, not their place.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.
    """
    names, genomes = list(experts), list(experts.values())
    cores = [segment for segment in subspace.segments if isinstance(segment, Core)]
    measured = affordable(cores, budget / max(len(genomes), 1))
    lengths, angles = norms(subspace, genomes).tolist(), cosines(subspace, genomes)
    sigmas = [spectra(subspace, genome, measured) for genome in genomes]
    pairs = tuple(
        Pair(
            (names[i], names[j]),
            _rounded(compare_spectra(sigmas[i], sigmas[j])),
            round(float(angles[i, j]), 6),
            _ratio(lengths[i], lengths[j]),
        )
        for i, j in combinations(range(len(names)), 2)
    )
    sizes = {name: float(f"{length:.6g}") for name, length in zip(names, lengths, strict=True)}
    return Preflight(len(measured), len(cores), sizes, pairs, tuple(concerns(sizes, pairs)))


def _rounded(similarity: float | None) -> float | None:
    return None if similarity is None else round(similarity, 6)


def _ratio(a: float, b: float) -> float | None:
    return float(f"{max(a, b) / min(a, b):.6g}") if min(a, b) > 0 else None


def affordable(cores: Sequence[Core], budget: float) -> list[str]:
    """Returns the names of the matrices whose spectra a budget of multiplications pays for; at least one, if there is.

    Matrices are taken in the order of their names' digests, which knows no layers: every n-th matrix of a transformer
    may well be of one kind.
    """
    taken: list[str] = []
    for core in sorted(cores, key=lambda core: hashlib.blake2b(core.name.encode(), digest_size=8).digest()):
        small, large = sorted(core.shape)
        budget -= small * small * (large + 5 * small)  # the Gram matrix, and its eigenvalues by experience
        if budget < 0 and taken:
            break
        taken.append(core.name)
    return taken


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def concerns(norms: Mapping[str, float], pairs: Sequence[Pair]) -> Iterator[str]:
    """Yields one plain sentence per thing that speaks against merging the experts as they are.

    Args:
        norms: Expert → norm of its task vector.
        pairs: Every two experts.

    Source: CycleQD, arXiv 2410.14735, table 4, for those that will hardly merge.
    """
    for name, norm in norms.items():
        if norm == 0:
            yield f"“{name}” is equal to the base and has nothing to merge; is its path that of the fine-tune?"
    for pair in pairs:
        if pair.cosine > SAME and pair.norm_ratio is not None:
            yield (
                f"“{pair.experts[0]}” and “{pair.experts[1]}” are nearly one expert (cosine {pair.cosine:.4f}, norm "
                f"ratio {pair.norm_ratio:.2f}): one of them is enough."
            )
    yield from _outsized(norms)
    yield from _strangers(norms, pairs)


def _outsized(norms: Mapping[str, float]) -> Iterator[str]:
    for name, norm in norms.items():
        others = [other for who, other in norms.items() if who != name and other > 0]
        if not others:
            continue
        times = norm / statistics.median(others)
        if times > MUCH:
            yield (
                f"“{name}” changes the base {times:.1f} times as much as the others: a merge with equal weights is "
                f"mostly “{name}”."
            )
        elif 0 < times < 1 / MUCH and len(others) > 1:
            yield (
                f"“{name}” changes the base {1 / times:.1f} times less than the others: a merge with equal weights "
                "drowns it."
            )


def _strangers(norms: Mapping[str, float], pairs: Sequence[Pair]) -> Iterator[str]:
    """Names every expert that is close to no other; of two experts both at once, for both have the same s."""
    for name in norms:
        known = [(pair.similarity, pair) for pair in pairs if name in pair.experts and pair.similarity is not None]
        if not known:
            continue
        closest, pair = max(known, key=lambda one: one[0])
        if closest >= HARDLY:
            continue
        if len(norms) == 2:
            a, b = pair.experts
            yield f"“{a}” and “{b}” will hardly merge, if CycleQD's pairs are a guide: their s is {_evidence(closest)}"
            return
        (other,) = (who for who in pair.experts if who != name)
        yield (
            f"“{name}” will hardly merge, if CycleQD's pairs are a guide: its highest s, with “{other}”, is "
            f"{_evidence(closest)}"
        )


def _evidence(similarity: float) -> str:
    s, kept = min(TABLE_4, key=lambda row: (abs(row[0] - similarity), row[0]))
    return (
        f"{similarity:.2f}; the paper's pair at {s:.2f} kept {100 * kept:.0f} % of its experts' scores, those from "
        "0.97 on 92 % and more."
    )
