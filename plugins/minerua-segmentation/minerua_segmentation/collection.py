"""Pairs of images and masks of one size, looked through once: for evaluators, and to learn from."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua.errors import ConfigError, StorageError
from minerua.settings import Settings

from .layouts import Layout, Pair, find_pairs, layout_of
from .reading import BadPair, Form, read_pair
from .settings import read_folders, read_size

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Collection", "Rows", "Source", "open_collection", "read_source"]


@dataclass(frozen=True)
class Source:
    """Where pictures come from and what they become.

    Args:
        folders: One per data set.
        forms: The layouts that they may have.
        form: What pictures become.
        most: How many pairs of each folder, the first ones by name; `None`: all.
        most_bad: How many pairs are left out because they cannot be used, before that is an error.
        cache: A folder where resized pictures are kept; `None`: they stay in memory.
    """

    folders: tuple[Path, ...]
    forms: tuple[Layout, ...]
    form: Form
    most: int | None = None
    most_bad: int = 0
    cache: Path | None = None


@dataclass(frozen=True, eq=False)
class Collection:
    """Pictures that were looked through.

    Args:
        ids: n names.
        images: Shape (n, h, w, 3), uint8, read-only.
        masks: Shape (n, h, w), bool, read-only.
        skipped: What was left out, and why.
        digest: Names files, their times and settings, for the cache.
    """

    ids: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    skipped: tuple[str, ...]
    digest: str

    @cached_property
    def positions(self) -> dict[str, int]:
        """Id → its place."""
        return {id: k for k, id in enumerate(self.ids)}

    @cached_property
    def content(self) -> str:
        """16 hexadecimal digits that name ids and pixels, on every machine the same."""
        digest = hashlib.sha256("\0".join(self.ids).encode())
        digest.update(self.images.tobytes())
        digest.update(self.masks.tobytes())
        return digest.hexdigest()[:16]

    def chosen(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and masks of these ids, in their order."""
        places = [self.positions[id] for id in ids]
        return self.images[places], self.masks[places]


class Rows:
    """A collection as rows to learn from: `(image, mask)`, float32 in [0, 1], each with a key that names it for ever.

    Args:
        collection: The pictures.
        flips: Whether `example` mirrors rows, each way with probability one half, mask and image alike.

    Example:
        >>> import numpy as np
        >>> picture = np.full((1, 8, 8, 3), 255, np.uint8)
        >>> rows = Rows(Collection(("a",), picture, picture[..., 0] > 0, (), ""))
        >>> rows.key(0), rows[0][0].max(), rows[0][1].shape
        ('a', np.float32(1.0), (8, 8))
    """

    def __init__(self, collection: Collection, *, flips: bool = False) -> None:
        self.collection, self.pure = collection, not flips
        if flips:
            self.example = self._mirrored

    def __len__(self) -> int:
        """How many."""
        return len(self.collection.ids)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns row i: shapes (h, w, 3) and (h, w)."""
        image, mask = self.collection.images[i], self.collection.masks[i]
        return image.astype("float32") / 255, mask.astype("float32")

    def key(self, i: int) -> str:
        """Returns the name of row i."""
        return self.collection.ids[i]

    def _mirrored(self, i: int, generator: Any) -> tuple[np.ndarray, np.ndarray]:
        import torch

        down, right = (1 - 2 * torch.randint(2, (2,), generator=generator)).tolist()
        image, mask = self[i]
        return image[::down, ::right].copy(), mask[::down, ::right].copy()


def read_source(told: Settings) -> Source:
    """Returns what the settings say of pictures; faults stay in `told`."""
    forms = layout_of(told.value("layout", "auto"))
    if isinstance(forms, str):
        told.fault(forms)
        forms = ()
    form = Form(
        read_size(told, 352),
        told.number("threshold", 0.5, least=0, most=0.99),
        told.whole("classes", None, least=2),
    )
    most, bad = told.whole("most", None), told.whole("most_bad", 0, least=0)
    return Source(read_folders(told), tuple(forms), form, most, bad, told.path("cache", None))


@lru_cache(maxsize=16)
def open_collection(source: Source) -> Collection:
    """Reads all pictures of a source, once per process.

    Pairs that are left out are told by a warning, one line each, and stand in `skipped`.

    Raises:
        ConfigError: Folders do not have the layout, or more pairs than `most_bad` cannot be used; lists all faults.
        StorageError: The cache cannot be written.
    """
    pairs = find_pairs(source.folders, source.forms)
    if source.most is not None:
        pairs = [pair for folder in source.folders for pair in _first(pairs, folder, source.most)]
    digest = _digest(pairs, source.form)
    found = _from_cache(source.cache, digest)
    if found is None:
        found = _read(pairs, source.form, digest)
        _to_cache(source.cache, found)
    _judge(found, source, len(pairs))
    return found


def _first(pairs: Sequence[Pair], folder: Path, most: int) -> list[Pair]:
    return [pair for pair in pairs if pair.image.parent.parent == folder][:most]


def _read(pairs: Sequence[Pair], form: Form, digest: str) -> Collection:
    import numpy as np

    images = np.empty((len(pairs), *form.size, 3), np.uint8)
    masks = np.empty((len(pairs), *form.size), bool)
    ids: list[str] = []
    skipped: list[str] = []
    for pair in pairs:
        found = _attempt(pair, form)
        if isinstance(found, str):
            skipped.append(found)
            continue
        images[len(ids)], masks[len(ids)] = found
        ids.append(pair.id)
    images, masks = images[: len(ids)], masks[: len(ids)]
    images.flags.writeable = masks.flags.writeable = False
    return Collection(tuple(ids), images, masks, tuple(skipped), digest)


def _attempt(pair: Pair, form: Form) -> tuple[np.ndarray, np.ndarray] | str:
    """Returns an image and its mask, or why they cannot be used."""
    try:
        return read_pair(pair, form)
    except BadPair as error:
        return f"{pair.image.parent.parent}: {error.message}"


def _judge(found: Collection, source: Source, pairs: int) -> None:
    """Refuses a collection with too many bad pairs, and tells of those that are left out."""
    where = ", ".join(map(str, source.folders))
    told = f"{len(found.skipped)} of {pairs} pairs of image and mask in {where} cannot be used"
    if len(found.skipped) > source.most_bad or not found.ids:
        raise ConfigError(f"{told}; mend them, or let up to most_bad: N be left out", found.skipped)
    if found.skipped:
        warnings.warn("\n  - ".join([f"{told} and are left out", *found.skipped]), stacklevel=3)


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _digest(pairs: Sequence[Pair], form: Form) -> str:
    """Names the files by path, size and time, and what becomes of them."""
    digest = hashlib.sha256(repr(form).encode())
    for pair in pairs:
        for path in (pair.image, pair.mask):
            state = path.stat()
            digest.update(f"{pair.id}\0{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _from_cache(folder: Path | None, digest: str) -> Collection | None:
    """Returns what was kept, its arrays mapped; the texts are written last, so that a half-written one is none."""
    import json

    import numpy as np

    if folder is None or not (folder / f"{digest}.json").is_file():
        return None
    try:
        words = json.loads((folder / f"{digest}.json").read_text("utf-8"))
        images, masks = (np.load(folder / f"{digest}-{part}.npy", mmap_mode="r") for part in ("images", "masks"))
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"the cache {folder} is damaged; delete {digest}*: {error}") from error
    return Collection(tuple(words["ids"]), images, masks, tuple(words["skipped"]), digest)


def _to_cache(folder: Path | None, found: Collection) -> None:
    import json

    import numpy as np

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, array in (("images", found.images), ("masks", found.masks)):
            half = folder / f"{found.digest}-{part}.{os.getpid()}.npy"
            np.save(half, array)
            half.replace(folder / f"{found.digest}-{part}.npy")
        half = folder / f"{found.digest}.{os.getpid()}"
        half.write_text(json.dumps({"ids": found.ids, "skipped": found.skipped}), "utf-8")
        half.replace(folder / f"{found.digest}.json")
    except OSError as error:
        raise StorageError(f"resized pictures cannot be kept in {folder}: {error.strerror or error}") from error
