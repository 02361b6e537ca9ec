"""Where images and their masks lie: the layouts of the field's data sets, and any other pair of folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minerua.errors import ConfigError, unknown

__all__ = ["LAYOUTS", "PICTURES", "Layout", "Pair", "find_pairs", "layout_of"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Endings of files that are pictures; others, such as ISIC's tables of superpixels, are passed over."""


@dataclass(frozen=True)
class Layout:
    """A folder of images beside a folder of masks.

    Args:
        images: The folder of the images, relative to the data set's.
        masks: The folder of the masks.
        mask_suffix: What a mask's name has after its image's, before the ending.
    """

    images: str
    masks: str
    mask_suffix: str = ""


LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "cod": (Layout("Imgs", "GT"), Layout("Image", "GT_Object"), Layout("Images", "GT")),
    "polyp": (Layout("images", "masks"), Layout("Original", "Ground Truth")),
    "isic": (
        Layout("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
        Layout("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth", "_segmentation"),
        Layout("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "_segmentation"),
        Layout("images", "masks", "_segmentation"),
    ),
    "leaf": (Layout("images", "masks"), Layout("image", "mask")),
}
"""Name → the forms in which such data sets are passed around: COD10K and CAMO; Kvasir and CVC-612; ISIC; leaf sets."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Args:
        id: The image's name without its ending; with the data set's folder before it where there are several.
        image: The file.
        mask: The file.
    """

    id: str
    image: Path
    mask: Path


def layout_of(given: object) -> Sequence[Layout] | str:
    """Returns the forms that a setting stands for, or what is wrong with it.

    Args:
        given: The name of a layout, `auto`, or a mapping with `images`, `masks` and perhaps `mask_suffix`.

    Example:
        >>> layout_of({"images": "a", "masks": "b"})
        (Layout(images='a', masks='b', mask_suffix=''),)
        >>> layout_of("kod")
        "no layout is named 'kod'; did you mean 'cod'? Known: auto, cod, isic, leaf, polyp"
    """
    if isinstance(given, Mapping):
        keys = ("images", "masks", "mask_suffix")
        if set(given) <= set(keys) and set(given) >= set(keys[:2]) and all(isinstance(v, str) for v in given.values()):
            return (Layout(**given),)
        return f"layout is {dict(given)!r:.80}; a mapping has the texts images and masks, and may have mask_suffix"
    if given == "auto":
        return tuple(dict.fromkeys(form for forms in LAYOUTS.values() for form in forms))
    return LAYOUTS.get(str(given)) or unknown("layout", str(given)[:60], ("auto", *LAYOUTS))


def find_pairs(folders: Sequence[Path], forms: Sequence[Layout]) -> list[Pair]:
    """Returns the pairs of one or several data sets, sorted by id within each.

    Args:
        folders: One per data set.
        forms: In which they may be; the one in which most images have masks is taken; of equal ones the first.

    Raises:
        ConfigError: A folder has none of the forms, or has images without masks, masks without images, or two of a
            name; lists all faults of all folders.
    """
    faults: list[str] = []
    pairs = [pair for folder in folders for pair in _pairs_of(folder, forms, faults)]
    if len(folders) > 1:
        pairs = [Pair(f"{pair.image.parent.parent.name}/{pair.id}", pair.image, pair.mask) for pair in pairs]
    ids = [pair.id for pair in pairs]
    faults += [f"{id} names two images; give data sets folders of different names" for id in _twice(ids)]
    if not pairs and not faults:
        faults.append(f"no image in {', '.join(map(str, folders))}; pictures end with {' '.join(PICTURES)}")
    if faults:
        raise ConfigError("images and masks do not fit together", faults)
    return pairs


def _pairs_of(folder: Path, forms: Sequence[Layout], faults: list[str]) -> list[Pair]:
    there = [form for form in forms if (folder / form.images).is_dir() and (folder / form.masks).is_dir()]
    if not there:
        known = "; ".join(f"{form.images}/ and {form.masks}/" for form in forms)
        faults.append(f"{folder} {'has none of these folders' if folder.is_dir() else 'is no folder'}: {known}")
        return []
    form = max(there, key=lambda form: _fits(folder, form))  # of equal ones the first
    return _matched(folder, form, faults)


def _fits(folder: Path, form: Layout) -> int:
    """Returns how many images have their masks, if this is the form."""
    masks = {name for name, _ in _pictures(folder / form.masks)}
    return sum(f"{name}{form.mask_suffix}" in masks for name, _ in _pictures(folder / form.images))


def _matched(folder: Path, form: Layout, faults: list[str]) -> list[Pair]:
    images, masks = _pictures(folder / form.images), _pictures(folder / form.masks)
    named = {name.removesuffix(form.mask_suffix): path for name, path in masks}
    for where, found in ((form.images, images), (form.masks, masks)):
        faults += [
            f"{folder / where} has two pictures named {name}; keep one" for name in _twice([n for n, _ in found])
        ]
    lonely = [name for name, _ in images if name not in named]
    strange = sorted(set(named) - {name for name, _ in images})
    if lonely or strange:
        faults.append(f"{folder} has {len(images)} images in {form.images}/ and {len(masks)} masks in {form.masks}/")
    faults += [f"{folder / form.images}: {name} has no mask {name}{form.mask_suffix}.*" for name in lonely]
    faults += [f"{folder / form.masks}: {name}{form.mask_suffix} has no image {name}.*" for name in strange]
    return [Pair(name, path, named[name]) for name, path in images if name in named]


def _pictures(folder: Path) -> list[tuple[str, Path]]:
    """Returns names without ending and files, sorted by name; links and hidden files are files like others."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file()]
    pictures = sorted((path.stem, path) for path in found)
    return [(name, path) for name, path in pictures if not name.endswith("_superpixels")]  # ISIC 2017 has both in one


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
