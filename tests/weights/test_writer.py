import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from minerua.errors import CheckpointError, StorageError
from minerua.values import TensorSpec
from minerua.weights.adapter import Factors
from minerua.weights.atomic import remove_partials, write_bytes
from minerua.weights.checkpoint import open_checkpoint
from minerua.weights.header import DTYPES
from minerua.weights.writer import write_adapter, write_checkpoint

LEFT = np.arange(8, dtype=np.float32).reshape(4, 2)
RIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def _written(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> bytes:
    write_checkpoint(path, tensors, metadata=metadata)
    return path.read_bytes()


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [code for code in DTYPES if code != "F8_E8M0"])  # torch 2.13 reads all but this one
def test_what_is_written_is_read_by_the_safetensors_library(tmp_path, code):
    array = (np.arange(24, dtype=np.uint8) % 2).view(DTYPES[code]).reshape(-1, 1)
    path = tmp_path / "m.safetensors"
    write_checkpoint(path, {"w": array, "none": array[:0], "one": array[0, 0]}, metadata={"key": "värde"})
    read = load_file(path)
    assert read["w"].contiguous().view(torch.uint8).numpy().tobytes() == array.tobytes()
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {
        "w": array.shape,
        "none": (0, 1),
        "one": (),
    }
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "key": "värde"}


def test_names_may_be_any_unicode_text(tmp_path):
    names = ["", "层.0.weight", "emoji 🧬", 'quote"\\back', "new\nline", "\x00", "e\u0301", "é"]
    tensors = {name: np.full(2, number) for number, name in enumerate(names)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert {name: int(checkpoint.tensor(name)[0]) for name in checkpoint.specs} == {
        name: number for number, name in enumerate(names)
    }
    assert sorted(load_file(tmp_path / "m.safetensors")) == sorted(names)


_ARRAY = st.tuples(st.sampled_from([*DTYPES]), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 255))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _ARRAY, max_size=6))
def test_any_tensors_come_back_as_they_were(tmp_path, described):
    tensors = {}
    for name, (code, shape, seed) in described.items():
        if name != "__metadata__":
            count = int(np.prod(shape)) * DTYPES[code].itemsize
            bits = np.random.default_rng(seed).integers(0, 2 if code == "BOOL" else 256, count, dtype=np.uint8)
            tensors[name] = bits.view(DTYPES[code]).reshape(shape)
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert list(checkpoint.specs) == sorted(tensors)
    for name, array in tensors.items():
        read = checkpoint.tensor(name)
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    safetensors.deserialize((tmp_path / "m.safetensors").read_bytes())


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path):
    tensors = {"b": np.arange(3, dtype=np.int8), "a": np.ones(2), "c": np.ones(5, ml_dtypes.bfloat16)}
    first = _written(tmp_path / "1.safetensors", tensors, x="1", a="2")
    second = _written(tmp_path / "2.safetensors", dict(reversed(tensors.items())), a="2", x="1")
    assert first == second


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    tensors = {f"{code}.{size}": np.zeros(size, DTYPES[code]) for code in DTYPES for size in (1, 3)}
    content = _written(tmp_path / "m.safetensors", tensors)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, array in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.itemsize == 0


def test_layout_and_byte_order_of_an_array_do_not_matter(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = _written(tmp_path / "1.safetensors", {"w": array})
    assert _written(tmp_path / "2.safetensors", {"w": np.asfortranarray(array)}) == plain
    assert _written(tmp_path / "3.safetensors", {"w": array.astype(">f4")}) == plain
    assert _written(tmp_path / "4.safetensors", {"w": np.repeat(array, 2, axis=1)[:, ::2]}) == plain


def test_functions_are_called_once_each_when_their_tensor_is_written(tmp_path):
    path, calls = tmp_path / "m.safetensors", []

    def make(name: str) -> np.ndarray:
        calls.append(name)
        assert len(list(tmp_path.glob(".m.safetensors.*.partial"))) == 1
        return np.full(3, len(calls), np.float32)

    names = ["c", "a", "b"]
    write_checkpoint(path, ((TensorSpec(name, (3,), "float32"), lambda name=name: make(name)) for name in names))
    assert calls == ["a", "b", "c"]
    assert open_checkpoint(path).tensor("b").tolist() == [2, 2, 2]


def test_a_copied_checkpoint_has_the_same_digest(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"w": np.arange(5), "v": np.zeros((), ml_dtypes.float8_e5m2)})
    source = open_checkpoint(tmp_path / "a.safetensors")
    pairs = [(spec, lambda name=name: source.tensor(name)) for name, spec in source.specs.items()]
    write_checkpoint(tmp_path / "b.safetensors", pairs)
    assert open_checkpoint(tmp_path / "b.safetensors").digest == source.digest


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


# ── what cannot be written ───────────────────────────────────────────────────────────────────────────────────────────


def _spec(name: str = "w", shape: tuple[int | str, ...] = (2,), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([_spec(), _spec()], "tensor 'w' is given twice"),
        ([_spec("__metadata__")], "the format keeps this name for itself"),
        ([_spec("\ud800")], "holds half of a surrogate pair"),
        ([_spec(dtype="complex128")], "dtype complex128 has no code in the format; it has bool, uint8"),
        ([_spec(shape=("batch", 2))], "shape ['batch', 2] is not made of non-negative integers"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_anything_is_made(tmp_path, specs, words):
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        write_checkpoint(tmp_path / "m.safetensors", [(spec, lambda: pytest.fail("called")) for spec in specs])
    assert any(words in fault for fault in caught.value.faults)
    assert list(tmp_path.iterdir()) == []


def test_metadata_must_be_texts(tmp_path):
    with pytest.raises(CheckpointError, match="metadata 3 is not a text but int"):
        write_checkpoint(tmp_path / "m.safetensors", {}, metadata={"a": 3})


def test_a_header_that_no_reader_would_accept_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("minerua.weights.writer.MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"names and metadata take \d+ bytes, a header's limit is 100"):
        write_checkpoint(tmp_path / "m.safetensors", {"w" * 100: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros(2), np.zeros((2, 1), np.float32)])
def test_a_function_that_returns_something_else_leaves_no_file(tmp_path, array):
    with pytest.raises(CheckpointError, match=r"'w' was announced as float32 \[2\], its function returned float"):
        write_checkpoint(tmp_path / "m.safetensors", [(_spec(), lambda: array)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("the base is gone"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_of_a_function_is_passed_on_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "m.safetensors"
    before = _written(path, {"w": np.zeros(2, np.float32)})

    def fail() -> np.ndarray:
        raise error

    with pytest.raises(type(error)) as caught:
        write_checkpoint(path, [(_spec("a"), lambda: np.ones(2, np.float32)), (_spec("b"), fail)])
    assert caught.value is error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ── faults of the system ─────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Makes the kernel refuse longer files (EFBIG), as a full disk would; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_size_limit_met_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.safetensors"
    before = _written(path, {"w": np.zeros(3)})
    with _file_size_limit(1 << 20), pytest.raises(StorageError, match="File too large; raise the limit") as caught:
        write_checkpoint(path, {f"w{number}": np.zeros(1 << 16) for number in range(8)})
    assert str(caught.value).startswith(f"{path}: 4194")
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_found_before_anything_is_written(small_disk):
    (small_disk / "other").write_bytes(b"x" * 600_000)
    with pytest.raises(
        StorageError, match=r"bytes cannot be written: No space left on device: \d+ bytes are free"
    ) as e:
        write_checkpoint(small_disk / "m.safetensors", [(_spec(shape=(10**6,)), lambda: pytest.fail("called"))])
    assert e.value.errno == errno.ENOSPC
    assert "free some space, or write to another disk" in str(e.value)
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_a_disk_that_fills_up_while_writing_leaves_nothing(small_disk):
    def fill() -> np.ndarray:
        # another program takes the space that was free when the writing began
        (small_disk / "other").write_bytes(b"x" * 700_000)
        return np.zeros(100_000, np.float32)

    with pytest.raises(StorageError, match="No space left on device; free some space"):
        write_checkpoint(small_disk / "m.safetensors", [(_spec(shape=(100_000,)), fill)])
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_an_adapter_on_a_disk_that_is_full_leaves_nothing(small_disk):
    factors = {"a.weight": Factors(np.zeros((200_000, 1), np.float32), np.zeros((1, 200_000), np.float32))}
    with pytest.raises(StorageError, match="No space left on device"):
        write_adapter(small_disk / "adapter", factors, rank=1)
    assert list(small_disk.iterdir()) == []


def test_an_adapter_stopped_by_a_file_size_limit_leaves_nothing(tmp_path):
    factors = {"a.weight": Factors(np.zeros((1000, 1), np.float32), np.zeros((1, 1000), np.float32))}
    with _file_size_limit(4096), pytest.raises(StorageError, match="File too large"):
        write_adapter(tmp_path / "adapter", factors, rank=1)
    assert list(tmp_path.iterdir()) == []


def _write_each_way(path: Path) -> list[StorageError]:
    """Tries every writer on a path that none of them can write."""
    errors = []
    for write in (
        lambda: write_bytes(path, b"12345"),
        lambda: write_checkpoint(path, {"w": np.zeros(1)}),
        lambda: write_adapter(path, {"a.weight": Factors(LEFT, RIGHT)}, rank=2),
    ):
        with pytest.raises(StorageError) as caught:
            write()
        errors.append(caught.value)
    return errors


def test_a_path_below_a_file_is_refused(tmp_path):  # root may write everywhere, so that rights cannot be tested here
    (tmp_path / "file").write_bytes(b"")
    for error in _write_each_way(tmp_path / "file" / "m"):
        assert error.errno == errno.ENOTDIR
        assert "Not a directory; a part of the path is a file: choose another folder" in str(error)
        assert isinstance(error, OSError)  # for a caller who knows nothing of minerua
        assert isinstance(error.__cause__, OSError)


def test_a_missing_folder_is_refused(tmp_path):
    for error in _write_each_way(tmp_path / "gone" / "m"):
        assert f"{tmp_path}/gone/m: " in str(error)
        assert "No such file or directory; create the folder first, or correct its name" in str(error)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, "Input/output error; check the disk and the path"),
        (errno.EDQUOT, "Disk quota exceeded; free some of your quota, or write to another disk"),
        (errno.EACCES, "Permission denied; ask for the right to write there, or choose another folder"),
        (errno.EROFS, "Read-only file system; mount the file system writable, or choose another folder"),
    ],
)
def test_a_disk_that_fails_is_told_with_the_system_s_words_and_what_to_do(tmp_path, monkeypatch, number, words):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for error in _write_each_way(tmp_path / "m"):
        assert str(error).endswith(f"bytes cannot be written: {words}")
        assert error.errno == number
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused(tmp_path):
    for error in _write_each_way(tmp_path / ("x" * 250)):
        assert "File name too long; choose a shorter name" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_be_written_is_refused():
    for error in _write_each_way(Path("/proc/minerua-test")):
        assert "bytes cannot be written: " in str(error)
    assert not Path("/proc/minerua-test").exists()


def test_a_name_that_a_folder_has_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "m" / "inside").mkdir(parents=True)
    messages = [str(error) for error in _write_each_way(tmp_path / "m")]
    assert all("Is a directory; a folder has this name" in message for message in messages[:2])
    assert "Directory not empty; the folder exists and is not empty: remove it" in messages[2]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_WRITER = """
import sys
import numpy as np
from minerua.values import TensorSpec
from minerua.weights.writer import write_checkpoint

def make(value):
    if value == 0:
        print("writing", flush=True)
    return np.full(1 << 18, value, np.float32)

specs = [TensorSpec(f"w{number:02}", (1 << 18,), "float32") for number in range(48)]
write_checkpoint(sys.argv[1], [(spec, lambda number=number: make(number)) for number, spec in enumerate(specs)])
print("written", flush=True)
"""


def _start_writer(path: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def _finish(writer: subprocess.Popen[str]) -> str:
    with writer:
        assert writer.stdout is not None
        return writer.stdout.read()


@pytest.mark.slow
def test_a_killed_writer_leaves_the_old_file_or_the_new_one_and_a_leftover_at_most(tmp_path):
    path = tmp_path / "m.safetensors"
    writer = _start_writer(path)
    begin = time.perf_counter()
    assert _finish(writer) == "written\n"
    new, seconds = open_checkpoint(path).digest, time.perf_counter() - begin
    write_checkpoint(path, {"old": np.zeros(1)})
    old, chance, unfinished = open_checkpoint(path).digest, random.Random(1), 0
    for round_ in range(12):
        writer = _start_writer(path)
        time.sleep(chance.random() * seconds if round_ else 0)
        os.kill(writer.pid, signal.SIGKILL)
        _finish(writer)
        unfinished += bool(remove_partials(tmp_path))
        assert list(tmp_path.iterdir()) == [path]
        assert open_checkpoint(path).digest in (old, new)
    assert unfinished > 0


# ── leftovers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_leftovers_are_removed(tmp_path):
    token = "0123456789abcdef"
    kept = [
        ".hidden",
        "m.safetensors",
        f"m.{token}.partial",
        ".m.partial",
        f".m.{token}.partial.bak",
        f".{token}.partial",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".m.safetensors.{token}.partial").write_bytes(b"x")
    (tmp_path / f".adapter.{token}.partial").mkdir()
    (tmp_path / f".adapter.{token}.partial" / "adapter_config.json").write_bytes(b"x")
    removed = [tmp_path / f".adapter.{token}.partial", tmp_path / f".m.safetensors.{token}.partial"]
    assert remove_partials(str(tmp_path)) == removed
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert remove_partials(tmp_path) == []


def test_a_leftover_that_is_a_link_is_removed_without_its_target(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"")
    (tmp_path / ".m.0123456789abcdef.partial").symlink_to(tmp_path / "precious")
    assert len(remove_partials(tmp_path)) == 1
    assert (tmp_path / "precious" / "file").exists()


def test_a_folder_that_cannot_be_cleaned_is_named(tmp_path):
    with pytest.raises(StorageError, match="gone: leftovers cannot be removed: No such file or directory"):
        remove_partials(tmp_path / "gone")
