"""Where a run keeps the genomes of its living children: in memory while they are small, else in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Final

from minerua.values import Genome
from minerua.weights import GenomeStore


class GenomeShelf(MutableMapping[str, Genome]):
    """A genome store as a cycle sees it: a mapping that reads from the disk and deletes only when it may.

    What the cycle drops stays on the disk until `settle`, which comes after the journal holds the reason: a run that is
    killed in between finds the genome again instead of breeding its ancestors.

    Args:
        store: Where the genomes lie; each is held once.
    """

    def __init__(self, store: GenomeStore) -> None:
        self._store: Final = store
        self._leaving: dict[str, None] = {}

    def __contains__(self, digest: object) -> bool:
        return digest not in self._leaving and digest in self._store

    def __getitem__(self, digest: str) -> Genome:
        if digest not in self:
            raise KeyError(digest)
        return self._store.open(digest)

    def __setitem__(self, digest: str, genome: Genome) -> None:
        self._leaving.pop(digest, None)
        if not self._store.references(digest):
            self._store.add(genome)

    def __delitem__(self, digest: str) -> None:
        if digest not in self:
            raise KeyError(digest)
        self._leaving[digest] = None

    def __iter__(self) -> Iterator[str]:
        return (digest for digest in self._store if digest not in self._leaving)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def settle(self) -> None:
        """Deletes what the cycle has dropped.

        Raises:
            StorageError: If a file cannot be deleted.
        """
        for digest in list(self._leaving):
            self._store.release(digest)
            del self._leaving[digest]

    def sweep(self, live: Iterable[str]) -> None:
        """Keeps the genomes that are alive and deletes all others: what an earlier process has left.

        Raises:
            StorageError: If a file cannot be deleted.
        """
        self._leaving.clear()
        self._store.sweep(live)
