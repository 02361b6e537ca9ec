import builtins
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minerua.errors import ConfigError
from minerua.learning.data_config import ImagesConfig, LabelsConfig, TransformsConfig
from minerua.learning.rows import BadRows, RowError
from minerua.learning.sources.images import ImageRows


def painted(path, size=(4, 3), colour=(255, 0, 0), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **settings)


def images(folder, rows, *, check=True, resize=None, labels=None, **config):
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    found = ImagesConfig(folder=folder / "pictures", labels=folder / "labels.csv", **config)
    kinds, size = LabelsConfig(**(labels or {})), TransformsConfig(resize=resize)
    return ImageRows(folder / "labels.csv", found, kinds, size, check=check)


def only_fault(source):
    bad = BadRows()
    scanned = source.scan(bad)
    assert len(scanned.hashes) == 0
    (row,) = bad.listed
    return str(row)


def test_pixels_come_by_channel_row_and_column(tmp_path):
    painted(tmp_path / "pictures" / "a.png")
    source = images(tmp_path, [("a.png", "cat")])
    scanned = source.scan(BadRows())
    pixels, target = pickle.loads(pickle.dumps(source)).read(0)
    assert (pixels.shape, pixels.dtype, target) == ((3, 3, 4), np.uint8, None)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert scanned.names == ("cat",)
    assert source.place(0) == "a.png"


def test_grey_images_have_one_channel_and_any_size_becomes_the_one_that_is_asked_for(tmp_path):
    painted(tmp_path / "pictures" / "a.png")
    painted(tmp_path / "pictures" / "b.jpg", size=(9, 9))
    source = images(tmp_path, [("a.png", 0), ("b.jpg", 1)], mode="L", resize=(5, 6))
    bad = BadRows()
    source.scan(bad)
    assert bad.count == 0
    assert [source.read(i)[0].shape for i in range(2)] == [(1, 5, 6)] * 2


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    painted(tmp_path / "pictures" / "a.jpg", size=(8, 4), exif=exif)
    source = images(tmp_path, [("a.jpg", 0)])
    source.scan(BadRows())
    assert source.read(0)[0].shape == (3, 8, 4)


def test_the_file_s_name_is_the_key(tmp_path):
    for name in ("a.png", "b.png"):
        painted(tmp_path / "pictures" / name)
    one = images(tmp_path, [("a.png", 0), ("b.png", 1)]).scan(BadRows())
    other = images(tmp_path, [("b.png", 1), ("a.png", 0)]).scan(BadRows())
    assert one.hashes.tolist() == other.hashes.tolist()[::-1]


def test_numbers_may_stand_as_targets(tmp_path):
    painted(tmp_path / "pictures" / "a.png")
    source = images(tmp_path, [("a.png", 0.5)], labels={"kind": "number"})
    source.scan(BadRows())
    assert source.read(0)[1] == 0.5


def test_without_a_look_only_the_files_are_counted(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"broken")
    source, bad = images(tmp_path, [("a.png", 0), ("none.png", 1)], check=False), BadRows()
    scanned = source.scan(bad)
    assert not scanned.checked
    assert [str(row) for row in bad.listed] == ["labels.csv:3: no such image: none.png"]
    with pytest.raises(RowError, match="unreadable image"):
        source.read(0)


def bomb(path, width, height):
    """Writes a PNG of some hundred bytes that claims any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("size", [(9_000, 9_000), (12_000, 12_000), (30_000, 30_000)])
def test_a_small_file_that_claims_to_be_large_is_refused_before_it_is_unpacked(tmp_path, size):
    (tmp_path / "pictures").mkdir()
    bomb(tmp_path / "pictures" / "a.png", *size)
    assert only_fault(images(tmp_path, [("a.png", 0)])).startswith("labels.csv:2: image too large: a.png")


def test_an_image_with_more_pixels_than_allowed_is_refused(tmp_path):
    painted(tmp_path / "pictures" / "a.png")
    fault = only_fault(images(tmp_path, [("a.png", 0)], most_pixels=11))
    assert fault == "labels.csv:2: image too large: a.png has 4 × 3 pixels"


def test_a_truncated_image_is_refused(tmp_path):
    painted(tmp_path / "pictures" / "a.jpg", size=(200, 200))
    content = (tmp_path / "pictures" / "a.jpg").read_bytes()
    (tmp_path / "pictures" / "a.jpg").write_bytes(content[: len(content) // 2])
    assert only_fault(images(tmp_path, [("a.jpg", 0)])).startswith(
        "labels.csv:2: unreadable image: a.jpg: image file is"
    )


@pytest.mark.parametrize("content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", os.urandom(99)])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(content)
    fault = only_fault(images(tmp_path, [("a.png", 0)]))
    assert fault.startswith("labels.csv:2: unreadable image: a.png is none of PNG, JPEG")


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "/etc/passwd", "deep/../../secret.png"])
def test_what_leads_out_of_the_folder_is_refused(tmp_path, name):
    painted(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    fault = only_fault(images(tmp_path, [(name, 0)]))
    assert fault == f"labels.csv:2: outside the folder: {name} leads out of pictures"


@pytest.mark.parametrize(
    ("name", "said"), [("none.png", "no such image: none.png"), (" ", "no such image: the row names no file")]
)
def test_a_missing_image_is_a_bad_row(tmp_path, name, said):
    (tmp_path / "pictures").mkdir()
    assert only_fault(images(tmp_path, [(name, 0)])) == f"labels.csv:2: {said}"


def test_images_of_several_sizes_are_bad_rows_without_a_resize(tmp_path):
    painted(tmp_path / "pictures" / "a.png")
    painted(tmp_path / "pictures" / "b.png", size=(5, 5))
    bad = BadRows()
    images(tmp_path, [("a.png", 0), ("b.png", 0), ("a.png", ""), ("a.png,1", 0)]).scan(bad)
    assert [str(row) for row in bad.listed] == [
        "labels.csv:3: another shape: [3, 5, 5] where the first row has [3, 3, 4]",
        "labels.csv:4: missing label",
        "labels.csv:5: wrong number of columns: 3 where the header has 2",
    ]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read images from .*pictures: no folder is there"):
        images(tmp_path, [])


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="images are read by Pillow, which is not installed: pip install pillow"):
        images(tmp_path, [])


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "a.png")
    assert only_fault(images(tmp_path, [("a.png", 0)])) == "labels.csv:2: no such image: a.png"
