"""The section `data` of a training file: where rows come from, what they are made into, how they are dealt out."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from minerua.errors import ConfigError
from minerua.learning.rows import seen
from minerua.learning.sections import Real, Section, Whole
from minerua.learning.splitting import SPLITS

WHOLE = "all"
"""The key of `path` where one file holds all rows, to be dealt out."""

SOURCES = ("arrays", "table", "images", "skill")
"""The keys that say where rows come from; a run has one of them."""


# ── kinds of values ──────────────────────────────────────────────────────────────────────────────────────────────────


def _several(value: Any) -> Any:
    """Takes one value for a list of one."""
    return (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _files(value: Any) -> Any:
    """Takes one path for a mapping."""
    return {WHOLE: value} if isinstance(value, str | Path) else value


def _known_splits(files: dict[str, Path]) -> dict[str, Path]:
    if WHOLE in files and len(files) == 1:
        return files
    wrong = [split for split in files if split not in SPLITS]
    if wrong or "train" not in files:
        raise ValueError(f"must be one path, or a mapping of train, validation and test to paths, found {list(files)}")
    return files


def _labels(value: Any) -> Any:
    """Takes a count of classes for the labels 0, 1, 2 and so on, and whole numbers for texts."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= MOST_CLASSES:
            raise ValueError(f"must be between 1 and {MOST_CLASSES} classes")
        return tuple(map(str, range(value)))
    if isinstance(value, list | tuple):
        if any(isinstance(label, bool) for label in value):
            raise ValueError("YAML reads yes, no, true and false as flags: write such labels in quotes")
        return tuple(str(label) if isinstance(label, int) else label for label in value)
    return value


MOST_CLASSES = 1_000_000
Reals = Annotated[tuple[Real, ...], pydantic.BeforeValidator(_several)]
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(_several)]
Files = Annotated[dict[str, Path], pydantic.BeforeValidator(_files), pydantic.AfterValidator(_known_splits)]


# ── where rows come from ─────────────────────────────────────────────────────────────────────────────────────────────


class ArraysConfig(Section):
    """Arrays on disk, mapped and never read whole; the first axis counts the rows.

    Args:
        path: A `.npz` or `.safetensors` file, one for all rows or one per split; `None` where `inputs` and `targets`
            are `.npy` files themselves.
        inputs: The name of the inputs' array in `path`; without a `path` the `.npy` file, or one per split.
        targets: The same for the targets; `None` with `labels.kind: inputs`.
    """

    path: Files | None = None
    inputs: Files = pydantic.Field(default_factory=lambda: {WHOLE: Path("inputs")})
    targets: Files | None = None

    @pydantic.model_validator(mode="after")
    def _agree(self) -> ArraysConfig:
        named = [files for files in (self.inputs, self.targets) if files is not None]
        if self.path is not None and any(WHOLE not in files for files in named):
            raise ValueError("with a path, inputs and targets are names of arrays in it, the same for every split")
        if self.path is None and len({tuple(sorted(files)) for files in named}) > 1:
            raise ValueError("inputs and targets must name files for the same splits")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The splits that have a file of their own, or `("all",)`."""
        return tuple(self.inputs if self.path is None else self.path)


class TableConfig(Section):
    """Rows of a CSV, JSONL or Parquet file.

    Args:
        path: One file for all rows, to be dealt out, or a mapping of `train`, `validation`, `test` to files.
        format: `csv`, `jsonl` or `parquet`; by default what the file's name says.
        inputs: Columns of numbers; several become one vector, one may also hold lists of equal shapes.
        text: Columns of text instead; one is the text, several become a mapping.
        label: The column of the target; `None` with `labels.kind: inputs`.
        key: The column that names a row; by default its inputs do.
        delimiter: What parts the columns of a CSV file.
        longest_row_bytes: A longer row is bad; bounds what a broken file can take of the memory.
    """

    path: Files
    format: Literal["csv", "jsonl", "parquet"] | None = None
    inputs: Names = ()
    text: Names = ()
    label: str | None = None
    key: str | None = None
    delimiter: str = pydantic.Field(default=",", min_length=1, max_length=1)
    longest_row_bytes: Whole = pydantic.Field(default=1 << 24, ge=1, le=1 << 30)

    @pydantic.model_validator(mode="after")
    def _columns(self) -> TableConfig:
        if bool(self.inputs) == bool(self.text):
            raise ValueError("name either columns of numbers in inputs, or columns of text in text")
        columns = self.inputs or self.text
        if len(set(columns)) < len(columns):
            raise ValueError("a column is named twice")
        if self.delimiter in '"\r\n':
            raise ValueError("the delimiter cannot be a quote or a line's end")
        return self


class ImagesConfig(Section):
    """A folder of images, and a CSV file that says what they show.

    Args:
        folder: Where the images are; what leads out of it is refused.
        labels: The CSV file, one for all rows or one per split.
        file: Its column with the images' paths, relative to `folder`; a path is the key of its row.
        label: Its column with the labels.
        mode: What pixels become: `RGB` (3 channels) or `L` (grey, one).
        most_pixels: A larger image is bad, whatever it would be resized to: a small file can claim any size.
    """

    folder: Path
    labels: Files
    file: str = "file"
    label: str = "label"
    mode: Literal["RGB", "L"] = "RGB"
    most_pixels: Whole = pydantic.Field(default=64_000_000, ge=1)


# ── what they become ─────────────────────────────────────────────────────────────────────────────────────────────────


class LabelsConfig(Section):
    """What the targets are.

    Args:
        kind: `class` (a class number, int64), `number` (float32), `text`, or `inputs` (the inputs themselves, as
            autoencoders and language models need). By default `class`; for arrays of fractions, or of more than one
            axis, `number`.
        classes: The labels in the order of their numbers, or how many there are (0, 1, 2 …). By default those found,
            sorted: as numbers if all of them are whole numbers, else as texts.
        fewest: The smallest number that may stand as a target.
        most: The largest.
    """

    kind: Literal["class", "number", "text", "inputs"] | None = None
    classes: Annotated[tuple[str, ...] | None, pydantic.BeforeValidator(_labels)] = None
    fewest: Real | None = None
    most: Real | None = None

    @pydantic.model_validator(mode="after")
    def _agree(self) -> LabelsConfig:
        limits = self.fewest is not None or self.most is not None
        if self.classes is not None and (self.kind not in (None, "class") or limits):
            raise ValueError("classes go with kind: class, and without fewest and most")
        if limits and self.kind not in (None, "number"):
            raise ValueError("fewest and most go with kind: number")
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise ValueError("classes must name at least one label, and each once")
        return self


class AugmentConfig(Section):
    """What happens to rows of the train split at random, a new draw for every row and epoch.

    Args:
        flip: The probability of mirroring along the last axis.
        shift: By how many elements at most the last two axes move, each way; what comes in is zero.
        noise: The standard deviation of normal noise, added after scaling.
    """

    flip: Real = pydantic.Field(default=0.0, ge=0, le=1)
    shift: Whole = pydantic.Field(default=0, ge=0)
    noise: Real = pydantic.Field(default=0.0, ge=0)

    @property
    def active(self) -> bool:
        """Whether anything happens."""
        return bool(self.flip or self.shift or self.noise)


class TransformsConfig(Section):
    """What becomes of the inputs' numbers, in this order: resize, scale, augment, normalise.

    Args:
        dtype: The dtype that a model sees; `int64` for ids, which nothing else is done to.
        scale: What numbers are multiplied with; by default 1/255 for images, else 1.
        resize: Height and width that images become (bilinear); without it all images must have one size.
        mean: Subtracted: one number, or one per element of the first axis (channels of images, columns of a table).
        std: Divided by; the same.
        augment: Random changes, in the train split only.
    """

    dtype: Literal["float32", "float64", "int64"] = "float32"
    scale: Real | None = None
    resize: tuple[Whole, Whole] | None = None
    mean: Reals = ()
    std: Reals = ()
    augment: AugmentConfig = AugmentConfig()

    @pydantic.model_validator(mode="after")
    def _agree(self) -> TransformsConfig:
        if self.resize is not None and not all(0 < side <= 1 << 15 for side in self.resize):
            raise ValueError("resize takes a height and a width between 1 and 32768")
        if any(not deviation > 0 for deviation in self.std):
            raise ValueError("std must be above 0")
        if self.dtype == "int64" and (self.scale is not None or self.mean or self.std or self.augment.active):
            raise ValueError("int64 is for ids, which are neither scaled, normalised nor augmented")
        return self


class TokenizerConfig(Section):
    """A skill that makes token ids of text.

    Args:
        skill: Its name; it takes `text` and returns `ids`, whole numbers.
        settings: What it is configured with.
        most: How many ids of a row are kept.
        pad: The id that shorter rows of a batch are filled up with; without it rows must come out equally long.
        mask: Whether inputs become a mapping of `ids` and `mask` (1 for an id of the row, 0 for padding).
    """

    skill: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    most: Whole | None = pydantic.Field(default=None, ge=1)
    pad: Whole | None = None
    mask: bool = False

    @pydantic.model_validator(mode="after")
    def _agree(self) -> TokenizerConfig:
        if self.mask and self.pad is None:
            raise ValueError("mask goes with pad: there is nothing to mask without padding")
        return self


class SplitConfig(Section):
    """How the rows of one file are dealt out, by a hash of each row's key; the shares sum to one.

    Args:
        train: What is learned from.
        validation: What chooses and stops; 0 for none.
        test: What only the report sees; 0 for none.
        seed: Seed of the deal. 0 whatever the run's own seed is, so that experts of several seeds share their tests;
            `None` for the run's seed.
    """

    train: Real = pydantic.Field(default=0.8, gt=0, le=1)
    validation: Real = pydantic.Field(default=0.1, ge=0, lt=1)
    test: Real = pydantic.Field(default=0.1, ge=0, lt=1)
    seed: Whole | None = 0

    @pydantic.model_validator(mode="after")
    def _sum(self) -> SplitConfig:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train, validation and test must sum to 1, found {total:g}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """Split → its share; those without rows are left out."""
        return {split: getattr(self, split) for split in SPLITS if getattr(self, split) > 0}


class DataConfig(Section):
    """Where a run's rows come from: one of `arrays`, `table`, `images` and `skill`, or none with rows made in Python.

    Args:
        arrays: Arrays on disk.
        table: A CSV, JSONL or Parquet file.
        images: A folder of images.
        skill: A plugin's skill with an output `dataset`; it is called once.
        settings: The skill's inputs, or what it is configured with.
        split: How one file's rows are dealt out. Where files are named: what of the train file is set aside for the
            splits without one; by default nothing.
        labels: What the targets are.
        transforms: What becomes of the inputs' numbers.
        tokenizer: What makes ids of text.
        most_bad: How many bad rows are put up with: a count, or below 1 a fraction of all rows.
        cache: A folder where the indexes of files are kept for the next run; by default a temporary one.
        check: Whether every image, and every row of a dataset with keys, is read before the first is used.
    """

    arrays: ArraysConfig | None = None
    table: TableConfig | None = None
    images: ImagesConfig | None = None
    skill: str | None = None
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    split: SplitConfig | None = None
    labels: LabelsConfig = LabelsConfig()
    transforms: TransformsConfig = TransformsConfig()
    tokenizer: TokenizerConfig | None = None
    most_bad: Real = pydantic.Field(default=0, ge=0)
    cache: Path | None = None
    check: bool = True

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"rows come from one place, found {' and '.join(given)}")
        if self.settings and self.skill is None:
            raise ValueError("settings go with skill")
        if self.most_bad > 1 and not self.most_bad.is_integer():
            raise ValueError("most_bad is a count of rows, or a fraction below 1")
        return self

    @pydantic.model_validator(mode="after")
    def _fitting(self) -> DataConfig:
        text = self.table is not None and bool(self.table.text)
        if self.tokenizer is not None and not text:
            raise ValueError("a tokenizer goes with columns of text: table.text")
        if self.transforms.resize is not None and self.images is None:
            raise ValueError("resize goes with images")
        if text and self.transforms != TransformsConfig():
            raise ValueError("transforms are for numbers; text stays text, or becomes ids through a tokenizer")
        return self


# ── every fault of a file at once ────────────────────────────────────────────────────────────────────────────────────


def read_data_config(content: Mapping[str, Any]) -> DataConfig:
    """Checks a `data` section.

    Args:
        content: What YAML or a Python program says, as plain mappings and lists.

    Raises:
        ConfigError: With one fault per mistake: its place, what was found, what to write instead.

    Example:
        >>> read_data_config({"tabel": {}})
        Traceback (most recent call last):
        minerua.errors.ConfigError: the section data cannot be used
          - tabel: unknown key; did you mean 'table'?
    """
    try:
        return DataConfig.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError("the section data cannot be used", faults_of(error, DataConfig)) from error


def faults_of(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> list[str]:
    """Returns one line per mistake that a model found, at any depth.

    Args:
        error: What pydantic raised.
        model: The model that was asked.
    """
    return [_fault(fault, model) for fault in error.errors(include_url=False)]


def _fault(fault: Any, model: type[pydantic.BaseModel]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = list(_section(model, fault["loc"][:-1]).model_fields)
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{place}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{place}: missing; this key is required"
    found = "" if isinstance(fault["input"], dict | pydantic.BaseModel) else f", found {seen(fault['input'])}"
    return f"{place or 'the section'}: {fault['msg'].removeprefix('Value error, ')}{found}"


def _section(model: type[pydantic.BaseModel], loc: tuple[Any, ...]) -> type[pydantic.BaseModel]:
    """Returns the model at a place, by the annotations on the way."""
    for part in loc:
        field = model.model_fields.get(str(part))
        for candidate in _alternatives(field.annotation if field else None):
            if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
                model = candidate
    return model


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
