"""Folders that appear complete or not at all; files are held to the same by the tests of the writer."""

import doctest
import errno
import os
from pathlib import Path

import pytest

from minerua.errors import StorageError
from minerua.weights import atomic
from minerua.weights.atomic import partial_folder


def test_examples_run():
    assert doctest.testmod(atomic).failed == 0


@pytest.mark.parametrize("sync", [True, False])
def test_a_folder_appears_complete_or_not_at_all(tmp_path, sync):
    with partial_folder(tmp_path / "out", needed_bytes=3, sync=sync) as folder:
        (folder / "part").write_text("one")
        assert not (tmp_path / "out").exists()
        assert folder.parent == tmp_path
    assert (tmp_path / "out" / "part").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _fail(folder: Path, error: BaseException) -> None:
    with partial_folder(folder, needed_bytes=7) as partial:
        (partial / "part").write_text("one")
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_while_a_folder_is_filled_is_passed_on_and_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        _fail(tmp_path / "out", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_while_a_folder_is_filled_is_told_with_its_remedy(tmp_path):
    words = "7 bytes cannot be written: Disk quota exceeded; free some of your quota"
    with pytest.raises(StorageError, match=words) as caught:
        _fail(tmp_path / "out", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert caught.value.errno == errno.EDQUOT
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_any_other_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    with partial_folder(tmp_path / "empty", needed_bytes=0) as folder:
        (folder / "part").write_text("one")
    assert (tmp_path / "empty" / "part").exists()
    with pytest.raises(StorageError, match="is not empty"), partial_folder(tmp_path / "empty", needed_bytes=0):
        pytest.fail("a full folder was taken")
    (tmp_path / "file").write_text("mine")
    words = "file is a file, where a folder is to be made: choose another name"
    with pytest.raises(StorageError, match=words), partial_folder(tmp_path / "file", needed_bytes=0):
        pytest.fail("a file was taken")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [".", "", "..", "/"])
def test_a_folder_needs_a_name_of_its_own(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words = "is no name of a folder to make; write /"
    with pytest.raises(StorageError, match=words), partial_folder(name, needed_bytes=0):
        pytest.fail("a folder without a name was taken")


@pytest.mark.parametrize("target", ["real", "new"])
def test_a_link_to_a_folder_is_followed(tmp_path, target):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(target)
    with partial_folder(tmp_path / "link", needed_bytes=0) as folder:
        (folder / "part").write_text("one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / target / "part").exists()


def test_more_than_is_free_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(StorageError, match="bytes are free"), partial_folder(tmp_path / "out", needed_bytes=1 << 62):
        pytest.fail("it was begun")
    assert list(tmp_path.iterdir()) == []


def _abandoned(folder: Path, name: str = "out") -> Path:
    """Makes what a killed process leaves."""
    path = folder / f".{name}.0123456789abcdef.partial"
    path.mkdir()
    (path / "part").write_text("one")
    return path


def test_what_the_dead_left_for_this_folder_is_removed_first(tmp_path):
    gone, other = _abandoned(tmp_path), _abandoned(tmp_path, "other")
    near = tmp_path / ".out.0123.partial"
    near.mkdir()
    with partial_folder(tmp_path / "out", needed_bytes=0):
        assert not gone.exists()
    assert other.exists()
    assert near.exists()


def test_a_name_with_stars_and_brackets_stands_for_itself_alone(tmp_path):
    kept, gone = _abandoned(tmp_path, "outx"), _abandoned(tmp_path, "out[x*]")
    with partial_folder(tmp_path / "out[x*]", needed_bytes=0):
        assert not gone.exists()
    assert kept.exists()


def test_what_the_living_are_at_work_on_is_not_touched(tmp_path):
    with partial_folder(tmp_path / "out", needed_bytes=0) as first:
        with pytest.raises(ValueError, match="mine"):
            _fail(tmp_path / "out", ValueError("mine"))
        assert list(tmp_path.iterdir()) == [first]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_to_and_nobodys_work_is_removed(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    perhaps_alive = _abandoned(tmp_path)
    with partial_folder(tmp_path / "out", needed_bytes=0):
        pass
    assert (tmp_path / "out").is_dir()
    assert perhaps_alive.exists()


def test_a_leftover_that_is_a_link_or_a_file_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    link, file = (tmp_path / f".out.{digit * 16}.partial" for digit in "01")
    link.symlink_to("mine")
    file.write_text("mine")
    with partial_folder(tmp_path / "out", needed_bytes=0):
        pass
    assert link.is_symlink()
    assert file.exists()
