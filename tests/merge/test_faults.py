"""What happens to a merge when the machine does its worst: real processes, killed, starved and interrupted."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minerua.errors import StorageError
from minerua.merge.merging import merge_models, prepare_merge
from minerua.values import TensorSpec
from minerua.weights import open_checkpoint, write_checkpoint
from minerua.weights.header import encode_header

from ..conftest import REPOSITORY
from .folders import contents, merged, put, recipe, write_models

MEGABYTE = 1 << 20


def start(folder, *arguments, before=None, **variables):
    """Starts `minerua merge` in a process of its own, in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*_python_path(), str(REPOSITORY)]), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "minerua", "merge", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def _python_path():
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def leftovers(folder):
    return sorted(folder.glob(".*.partial"))


def wait_for_partial(folder, process):
    """Waits until a merge has begun to write; returns its partial folder, or `None` if it was too quick to see."""
    while process.poll() is None:
        found = [path for path in leftovers(folder) if any(path.iterdir())]
        if found:
            return found[0]
        time.sleep(0.001)
    return None


@pytest.fixture
def big(tmp_path):
    """Two models of 48 MB each, of many tensors, and a recipe that takes a moment."""
    generator = np.random.default_rng(0)
    for name in "ab":
        arrays = {f"layers.{i}.w": generator.normal(size=(1024, 512)).astype(np.float32) for i in range(24)}
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name / "model.safetensors", arrays)
    put(tmp_path, recipe())
    return tmp_path


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_merge_killed_at_any_moment_leaves_nothing_under_its_name_and_the_next_one_cleans_up(big):
    chance = random.Random(0)
    survived = torn = 0
    for number in range(10):
        process = start(big, "recipe.yml", "out")
        wait_for_partial(big, process)
        time.sleep(chance.uniform(0, 0.02 * number))  # the first at once: what is begun is never done by then
        process.kill()
        process.communicate()
        torn += bool(leftovers(big))
        if (big / "out").exists():  # it was quicker than the signal: then all of it is there
            survived += 1
            assert sorted(contents(big / "out")) == ["README.md", "minerua_recipe.yml", "model.safetensors"]
            (big / "out").rename(big / f"survived-{survived}")
    assert torn, "no process was killed at work"
    process = start(big, "recipe.yml", "out")
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert leftovers(big) == []
    found, a, b = (open_checkpoint(big / name) for name in ("out", "a", "b"))
    for name in found.specs:
        np.testing.assert_array_equal(found.tensor(name), (a.tensor(name) * 0.5 + b.tensor(name) * 0.5))
    for number in range(survived):
        whole = (big / f"survived-{number + 1}" / "model.safetensors").read_bytes()
        assert whole == (big / "out" / "model.safetensors").read_bytes()


def test_what_a_living_merge_has_written_is_not_touched_by_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path)
    prepared = prepare_merge(put(tmp_path, recipe()))
    seen = []

    def meanwhile(done, total):
        if not seen:
            seen.extend(leftovers(tmp_path))
            merge_models(prepare_merge(tmp_path / "recipe.yml"), tmp_path / "out")
            assert leftovers(tmp_path) == seen

    with pytest.raises(StorageError, match="the folder exists and is not empty"):
        merge_models(prepared, tmp_path / "out", progress=meanwhile)
    assert len(seen) == 1
    assert leftovers(tmp_path) == []
    assert open_checkpoint(tmp_path / "out").specs


def hear_ctrl_c():
    """Undoes what a shell does to background jobs: they and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_nothing_and_says_so_by_its_exit_code(big):
    for _ in range(20):
        process = start(big, "recipe.yml", "out", before=hear_ctrl_c)
        seen = wait_for_partial(big, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if seen is not None and process.returncode != 0:
            break
        shutil.rmtree(big / "out", ignore_errors=True)  # it was done before the signal came
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (big / "out").exists()
    assert leftovers(big) == []


def test_an_interruption_between_two_tensors_removes_what_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path, recipe(), progress=interrupt)
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


# ── no room ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_on_file_sizes_is_named_and_nothing_stays(big):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, MEGABYTE))  # noqa: E731
    process = start(big, "recipe.yml", "out", before=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("minerua: ")
    assert "bytes cannot be written: File too large; raise the limit on file sizes (ulimit -f)" in errors
    assert not (big / "out").exists()
    assert leftovers(big) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes; skips where nobody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(options, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount cannot be called: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_refused_before_anything_is_merged(big, small_disk):
    with pytest.raises(StorageError, match="bytes are free; free some space, or write to another disk"):
        merge_models(prepare_merge(_absolute(big)), small_disk / "out", progress=lambda *_: pytest.fail("merged"))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_of_the_merge(tmp_path, small_disk):
    for name in "ab":
        arrays = {f"w{i}": np.ones((256, 256), np.float32) for i in range(6)}
        write_checkpoint(tmp_path / f"{name}.safetensors", arrays)
    path = put(tmp_path, recipe(names=[str(tmp_path / f"{name}.safetensors") for name in "ab"]))

    def fill(done, total):
        with (small_disk / "other").open("ab") as file:
            file.write(bytes(256 << 10))
            with contextlib.suppress(OSError):  # whatever room is left
                file.write(bytes(2 * MEGABYTE))
                file.flush()

    with pytest.raises(StorageError, match="No space left on device; free some space, or write to another disk"):
        merge_models(prepare_merge(path), small_disk / "out", progress=fill)
    assert [entry.name for entry in small_disk.iterdir()] == ["other"]


@pytest.mark.parametrize("number", [28, 122, 5])
def test_any_refusal_of_the_system_while_writing_is_told_with_a_remedy(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    prepared = prepare_merge(put(tmp_path, recipe()))
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        merge_models(prepared, tmp_path / "out", progress=refuse)
    assert caught.value.errno == number
    assert leftovers(tmp_path) == []


def _absolute(folder):
    return put(folder, recipe(names=[str(folder / name) for name in "ab"]), "absolute.yml")


# ── little memory ────────────────────────────────────────────────────────────────────────────────────────────────────


def sparse_model(folder, megabytes):
    """Writes a model of zeros in bfloat16 that takes no room on the disk: tensors of 64 MB."""
    folder.mkdir()
    specs = [TensorSpec(f"layers.{i}.w", (8192, 4096), "bfloat16") for i in range(megabytes // 64)]
    with (folder / "model.safetensors").open("wb") as file:
        header = encode_header(specs, {"format": "pt"})
        file.write(header)
        file.truncate(len(header) + len(specs) * 64 * MEGABYTE)


class Peak(threading.Thread):
    """Watches how much memory of its own a process takes, that of mapped files left out."""

    def __init__(self, pid):
        super().__init__()
        self.bytes, self._status = 0, Path(f"/proc/{pid}/status")

    def run(self):
        while True:
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            own = [int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")]
            if not own:  # the process is gone, and waits for its parent
                return
            self.bytes = max(self.bytes, *own)
            time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_model_larger_than_the_memory_is_merged(tmp_path, method):
    # RLIMIT_DATA is all that a process may call its own; RLIMIT_AS would also count the inputs, which are mapped
    for name in "abc":
        sparse_model(tmp_path / name, 640)
    base = {} if method == "linear" else {"base_model": "c"}
    put(tmp_path, recipe(method, dtype="bfloat16", **base))
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (400 * MEGABYTE,) * 2)  # noqa: E731
    process = start(tmp_path, "recipe.yml", "out", "--json", before=limit, OPENBLAS_NUM_THREADS="1")
    peak = Peak(process.pid)
    peak.start()
    out, errors = process.communicate(timeout=120)
    peak.join()
    assert (process.returncode, errors) == (0, "")
    assert peak.bytes < json.loads(out)["memory_bytes"] < 100 * MEGABYTE, "the interpreter included"
    found = open_checkpoint(tmp_path / "out")
    assert len(found.specs) == 10
    assert not np.any(found.tensor("layers.9.w")[::512].view(np.uint16))
    for name in ("a", "b", "c", "out"):
        (tmp_path / name / "model.safetensors").unlink()
