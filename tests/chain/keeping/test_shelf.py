"""Results in a folder: whole or not there, within a bound, shared; a bad disk is a warning."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from minerua.chain.keeping.cache import ContentCache
from minerua.values import Skill

SKILL = Skill("see", pure=True)
KEYS = [bytes([n]) * 16 for n in range(256)]


def key_of(*values: Any) -> bytes | None:
    return ContentCache.key(SKILL, {f"x{n}": value for n, value in enumerate(values)})


def outputs_of(size: int) -> dict[str, np.ndarray]:
    return {"y": np.full(size, size % 251, np.uint8)}


# ── disk ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shelf(folder: Path, disk_bytes: int = 1 << 20, memory_bytes: int = 0) -> ContentCache:
    return ContentCache(memory_bytes, folder=folder, disk_bytes=disk_bytes)


def results_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.result"))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_dtypes_of_ml_dtypes_come_back_from_a_file(dtype: Any, tmp_path: Path) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    shelf(tmp_path).put(KEYS[0], {"y": array, "z": array[0, 1]})
    found = shelf(tmp_path).get(KEYS[0])
    assert found is not None
    assert key_of(found["y"], found["z"]) == key_of(array, array[0, 1])
    assert not found["y"].flags.writeable


def test_another_cache_finds_what_was_written_and_remembers_it(tmp_path: Path) -> None:
    shelf(tmp_path / "new" / "folder").put(KEYS[0], outputs_of(100))
    cache = shelf(tmp_path / "new" / "folder", memory_bytes=10_000)
    for _ in range(2):
        found = cache.get(KEYS[0])
        assert found is not None
        assert found["y"].tolist() == [100] * 100
    now = cache.statistics()
    assert now.disk is not None
    assert (now.disk.hits, now.memory.hits, now.hits, now.misses) == (1, 1, 2, 0)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 100, -1])
def test_a_file_that_was_cut_short_is_a_miss_and_is_removed(length: int, tmp_path: Path) -> None:
    shelf(tmp_path).put(KEYS[0], outputs_of(500))
    (path,) = results_in(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    cache = shelf(tmp_path)
    assert cache.get(KEYS[0]) is None
    assert cache.statistics().disk.damaged == 1  # type: ignore[union-attr]
    assert results_in(tmp_path) == []
    cache.put(KEYS[0], outputs_of(500))
    assert cache.get(KEYS[0]) is not None


def test_any_altered_byte_of_a_file_makes_it_a_miss(tmp_path: Path) -> None:
    cache = shelf(tmp_path)
    cache.put(KEYS[0], {"y": np.arange(20), "z": [1.5, "text"]})
    (path,) = results_in(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert cache.get(KEYS[0]) is None, place
        assert not path.exists()


def test_a_file_under_the_name_of_another_is_a_miss(tmp_path: Path) -> None:
    cache = shelf(tmp_path)
    cache.put(KEYS[0], outputs_of(10))
    results_in(tmp_path)[0].rename(tmp_path / f"{KEYS[1].hex()}.result")
    assert cache.get(KEYS[1]) is None


def test_the_folder_stays_within_its_bound_and_the_least_recently_used_leave(tmp_path: Path) -> None:
    cache = shelf(tmp_path, disk_bytes=12_000)
    for number in range(8):
        cache.put(KEYS[number], outputs_of(1500 + number))
        for age, path in enumerate(sorted(results_in(tmp_path), key=lambda one: -one.stat().st_mtime_ns)):
            os.utime(path, ns=(10**18 - age * 10**9,) * 2)  # of one timer tick, files would be equally old
        if number >= 2:
            assert cache.get(KEYS[2]) is not None
        assert sum(path.stat().st_size for path in results_in(tmp_path)) <= 12_000
    now = cache.statistics().disk
    assert now is not None
    assert now.bytes == sum(path.stat().st_size for path in results_in(tmp_path))
    assert now.evictions > 0
    assert cache.get(KEYS[2]) is not None
    assert cache.get(KEYS[0]) is None


def test_two_caches_of_one_folder_keep_one_bound(tmp_path: Path) -> None:
    caches = [shelf(tmp_path, disk_bytes=20_000) for _ in range(2)]

    def write(cache: ContentCache) -> None:
        for number in range(60):
            cache.put(KEYS[number], outputs_of(1000 + number))
            cache.get(KEYS[(number * 7) % 60])

    threads = [threading.Thread(target=write, args=(caches[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(path.stat().st_size for path in results_in(tmp_path)) <= 20_000
    assert [cache.statistics().disk.fault for cache in caches] == ["", ""]  # type: ignore[union-attr]
    assert not list(tmp_path.glob("*.partial"))


def test_a_result_larger_than_the_folder_may_be_is_not_written(tmp_path: Path) -> None:
    cache = shelf(tmp_path, disk_bytes=1000)
    cache.put(KEYS[0], outputs_of(5000))
    assert results_in(tmp_path) == []
    assert cache.statistics().disk.refused == 1  # type: ignore[union-attr]


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{KEYS[n].hex()}.result.{'0' * 16}.partial" for n in (0, 1))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    shelf(tmp_path).put(KEYS[0], outputs_of(10))
    assert (old.exists(), new.exists()) == (False, True)


@contextlib.contextmanager
def file_size_limit(most_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_warning_and_then_memory_only(tmp_path: Path) -> None:
    cache = shelf(tmp_path, memory_bytes=100_000)
    with file_size_limit(1000), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert cache.put(KEYS[0], outputs_of(5000))["y"].size == 5000
        assert cache.put(KEYS[1], outputs_of(5001))["y"].size == 5001
    assert len(seen) == 1
    assert "results cannot be written: File too large; from now on they are kept in memory only" in str(seen[0].message)
    assert list(tmp_path.glob("*.partial")) == results_in(tmp_path) == []
    assert cache.get(KEYS[0]) is not None
    assert cache.statistics().disk.fault.endswith("File too large")  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    cache = shelf(tmp_path / "taken" / "cache", memory_bytes=10_000)
    with pytest.warns(RuntimeWarning, match="Not a directory"):
        cache.put(KEYS[0], outputs_of(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(KEYS[1], outputs_of(10))
    assert cache.get(KEYS[1]) is not None
    assert cache.get(KEYS[2]) is None


def test_tensors_have_no_form_in_a_file(tmp_path: Path) -> None:
    import torch

    cache = shelf(tmp_path, memory_bytes=10_000)
    cache.put(KEYS[0], {"y": torch.ones(2)})
    assert results_in(tmp_path) == []
    assert cache.get(KEYS[0]) is not None
