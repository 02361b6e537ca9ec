"""The ways in and out: images, words and labels; and what they say to files and texts that are out to harm."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minerua.errors import ChainError, StepFailed

WORDS = {"<padding>": 0, "<unknown>": 1, "a": 2, "cat": 3}


def png_of(width, height, rows=b""):
    """A PNG that says it has this size, whatever follows."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def picture(workshop):
    """A gradient of 8 × 6 colours."""
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(pixels).save(workshop.folder / "picture.png")
    return pixels


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_of_the_right_size_is_read_pixel_by_pixel(workshop, picture):
    path = workshop.folder / "picture.png"
    as_bytes = workshop.edge("image-file", height=6, width=8, dtype="uint8")
    np.testing.assert_array_equal(as_bytes.call(path=path)["image"], picture[None])
    as_floats = workshop.edge("image-file", height=6, width=8)
    found = as_floats.call(path=path)["image"]
    np.testing.assert_allclose(found, picture[None] / 255, atol=1e-6)
    assert (found.dtype, found.shape) == (np.float32, as_floats.outputs["image"].shape)
    assert not as_floats.pure


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("stored", ["L", "RGB", "RGBA", "P", "LA", "I;16"])
def test_every_kind_of_image_becomes_what_was_asked_for(workshop, mode, channels, stored):
    Image.new(stored, (9, 5)).save(workshop.folder / "odd.png")
    skill = workshop.edge("image-file", height=3, width=4, mode=mode)
    assert skill.call(path=workshop.folder / "odd.png")["image"].shape == (1, 3, 4, channels)


def test_an_image_is_turned_as_its_camera_says(workshop):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 4)).save(workshop.folder / "turned.jpg", exif=turned)
    skill = workshop.edge("image-file", height=8, width=4, dtype="uint8")
    assert skill.call(path=workshop.folder / "turned.jpg")["image"].shape == (1, 8, 4, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image that can be read, or was cut off"),
        (b"GIF89a and no more", "is not an image that can be read, or was cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "is not an image that can be read, or was cut off"),
        (png_of(8, 8, bytes(20)), "is not an image that can be read, or was cut off"),
        (png_of(9000, 9000), "has 81000000 pixels; at most 64000000 are read .setting most_pixels"),
        (png_of(60000, 60000), "would unpack to far more than an image should"),
        (png_of(11000, 11000), "would unpack to far more|has 121000000 pixels"),
    ],
)
def test_files_that_are_no_images_or_far_too_large_ones_are_refused(workshop, content, message):
    (workshop.folder / "bad.png").write_bytes(content)
    with pytest.raises(StepFailed, match=message):
        workshop.edge("image-file", height=4, width=4).call(path=workshop.folder / "bad.png")


def test_an_image_that_was_cut_off_anywhere_is_refused(workshop, picture):
    content = (workshop.folder / "picture.png").read_bytes()
    skill = workshop.edge("image-file", height=4, width=4)
    for length in range(0, len(content) - 24, 5):  # the last bytes are sums and say that it ends
        (workshop.folder / "cut.png").write_bytes(content[:length])
        with pytest.raises(StepFailed, match=r"cut\.png"):
            skill.call(path=workshop.folder / "cut.png")


def test_a_path_that_is_no_file_is_told(workshop):
    skill = workshop.edge("image-file", height=4, width=4)
    for path in (workshop.folder, workshop.folder / "gone.png"):
        with pytest.raises(StepFailed, match=r"there is no image file .*; relative paths begin in"):
            skill.call(path=path)


def test_settings_of_an_image_are_checked_together(workshop):
    with pytest.raises(ChainError) as caught:
        workshop.edge("image-file", width=-1, mode="CMYK", dtype="float64", most_pixels=0)
    text = str(caught.value)
    assert "the settings of the skill 'image-file' cannot be used" in text
    assert "height is missing" in text
    assert "width is -1; expected a whole number from 1 to 16384" in text
    assert "mode is 'CMYK'; expected one of RGB, L" in text
    assert "dtype is 'float64'; expected one of float32, uint8" in text
    assert "most_pixels is 0" in text


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokens(workshop, text, entries=None, length=4):
    (workshop.folder / "words.json").write_text(json.dumps(WORDS if entries is None else entries))
    return workshop.edge("word-tokens", vocabulary="words.json", length=length).call(text=text)["tokens"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat", [2, 3, 0, 0]),
        ("a dog, a CAT; a cat!", [2, 1, 2, 3]),
        ("", [0, 0, 0, 0]),
        ("…!? <padding>", [1, 0, 0, 0]),
        ("cat\ud800\0cat", [3, 3, 0, 0]),
        ("Ünïcödé", [1, 0, 0, 0]),
        ("a " * 1_000_000, [2, 2, 2, 2]),
    ],
)
def test_words_become_numbers_and_the_rest_padding(workshop, text, expected):
    found = tokens(workshop, text)
    assert (found.tolist(), found.dtype) == ([expected], np.int64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold a JSON object word → number"),
        ("{}", "must hold a JSON object word → number"),
        ('{"a": true, "b": -1}', "the number of 'a' is True, not a count"),
        ('{"a": 1}', "has no <padding>"),
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(workshop, content, message):
    (workshop.folder / "words.json").write_text(content)
    with pytest.raises(ChainError) as caught:
        workshop.edge("word-tokens", vocabulary="words.json", length=3)
    assert message in str(caught.value)


def test_the_length_is_needed_and_the_version_follows_the_vocabulary(workshop):
    tokens(workshop, "a")
    with pytest.raises(
        ChainError, match="the settings of the skill 'word-tokens' cannot be used\n  - length is missing"
    ):
        workshop.edge("word-tokens", vocabulary="words.json")
    before = workshop.edge("word-tokens", vocabulary="words.json", length=3)
    (workshop.folder / "words.json").write_text(json.dumps({**WORDS, "dog": 4}))
    assert workshop.edge("word-tokens", vocabulary="words.json", length=3).version != before.version


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def named(workshop, scores, labels=("cat", "dog", "cow")):
    (workshop.folder / "labels.json").write_text(json.dumps(labels))
    return workshop.edge("label", labels="labels.json").call(scores=np.array([scores], np.float32))


def test_the_largest_score_has_the_label_and_of_equals_the_first(workshop):
    assert named(workshop, [0.0, 2.0, 1.0])["label"] == "dog"
    assert named(workshop, [3.0, 3.0, 3.0]) == {"label": "cat", "confidence": pytest.approx(1 / 3)}
    assert named(workshop, [1000.0, -1000.0, 0.0])["confidence"] == pytest.approx(1.0)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_answer(workshop, score):
    with pytest.raises(StepFailed, match=r"the scores are not finite: .*; the model's weights or inputs are broken"):
        named(workshop, [0.0, score, 1.0])


@pytest.mark.parametrize("labels", [[], {}, ["a", 1], 3])
def test_labels_that_are_none_are_refused(workshop, labels):
    with pytest.raises(ChainError, match=r"the skill 'label' cannot be used\n.* must hold a JSON list of texts"):
        named(workshop, [0.0], labels)
