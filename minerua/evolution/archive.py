"""One archive: a task as quality, the other tasks as behaviour characteristics, the best child in every cell.

Source: CycleQD, arXiv 2410.14735, section 4.1.2 (bins and bounds); the interval and tie rules follow the public code,
which the paper does not contradict. Statistics follow pyribs' conventions.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minerua.errors import EvolutionError
from minerua.values import Elite


@dataclass(frozen=True)
class Bounds:
    """The range of scores that an archive's bins divide evenly, one interval per task.

    Args:
        lower: Shape (K,); lowest score of each task's first bin.
        upper: Shape (K,); highest score of each task's last bin, above `lower`.

    Raises:
        EvolutionError: If the two differ in length, or an upper bound is not above its lower bound.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.lower) != len(self.upper):
            raise EvolutionError(
                f"bounds need one pair per task, found {len(self.lower)} lower, {len(self.upper)} upper"
            )
        empty = [i for i, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)) if not low < high]
        if empty:
            raise EvolutionError(
                "every upper bound must be above its lower bound",
                [f"task {i}: lower {self.lower[i]}, upper {self.upper[i]}" for i in empty],
            )

    @classmethod
    def of_experts(cls, means: Sequence[Sequence[float]], *, lower: float = 0.85, upper: float = 1.15) -> Bounds:
        """Returns the bounds that the experts' scores imply.

        Args:
            means: Shape (experts, K); each expert's mean outcome per task.
            lower: Factor for the weakest expert's score; the paper's 0.85.
            upper: Factor for the strongest expert's score; the paper's 1.15.

        A task on which every expert scores zero would have an empty range; it gets [0, 1] instead.

        Source: CycleQD, section 4.1.2.

        Example:
            >>> bounds = Bounds.of_experts([[0.8, 0.2], [0.4, 0.6]])
            >>> [round(x, 3) for x in bounds.lower], [round(x, 3) for x in bounds.upper]
            ([0.34, 0.17], [0.92, 0.69])
        """
        columns = list(zip(*means, strict=True))
        pairs = [(lower * min(column), upper * max(column)) for column in columns]
        pairs = [(low, high) if low < high else (0.0, 1.0) for low, high in pairs]
        return cls(tuple(low for low, _ in pairs), tuple(high for _, high in pairs))

    @classmethod
    def around(cls, means: Sequence[float], *, reach: float = 0.06) -> Bounds:
        """Returns the bounds that lie a fixed distance to both sides of one model's scores, at most 1 above.

        Narrow bins keep apart what a population near its optimum still differs in; the experts' bounds would put it
        into a handful of cells.

        Args:
            means: Shape (K,); the model's mean outcome per task.
            reach: Half the width, in score.

        Example:
            >>> bounds = Bounds.around([0.5, 0.97])
            >>> [round(x, 3) for x in bounds.lower], [round(x, 3) for x in bounds.upper]
            ([0.44, 0.91], [0.56, 1.0])
        """
        return cls(tuple(mean - reach for mean in means), tuple(min(mean + reach, 1.0) for mean in means))


class AddStatus(enum.IntEnum):
    """What became of a candidate; the values are pyribs'."""

    NOT_ADDED = 0
    IMPROVE_EXISTING = 1
    NEW = 2


@dataclass(frozen=True)
class ArchiveStats:
    """An archive in numbers, in pyribs' conventions.

    Args:
        num_elites: Occupied cells.
        coverage: Occupied cells ÷ all cells, a fraction.
        qd_score: Sum over the elites of quality minus offset.
        norm_qd_score: `qd_score` ÷ all cells.
        obj_max: Best quality, or `None` in an empty archive.
        obj_mean: Mean quality of the elites, or `None` in an empty archive.
    """

    num_elites: int
    coverage: float
    qd_score: float
    norm_qd_score: float
    obj_max: float | None
    obj_mean: float | None


class Archive:
    """A grid with one child per cell.

    Bins are evenly spaced, open on the left and closed on the right; scores at or below the lower bound fall into the
    first bin, scores above the upper bound into the last. A candidate enters an empty cell, or one whose quality is
    strictly lower: on a tie the older child stays. Elites are kept in the order in which their cells were first filled.

    Args:
        quality: Index of the task that serves as quality.
        bounds: The score ranges of all K tasks.
        bins: How many bins each other task is divided into; the paper's 15.

    Raises:
        EvolutionError: If there are fewer than two tasks, `quality` is none of them, or `bins` is below one.
    """

    def __init__(self, quality: int, bounds: Bounds, *, bins: int = 15) -> None:
        tasks = len(bounds.lower)
        if tasks < 2 or not 0 <= quality < tasks or bins < 1:
            raise EvolutionError(
                f"an archive needs at least two tasks, a quality task among them and one bin or more; "
                f"found {tasks} tasks, quality {quality}, {bins} bins"
            )
        self.quality = quality
        self.bins = bins
        self.others = tuple(k for k in range(tasks) if k != quality)
        self._edges = [np.linspace(bounds.lower[k], bounds.upper[k], bins + 1).tolist() for k in self.others]
        self._position: dict[tuple[int, ...], int] = {}
        self._elites: list[Elite] = []
        self._means = np.empty((16, tasks))

    def __len__(self) -> int:
        return len(self._elites)

    @property
    def cells(self) -> int:
        """How many cells the grid has, occupied or not."""
        return int(self.bins ** len(self.others))

    @property
    def elites(self) -> tuple[Elite, ...]:
        """The occupants, in the order in which their cells were first filled."""
        return tuple(self._elites)

    @property
    def means(self) -> np.ndarray:
        """Shape (elites, K), float64, a borrowed view valid until the next `add`: scores in the order of `elites`."""
        return self._means[: len(self._elites)]

    def cell_of(self, means: Sequence[float]) -> tuple[int, ...]:
        """Returns the cell of a child with these scores: one bin index per other task.

        Args:
            means: Shape (K,); the child's mean outcome per task.

        Example:
            >>> archive = Archive(0, Bounds((0.0, 0.0), (1.0, 1.0)), bins=4)
            >>> archive.cell_of((0.9, 0.25)), archive.cell_of((0.9, 0.26)), archive.cell_of((0.9, 1.7))
            ((0,), (1,), (3,))
        """
        last = self.bins - 1
        return tuple(
            min(max(bisect_left(edges, means[k]) - 1, 0), last)
            for k, edges in zip(self.others, self._edges, strict=True)
        )

    def add(self, id: int, digest: str, means: Sequence[float]) -> tuple[AddStatus, Elite | None]:
        """Offers a child to the archive.

        Args:
            id: The child's number.
            digest: The name of its genome.
            means: Shape (K,); its mean outcome per task.

        Returns:
            What became of it, and the elite that it displaced, if any.
        """
        cell = self.cell_of(means)
        candidate = Elite(id, digest, tuple(means), cell)
        position = self._position.get(cell)
        if position is None:
            self._append(candidate)
            return AddStatus.NEW, None
        incumbent = self._elites[position]
        if not candidate.means[self.quality] > incumbent.means[self.quality]:
            return AddStatus.NOT_ADDED, None
        self._elites[position] = candidate
        self._means[position] = candidate.means
        return AddStatus.IMPROVE_EXISTING, incumbent

    def _append(self, elite: Elite) -> None:
        if len(self._elites) == len(self._means):
            self._means = np.concatenate([self._means, np.empty_like(self._means)])
        self._means[len(self._elites)] = elite.means
        self._position[elite.cell] = len(self._elites)
        self._elites.append(elite)

    def best(self) -> Elite:
        """Returns the elite of highest quality; of equals the most recent child, as the paper asks (section 3.4).

        Raises:
            EvolutionError: If the archive is empty.
        """
        if not self._elites:
            raise EvolutionError(f"the archive of task {self.quality} is empty: it has no best elite")
        return max(self._elites, key=lambda elite: (elite.means[self.quality], elite.id))

    def stats(self, *, offset: float = 0.0) -> ArchiveStats:
        """Returns the archive in numbers.

        Args:
            offset: Subtracted from every quality before summing, so that filling a cell never lowers the QD score; the
                lowest possible quality, 0 for outcomes in [0, 1].
        """
        quality = self.means[:, self.quality]
        score = float(np.sum(quality - offset))
        return ArchiveStats(
            num_elites=len(self),
            coverage=len(self) / self.cells,
            qd_score=score,
            norm_qd_score=score / self.cells,
            obj_max=float(quality.max()) if len(self) else None,
            obj_mean=float(quality.mean()) if len(self) else None,
        )
