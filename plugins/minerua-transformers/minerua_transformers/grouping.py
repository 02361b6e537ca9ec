"""Which rows of a batch belong to which child, so that each child's numbers are read once for all its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import torch


@final
class Grouping:
    """The children of a batch's rows, and what layers keep for as long as the batch has these rows.

    Args:
        children: The child of each row.
        device: Where the batch is.
    """

    def __init__(self, children: Sequence[int], device: torch.device) -> None:
        import torch

        self.present = sorted(set(children))
        places = {child: k for k, child in enumerate(self.present)}
        members: list[list[int]] = [[] for _ in self.present]
        for row, child in enumerate(children):
            members[places[child]].append(row)
        self.rows, self.width = len(children), max(map(len, members))
        slots = [row for one in members for row in [*one, *[one[0]] * (self.width - len(one))]]  # filled up
        back = [0] * self.rows
        for place, one in enumerate(members):
            for k, row in enumerate(one):
                back[row] = place * self.width + k
        self._is_in_order = slots == list(range(self.rows))
        self._slots, self._back = torch.tensor(slots, device=device), torch.tensor(back, device=device)
        self.children = torch.tensor(list(children), device=device)
        self._groups = torch.tensor(self.present, device=device)
        self._kept: dict[Any, torch.Tensor] = {}

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Returns rows by child: (rows, length, n) becomes (children present, rows of each × length, n)."""
        chosen = x if self._is_in_order else x[self._slots]
        return chosen.reshape(len(self.present), self.width * x.shape[1], x.shape[2])

    def join(self, y: torch.Tensor, length: int) -> torch.Tensor:
        """Returns what `split` made, as rows again."""
        flat = y.reshape(len(self.present) * self.width, length, y.shape[2])
        return flat if self._is_in_order else flat[self._back]

    def chosen(self, numbers: torch.Tensor) -> torch.Tensor:
        """Returns the numbers of the children present, of those of all children, (P, …)."""
        if len(self.present) == numbers.shape[0]:
            return numbers
        return self.kept((id(numbers), "chosen"), lambda: numbers[self._groups])

    def of_rows(self, numbers: torch.Tensor, ndim: int) -> torch.Tensor:
        """Returns each row's numbers, of those of all children (P, d): (rows, 1, …, d), with `ndim` axes."""
        kept = self.kept((id(numbers), "rows"), lambda: numbers[self.children])
        return kept.view(self.rows, *[1] * (ndim - 2), -1)

    def kept(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Returns what was made under this key since the rows are these."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
