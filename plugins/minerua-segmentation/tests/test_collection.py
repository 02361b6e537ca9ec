"""Folders of images and masks: every layout, every kind of bad file, resizing, the cache, and rows to learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from minerua_segmentation.collection import Rows, Source, open_collection, read_source
from minerua_segmentation.layouts import LAYOUTS, find_pairs, layout_of
from minerua_segmentation.reading import Form
from PIL import Image

from minerua.errors import ConfigError, StorageError
from minerua.settings import Settings

FORM = Form((12, 10))


def save_pair(folder, name, *, images="images", masks="masks", suffix="", shape=(12, 10), mask=None, kind="png"):
    """Writes an image and its mask; without `mask` its upper half is foreground."""
    if mask is None:
        mask = np.zeros(shape, np.uint8)
        mask[: shape[0] // 2] = 255
    image = np.random.default_rng(len(name)).integers(0, 255, (*shape, 3)).astype(np.uint8)
    for part, array, end in ((images, image, name), (masks, mask, f"{name}{suffix}")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{end}.{kind}")
    return folder


@pytest.fixture
def pairs(tmp_path):
    """A data set of three pairs."""
    for name in ("a", "b", "c"):
        save_pair(tmp_path / "set", name)
    return tmp_path / "set"


def source(*folders, form=FORM, layout="auto", **more):
    return Source(folders, tuple(layout_of(layout)), form, **more)


def faults(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return "\n".join([caught.value.message, *caught.value.faults])


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in LAYOUTS.items() for form in forms])
def test_every_form_of_every_layout_is_found_by_its_name_and_by_itself(tmp_path, name, form):
    save_pair(tmp_path, "a", images=form.images, masks=form.masks, suffix=form.mask_suffix)
    for asked in (name, "auto"):
        (pair,) = find_pairs([tmp_path], layout_of(asked))
        assert (pair.id, pair.mask.stem) == ("a", f"a{form.mask_suffix}")


def test_other_folders_are_a_layout_of_their_own(tmp_path):
    save_pair(tmp_path, "a", images="x", masks="y/z", suffix="-m")
    assert open_collection(source(tmp_path, layout={"images": "x", "masks": "y/z", "mask_suffix": "-m"})).ids == ("a",)


def test_files_that_are_no_pictures_and_superpixels_are_passed_over(pairs):
    (pairs / "images" / "notes.txt").write_text("nothing")
    (pairs / "images" / "a_superpixels.png").write_bytes(b"")
    assert open_collection(source(pairs)).ids == ("a", "b", "c")


def test_ids_of_several_data_sets_have_their_folders_before_them(tmp_path):
    for part in ("one", "two"):
        save_pair(tmp_path / part, "a")
    assert open_collection(source(tmp_path / "one", tmp_path / "two")).ids == ("one/a", "two/a")


def test_all_that_does_not_fit_together_is_said_at_once(tmp_path, pairs):
    (pairs / "masks" / "a.png").unlink()
    (pairs / "images" / "b.png").unlink()
    save_pair(pairs, "c", kind="bmp")
    said = faults(lambda: open_collection(source(pairs, tmp_path / "gone", tmp_path)))
    assert "images and masks do not fit together" in said
    assert "images: a has no mask a.*" in said
    assert "masks: b has no image b.*" in said
    assert "has 3 images in images/ and 3 masks in masks/" in said
    assert "has two pictures named c; keep one" in said
    assert "gone is no folder: " in said
    assert "has none of these folders: Imgs/ and GT/" in said


def test_a_folder_without_pictures_and_one_named_twice_are_refused(tmp_path, pairs):
    for part in ("images", "masks"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    assert "pictures end with .png .jpg" in faults(lambda: open_collection(source(tmp_path / "empty")))
    twice = faults(lambda: open_collection(source(pairs, pairs)))
    assert "set/a names two images; give data sets folders of different names" in twice


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pictures_are_read_as_they_are_at_their_own_size(pairs):
    found = open_collection(source(pairs))
    wanted = np.asarray(Image.open(pairs / "images" / "b.png"))
    assert np.array_equal(found.chosen(["b"])[0][0], wanted)
    assert found.masks[0, :6].all()
    assert not found.masks[0, 6:].any()
    assert not found.images.flags.writeable


def test_masks_are_cut_at_the_threshold_before_they_are_resized(tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :9] = 130
    save_pair(tmp_path, "a", shape=(16, 16), mask=mask)
    found = open_collection(source(tmp_path, form=Form((8, 8))))
    assert found.images.shape == (1, 8, 8, 3)
    assert found.masks[0].sum(1).tolist() == [5] * 8  # half of the fifth column is foreground
    assert not open_collection(source(tmp_path, form=Form((8, 8), threshold=0.4))).masks[0, :, 6:].any()


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(12, 10) > 0,
        np.eye(12, 10).astype(np.uint8) * 255,
        np.repeat(np.eye(12, 10).astype(np.uint8)[..., None] * 255, 3, 2),
        np.eye(12, 10).astype(np.uint16) * 65535,
    ],
    ids=["one bit", "grey", "grey as colours", "sixteen bits"],
)
def test_masks_of_every_depth_are_the_same_mask(tmp_path, mask):
    save_pair(tmp_path, "a", mask=mask)
    assert np.array_equal(open_collection(source(tmp_path)).masks[0], np.eye(12, 10) > 0)


def test_labels_are_foreground_from_one_on(tmp_path):
    save_pair(tmp_path, "a", mask=np.arange(120).reshape(12, 10).astype(np.uint8) % 3)
    assert open_collection(source(tmp_path, form=Form((12, 10), classes=3))).masks[0].sum() == 80


COLOURS = np.random.default_rng(0).integers(0, 255, (12, 10, 3)).astype(np.uint8)
BAD = {
    "colours": (COLOURS, None, "a.png has colours; a mask is grey, or holds labels (classes: how many)"),
    "size": (np.zeros((5, 4), np.uint8), None, "a.png is 12 × 10 and a.png is 5 × 4 pixels (height × width)"),
    "faint": (
        np.eye(12, 10).astype(np.uint8),
        None,
        "values up to 1 of 255, none above the threshold 0.5; if they are",
    ),
    "label": (np.full((12, 10), 7, np.uint8), 2, "has the label 7; with classes: 2 labels end at 1"),
    "float": (np.full((12, 10), -1.0, np.float32), None, "holds F values down to -1; a mask is grey or holds labels"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mask_that_cannot_be_used_says_why(tmp_path, what):
    mask, classes, text = BAD[what]
    kind = "tiff" if mask.dtype.kind == "f" else "png"
    save_pair(tmp_path, "a", mask=mask, kind=kind)
    assert text in faults(lambda: open_collection(source(tmp_path, form=Form((12, 10), classes=classes))))


def test_pictures_that_cannot_be_read_are_refused_together(pairs, monkeypatch):
    (pairs / "images" / "a.png").write_bytes(b"no picture")
    whole = (pairs / "masks" / "b.png").read_bytes()
    (pairs / "masks" / "b.png").write_bytes(whole[: len(whole) // 2])
    said = faults(lambda: open_collection(source(pairs)))
    assert "2 of 3 pairs of image and mask" in said
    assert "cannot be used; mend them, or let up to most_bad: N be left out" in said
    assert "a.png is no picture that can be read: cannot identify" in said
    assert "b.png is no picture that can be read" in said
    monkeypatch.setattr("minerua_segmentation.reading.MOST_PIXELS", 10)
    assert "c.png has 120 pixels; at most 10 are read" in faults(lambda: open_collection(source(pairs)))


def test_bad_pairs_that_are_put_up_with_are_told_and_left_out(pairs):
    (pairs / "images" / "b.png").write_bytes(b"no picture")
    with pytest.warns(
        UserWarning, match="1 of 3 pairs of image and mask in .* and are left out\n  - .*b.png is no pict"
    ):
        found = open_collection(source(pairs, most_bad=1))
    assert found.ids == ("a", "c")
    assert len(found.images) == 2
    assert len(found.skipped) == 1


# ── the cache, and learning ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_cached_is_what_was_read_until_a_file_changes(tmp_path, pairs):
    asked = source(pairs, cache=tmp_path / "cache")
    first = open_collection(asked)
    open_collection.cache_clear()
    second = open_collection(asked)
    assert isinstance(second.images, np.memmap)
    assert (second.ids, second.content) == (first.ids, first.content)
    assert np.array_equal(second.images, first.images)
    save_pair(pairs, "d")
    open_collection.cache_clear()
    assert open_collection(asked).ids == ("a", "b", "c", "d")


def test_a_damaged_cache_and_one_that_cannot_be_written_are_told(tmp_path, pairs):
    asked = source(pairs, cache=tmp_path / "cache")
    digest = open_collection(asked).digest
    (tmp_path / "cache" / f"{digest}-masks.npy").write_bytes(b"")
    open_collection.cache_clear()
    assert f"is damaged; delete {digest}*" in faults(lambda: open_collection(asked))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="resized pictures cannot be kept in"):
        open_collection(source(pairs, cache=tmp_path / "file" / "cache"))


def test_rows_are_images_and_masks_with_names_and_numbers_from_zero_to_one(pairs):
    rows = Rows(open_collection(source(pairs)))
    image, mask = rows[1]
    assert (len(rows), rows.key(1), rows.pure) == (3, "b", True)
    assert (image.dtype, mask.dtype, image.shape, mask.shape) == ("float32", "float32", (12, 10, 3), (12, 10))
    assert 0 <= image.min() <= image.max() <= 1
    assert set(mask.ravel()) == {0.0, 1.0}


def test_mirrored_rows_turn_image_and_mask_alike_and_depend_on_the_generator_alone(pairs):
    rows = Rows(open_collection(source(pairs)), flips=True)
    image, mask = rows[0]
    seen = set()
    for seed in range(20):
        drawn, again = (rows.example(0, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert np.array_equal(drawn[0], again[0])
        ways = [(d, r) for d in (1, -1) for r in (1, -1) if np.array_equal(drawn[0], image[::d, ::r])]
        assert len(ways) == 1
        assert np.array_equal(drawn[1], mask[:: ways[0][0], :: ways[0][1]])
        seen.add(ways[0])
    assert len(seen) == 4


def test_all_settings_that_are_wrong_are_said_at_once(tmp_path):
    given = {
        "path": [3],
        "layout": {"images": "a"},
        "size": 4,
        "threshold": 2,
        "classes": True,
        "most": "all",
        "cache": 7,
        "sise": 1,
    }
    told = Settings("the evaluator 'segmentation'", given, tmp_path)
    read_source(told)
    said = faults(told.done)
    expected = (
        f"path is [3]; expected a folder, or a list of folders, absolute or relative to {tmp_path}",
        "layout is {'images': 'a'}; a mapping has the texts images and masks, and may have mask_suffix",
        "size is 4; expected one side or [height, width], each from 8 to 4096 pixels",
        "threshold is 2; expected a number from 0 to 0.99",
        "classes is True; expected a whole number from 2 on",
        "most is 'all'; expected a whole number from 1 on",
        f"cache is 7; expected a path, absolute or relative to {tmp_path}",
        "no setting is named 'sise'; did you mean 'size'?",
        "the settings of the evaluator 'segmentation' cannot be used",
    )
    assert [text for text in expected if text not in said] == [] != expected
