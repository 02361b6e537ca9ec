"""A run's data: looked through, dealt out, and ready to be read in any order by any number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from minerua.errors import ConfigError
from minerua.learning.data_config import WHOLE, DataConfig, SplitConfig
from minerua.learning.rows import LISTED, BadRows, DataReport, RowError
from minerua.learning.sources.factories import named_skill
from minerua.learning.sources.index import IndexFolder
from minerua.learning.sources.labels import in_order, remapped
from minerua.learning.sources.objects import ObjectRows
from minerua.learning.sources.opening import AnySource, open_sources
from minerua.learning.sources.source import Scanned, Source
from minerua.learning.sources.tokens import PadRows, Tokens
from minerua.learning.sources.transforms import Transform
from minerua.learning.splitting import SPLITS, deal, repeats
from minerua.values import Skill

if TYPE_CHECKING:
    import torch


class Dataset(Protocol):
    """Rows of one split.

    Beside these it may have `example(i, generator)`, which draws augmentation; `collate(rows)`, which makes a batch;
    and `pure`: whether `d[i]` draws nothing at random.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...

    def key(self, i: int) -> str:
        """Returns what names row i whatever other rows there are: 16 hexadecimal digits."""
        ...


@dataclass(frozen=True, eq=False)
class Splits:
    """A run's data.

    Args:
        train: What is learned from.
        validation: What chooses and stops; `None` where none was asked for.
        test: What only the report sees; the same.
        report: What was found, and what became of it.
        digest: 32 hexadecimal digits that name the rows of all splits, in order, and the classes: a run that is resumed
            must find them again.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    report: DataReport
    digest: str

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels by class number, to be kept with the model; `None` where targets are no classes."""
        return self.report.classes

    @property
    def lengths(self) -> dict[str, int]:
        """Split → its rows; those that were not asked for are left out."""
        return dict(self.report.splits)


# ── one split ────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class Rows:
    """Rows of a source, as a model sees them; can be sent to workers, and read by all of them.

    Args:
        source: Where they are.
        positions: Shape (n,), int64: which of its usable rows.
        hashes: Of all its usable rows.
        numbers: Class numbers of all its usable rows, or `None`.
        mirrored: Whether the target is what the model is given.
        transform: What becomes of numbers.
        tokens: What becomes of text.
        collate: What makes a batch; `None` for torch's own way.
    """

    pure = True

    def __init__(
        self,
        source: Source,
        positions: np.ndarray,
        hashes: np.ndarray,
        *,
        numbers: np.ndarray | None,
        mirrored: bool,
        transform: Transform,
        tokens: Tokens | None,
        collate: PadRows | None,
    ) -> None:
        self._source, self._positions = source, positions
        self._keys = hashes[positions]
        self._numbers = None if numbers is None else numbers[positions]
        self._mirrored, self._transform, self._tokens, self.collate = mirrored, transform, tokens, collate

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.drawn(i, None)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def drawn(self, i: int, generator: torch.Generator | None) -> tuple[Any, Any]:
        """Returns inputs and target of row i, augmented by what the generator draws.

        Raises:
            IndexError: If there is no such row.
            ConfigError: If the row can no longer be read.
        """
        position = int(self._positions[i])
        try:
            inputs, target = self._source.read(position)
            inputs = self._seen(inputs, generator)
        except RowError as error:
            raise RowError(f"{self._source.place(position)}: {error.reason}", error.detail) from error
        if self._mirrored:
            return inputs, inputs
        return inputs, target if self._numbers is None else int(self._numbers[i])

    def _seen(self, inputs: Any, generator: torch.Generator | None) -> Any:
        if isinstance(inputs, np.ndarray):
            return self._transform.apply(inputs, generator)
        return inputs if self._tokens is None else self._tokens.of(inputs)

    def key(self, i: int) -> str:
        """Returns what names row i: 16 hexadecimal digits of its key."""
        return f"{int(self._keys[i]):016x}"


@final
class DrawnRows:
    """Rows that change at random each time they are learned from; without a generator they are as they are.

    Args:
        rows: What is changed.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self.collate = rows, rows.collate

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self._rows[i]

    def example(self, i: int, generator: torch.Generator) -> tuple[Any, Any]:
        """Returns row i as the generator's draws change it: the same state, the same bits."""
        return self._rows.drawn(i, generator)

    def key(self, i: int) -> str:
        """Returns what names row i."""
        return self._rows.key(i)


@final
class Picked:
    """Some rows of a dataset that Python made; what else it offers (`example`, `collate`, `pure`) is offered on.

    Args:
        source: The dataset.
        positions: Shape (n,), int64: which of its usable rows.
        hashes: Of all its usable rows.
    """

    def __init__(self, source: ObjectRows, positions: np.ndarray, hashes: np.ndarray) -> None:
        self._source, self._positions, self._keys = source, positions, hashes[positions]
        self.collate = getattr(source.dataset, "collate", None)
        self.pure = bool(getattr(source.dataset, "pure", _draws_nothing(source.dataset)))
        if hasattr(source.dataset, "example"):
            self.example = self._example

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self._source, "positions": self._positions, "keys": self._keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"], np.arange(0), state["keys"])
        self._positions, self._keys = state["positions"], state["keys"]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> Any:
        return self._source.read(int(self._positions[i]))

    def _example(self, i: int, generator: torch.Generator) -> Any:
        return self._source.dataset.example(self._source.number(int(self._positions[i])), generator)

    def key(self, i: int) -> str:
        """Returns what names row i: 16 hexadecimal digits of its key."""
        return f"{int(self._keys[i]):016x}"


def _draws_nothing(dataset: Any) -> bool:
    """Whether a dataset is known to give the same rows each time, and to leave the random generators alone."""
    return isinstance(dataset, list | tuple) or f"{type(dataset).__module__}.{type(dataset).__name__}" == (
        "torch.utils.data.dataset.TensorDataset"
    )


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class DatasetManager:
    """Finds a run's rows, looks through them, and deals them out.

    Args:
        config: The section `data`.
        skills: Skills by name, for factories and tokenizers.
        folder: Where relative paths begin: the folder of the training file.
        seed: The run's; used for the deal only where the config says `split.seed: null`.
        dataset: Rows made in Python, in place of a source in the config: a pair of arrays or tensors, a mapping of
            `inputs` and `targets`, a `torch.utils.data` dataset, a list of pairs; or a mapping of `train`, `validation`
            and `test` to such.

    Example:
        >>> x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
        >>> splits = DatasetManager(DataConfig(), dataset=(x, y)).prepare()
        >>> sum(splits.lengths.values()), splits.classes
        (20, ('0', '1'))
    """

    def __init__(
        self,
        config: DataConfig,
        skills: Mapping[str, Skill] | None = None,
        folder: str | Path = ".",
        seed: int = 0,
        *,
        dataset: Any = None,
    ) -> None:
        self._config, self._skills, self._folder, self._seed = config, skills or {}, Path(folder), seed
        self._dataset = dataset

    def prepare(self) -> Splits:
        """Looks at every row once, and deals the usable ones out.

        The first look at a CSV, JSONL or Parquet file takes some seconds per million rows; with `cache` set, the next
        run finds the index and looks at nothing as long as the file's size and time are the same.

        Raises:
            ConfigError: If files are missing, more rows are bad than `most_bad` allows, or a split is empty; all
                faults at once, the first 100 bad rows among them.
            StorageError: If an index cannot be written.
        """
        config = self._config
        given = any(getattr(config, key) is not None for key in ("arrays", "table", "images", "skill"))
        if self._dataset is not None and given:
            raise ConfigError("rows come from one place: leave out the dataset, or the source in the section data")
        cache = None if config.cache is None else self._folder / config.cache
        tokens = self._tokens()
        sources = open_sources(
            config, folder=self._folder, skills=self._skills, dataset=self._dataset, indexes=IndexFolder(cache)
        )
        bad = BadRows()
        found = {split: source.scan(bad) for split, source in sources.items()}
        total = bad.count + sum(len(scanned.hashes) for scanned in found.values())
        self._refuse_bad(bad, total)
        classes = self._classes(sources, found)
        dealt = self._dealt(found)
        _refuse_empty(dealt, total - bad.count)
        made = {
            split: self._made(split, sources[part], found[part], positions, classes, tokens)
            for split, (part, positions) in dealt.items()
        }
        report = _report(found, dealt, bad, total, classes)
        digest = _digest(found, dealt, classes)
        return Splits(made["train"], made.get("validation"), made.get("test"), report, digest)

    def _tokens(self) -> Tokens | None:
        if self._config.tokenizer is None:
            return None
        return Tokens(self._config.tokenizer, named_skill(self._skills, self._config.tokenizer.skill), self._folder)

    def _refuse_bad(self, bad: BadRows, total: int) -> None:
        most = self._config.most_bad
        allowed = most * total if most < 1 else most
        if bad.count > allowed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in bad.reasons.items())
            more = [f"and {bad.count - LISTED} more"] if bad.count > LISTED else []
            raise ConfigError(
                f"{bad.count} of {total} rows are bad ({reasons}), and data.most_bad allows {allowed:g} of them; "
                "mend them, or raise it",
                [*map(str, bad.listed), *more],
            )

    def _classes(self, sources: Mapping[str, AnySource], found: Mapping[str, Scanned]) -> tuple[str, ...] | None:
        """Returns the classes: the declared ones, or else those of all splits together."""
        if self._config.labels.classes is not None:
            return self._config.labels.classes
        names = [name for scanned in found.values() for name in scanned.names]
        is_class = any(len(scanned.codes) for scanned in found.values())
        return in_order(names) if is_class else None

    def _dealt(self, found: Mapping[str, Scanned]) -> dict[str, tuple[str, np.ndarray]]:
        """Returns for every split whose source it takes, and which usable rows."""
        split = self._config.split
        if WHOLE in found:
            split = split or SplitConfig()
            main = WHOLE
        else:
            split = split or SplitConfig(train=1, validation=0, test=0)
            main = "train"
        taken = [name for name in split.fractions if name != "train" and name in found]
        if taken:
            raise ConfigError(
                f"data.split sets rows aside for {' and '.join(taken)}, which has a file of its own; set its share to 0"
            )
        seed = self._seed if split.seed is None else split.seed
        parts = deal(found[main].hashes, split.fractions, seed=seed)
        named = {name: (name, np.arange(len(s.hashes))) for name, s in found.items() if name not in (WHOLE, "train")}
        dealt = {**{name: (main, positions) for name, positions in parts.items()}, **named}
        return {name: dealt[name] for name in SPLITS if name in dealt}

    def _made(
        self,
        split: str,
        source: AnySource,
        scanned: Scanned,
        positions: np.ndarray,
        classes: tuple[str, ...] | None,
        tokens: Tokens | None,
    ) -> Dataset:
        if isinstance(source, ObjectRows):
            return Picked(source, positions, scanned.hashes)
        config = self._config
        transform = Transform(config.transforms, scale=1 / 255 if config.images is not None else 1.0)
        self._try(source, int(positions[0]), transform)
        mirrored = config.labels.kind == "inputs"
        is_class = classes is not None and len(scanned.codes) > 0
        pad = config.tokenizer.pad if config.tokenizer is not None else None
        rows = Rows(
            source,
            positions,
            scanned.hashes,
            numbers=remapped(scanned.codes, scanned.names, classes or ()) if is_class else None,
            mirrored=mirrored,
            transform=transform,
            tokens=tokens,
            collate=None if pad is None or config.tokenizer is None else _padding(pad, config.tokenizer.mask, mirrored),
        )
        return DrawnRows(rows) if split == "train" and transform.augments else rows

    def _try(self, source: Source, position: int, transform: Transform) -> None:
        """Refuses transforms that do not fit the rows."""
        inputs, _ = source.read(position)
        faults = transform.faults(inputs.shape) if isinstance(inputs, np.ndarray) else []
        if faults:
            raise ConfigError("the transforms do not fit the rows", faults)


def _padding(pad: int, mask: bool, mirrored: bool) -> PadRows:
    return PadRows(pad, mask=mask, targets=mirrored)


def _refuse_empty(dealt: Mapping[str, tuple[str, np.ndarray]], usable: int) -> None:
    empty = [split for split, (_, positions) in dealt.items() if len(positions) == 0]
    if empty:
        raise ConfigError(
            f"{' and '.join(empty)} would be empty: {usable} usable rows were dealt out by their keys; "
            "give more rows, or that split a larger share, or a share of 0 if none is wanted"
        )


def _report(
    found: Mapping[str, Scanned],
    dealt: Mapping[str, tuple[str, np.ndarray]],
    bad: BadRows,
    total: int,
    classes: tuple[str, ...] | None,
) -> DataReport:
    overlaps = {}
    if "train" in found and len(found) > 1:
        known = found["train"].hashes
        overlaps = {s: int(np.isin(scan.hashes, known).sum()) for s, scan in found.items() if s != "train"}
    return DataReport(
        rows=total,
        bad=bad.count,
        reasons=dict(bad.reasons),
        listed=tuple(bad.listed),
        blank_lines=sum(scanned.blank_lines for scanned in found.values()),
        duplicates=sum(repeats(scanned.hashes) for scanned in found.values()),
        overlaps=overlaps,
        splits={split: len(positions) for split, (_, positions) in dealt.items()},
        classes=classes,
        checked=all(scanned.checked for scanned in found.values()),
    )


def _digest(
    found: Mapping[str, Scanned], dealt: Mapping[str, tuple[str, np.ndarray]], classes: tuple[str, ...] | None
) -> str:
    digest = hashlib.blake2b(repr(classes).encode(), digest_size=16)
    for split, (part, positions) in dealt.items():
        digest.update(f"{split}{len(positions)}".encode())
        digest.update(np.ascontiguousarray(found[part].hashes[positions]).data)
    return digest.hexdigest()
