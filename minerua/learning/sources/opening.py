"""From a `data` section, or a dataset made in Python, to one source per file that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError, MineruaError
from minerua.learning.data_config import WHOLE, ArraysConfig, DataConfig, ImagesConfig, TableConfig
from minerua.learning.sources.arrays import ArrayRows, array_file, in_memory
from minerua.learning.sources.factories import dataset_of, named_skill
from minerua.learning.sources.images import ImageRows
from minerua.learning.sources.index import IndexFolder
from minerua.learning.sources.objects import ObjectRows
from minerua.learning.sources.parquet import ParquetTable
from minerua.learning.sources.source import Source
from minerua.learning.sources.tables import TextTable, format_of
from minerua.learning.splitting import SPLITS
from minerua.values import Skill

AnySource = Source | ObjectRows


def open_sources(
    config: DataConfig, *, folder: Path, skills: Mapping[str, Skill], dataset: Any, indexes: IndexFolder
) -> dict[str, AnySource]:
    """Opens everything that a run reads.

    Args:
        config: The section.
        folder: Where relative paths begin.
        skills: For factories.
        dataset: Rows made in Python, or `None`.
        indexes: Where indexes of files are kept.

    Returns:
        Split → its source, or `"all"` → the one whose rows are dealt out.

    Raises:
        ConfigError: With all faults of all files.
    """
    if dataset is not None:
        return _given(config, dataset, "dataset")
    if config.skill is not None:
        return _given(config, dataset_of(named_skill(skills, config.skill), config.settings, folder), config.skill)
    if config.table is not None:
        table = config.table
        return _each(table.path, lambda split: _table(folder / table.path[split], table, config, indexes))
    if config.images is not None:
        images = config.images.model_copy(update={"folder": folder / config.images.folder})
        return _each(images.labels, lambda split: _images(folder / images.labels[split], images, config))
    if config.arrays is not None:
        arrays = config.arrays
        return _each(dict.fromkeys(arrays.files), lambda split: _arrays(split, arrays, config, folder))
    raise ConfigError("data names no rows: set one of arrays, table, images and skill, or give a dataset in Python")


def _each(splits: Mapping[str, Any], opened: Callable[[str], AnySource]) -> dict[str, AnySource]:
    """Opens one source per split; what is wrong with one does not hide what is wrong with the next."""
    sources: dict[str, AnySource] = {}
    faults: list[str] = []
    for split in splits:
        _attempt(split, opened, sources, faults)
    if faults:
        raise ConfigError("the data cannot be read", faults)
    return sources


def _attempt(split: str, opened: Callable[[str], AnySource], sources: dict[str, AnySource], faults: list[str]) -> None:
    try:
        sources[split] = opened(split)
    except MineruaError as error:
        place = "" if split == WHOLE else f"{split}: "
        faults += [f"{place}{error.message}: {fault}" for fault in error.faults] or [place + error.message]


def _table(path: Path, table: TableConfig, config: DataConfig, indexes: IndexFolder) -> Source:
    kind = ParquetTable if format_of(path, table) == "parquet" else TextTable
    if table.label is None and config.labels.kind != "inputs":
        raise ConfigError("table.label: missing; name the column of the target, or set labels.kind to inputs")
    return kind(path, table, config.labels, dtype=config.transforms.dtype, indexes=indexes)


def _images(path: Path, images: ImagesConfig, config: DataConfig) -> Source:
    return ImageRows(path, images, config.labels, config.transforms, check=config.check)


def _arrays(split: str, arrays: ArraysConfig, config: DataConfig, folder: Path) -> Source:
    def found(files: dict[str, Path]) -> Any:
        if arrays.path is not None:
            return array_file(folder / arrays.path[split], str(files[WHOLE]))
        return array_file(folder / files[split], None)

    targets = None if arrays.targets is None else found(arrays.targets)
    return ArrayRows(found(arrays.inputs), targets, config.labels, dtype=config.transforms.dtype)


# ── made in Python ───────────────────────────────────────────────────────────────────────────────────────────────────


def _given(config: DataConfig, dataset: Any, name: str) -> dict[str, AnySource]:
    if isinstance(dataset, Mapping) and "train" in dataset and set(dataset) <= set(SPLITS):
        return _each(dataset, lambda split: _one(config, dataset[split], f"{name}.{split}"))
    return _each({WHOLE: None}, lambda _: _one(config, dataset, name))


def _one(config: DataConfig, dataset: Any, name: str) -> AnySource:
    """Takes arrays as arrays, and everything else as a dataset with rows of its own."""
    pair = _pair(dataset)
    if pair is not None:
        inputs = in_memory(pair[0], f"{name}.inputs")
        targets = None if pair[1] is None else in_memory(pair[1], f"{name}.targets")
        return ArrayRows(inputs, targets, config.labels, dtype=config.transforms.dtype)
    own = DataConfig(most_bad=config.most_bad, transforms=config.transforms, tokenizer=config.tokenizer)
    if own != DataConfig(most_bad=config.most_bad):
        raise ConfigError(f"transforms and tokenizer go with rows that minerua reads; {name} makes rows of its own")
    return ObjectRows(dataset, name, config.labels, check=config.check)


def _pair(dataset: Any) -> tuple[Any, Any] | None:
    """Returns inputs and targets of a pair of arrays, or of a mapping with these names."""
    if isinstance(dataset, Mapping) and "inputs" in dataset and set(dataset) <= {"inputs", "targets"}:
        return dataset["inputs"], dataset.get("targets")
    if isinstance(dataset, tuple) and len(dataset) == 2 and all(hasattr(part, "shape") for part in dataset):
        return dataset[0], dataset[1]
    return None
