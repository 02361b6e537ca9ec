"""Files and folders that are either absent or complete, whatever happens on the way.

Everything is written under a temporary name in the same folder, and renamed. The temporary's name is `.` + the final
name + `.` + 16 hexadecimal digits + `.partial`, so that what a killed process leaves is recognised (`remove_partials`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import final

from minerua.errors import StorageError

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write to another file system",
    errno.EACCES: "ask for the right to write there, or choose another folder",
    errno.EPERM: "ask for the right to write there, or choose another folder",
    errno.EROFS: "mount the file system writable, or choose another folder",
    errno.ENOENT: "create the folder first, or correct its name",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EISDIR: "a folder has this name: choose another one",
    errno.ENOTEMPTY: "the folder exists and is not empty: remove it, or choose another name",
    errno.EEXIST: "the folder exists and is not empty: remove it, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a small file that appears complete or not at all, and replaces an existing one in one step.

    Args:
        path: The file to write; its folder exists.
        content: All of its bytes.

    Raises:
        StorageError: the system refused to write; the message names the bytes needed and the remedy.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(f"{folder}/settings.json", b"{}")
    """
    with Partial(Path(path), needed_bytes=len(content)) as partial:
        partial.write(content)


def remove_partials(folder: str | Path) -> list[Path]:
    """Removes what killed writers have left in a folder; for a moment when no writer is at work there.

    Args:
        folder: The folder to clean; its subfolders are left alone.

    Returns:
        The paths that were removed, sorted; other files, hidden ones included, are never touched.

    Raises:
        StorageError: the folder cannot be read, or a leftover cannot be removed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     remove_partials(folder)
        []
    """
    try:
        leftovers = sorted(path for path in Path(folder).iterdir() if _PARTIAL.fullmatch(path.name))
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise _storage_error(Path(folder), "leftovers cannot be removed", error) from error
    return leftovers


@final
class Partial:
    """A file that takes its final name when it is complete, and disappears on any exception."""

    def __init__(self, path: Path, *, needed_bytes: int) -> None:
        self._path = path
        self._needed_bytes = needed_bytes
        self._temporary = _temporary_name(path)
        self._file = -1

    def __enter__(self) -> Partial:
        with self._translated():
            _check_space(self._path.parent, self._needed_bytes)
            # not tempfile: its files are closed to the group, whatever the umask says
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self._temporary, flags, 0o666)
        return self

    def write(self, content: bytes | memoryview) -> None:
        """Appends all of the content; the system may take it in several parts."""
        with self._translated(), memoryview(content) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._file, rest[written:])

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with self._translated():
                os.fsync(self._file)
                self._close()  # before the rename: a network disk may refuse the bytes only now
                os.replace(self._temporary, self._path)
        except BaseException:  # whatever stops it, Ctrl-C included, nothing half-written stays behind
            self._discard()
            raise
        with self._translated():
            _sync_folder(self._path.parent)

    def _discard(self) -> None:
        # what went wrong first is what the user needs to read; a leftover has a recognisable name
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1  # never closed twice: the number may belong to another thread's file by then
        if file >= 0:
            os.close(file)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns the system's errors into ours; a tensor's own function runs outside, its errors are its own."""
        try:
            yield
        except OSError as error:
            raise _storage_error(self._path, f"{self._needed_bytes} bytes cannot be written", error) from error


@contextlib.contextmanager
def partial_folder(folder: str | Path, *, needed_bytes: int, sync: bool = True) -> Iterator[Path]:
    """Makes a folder that takes its final name when it is complete, and disappears on any exception.

    What a killed process has left for the same folder is removed first; what a living one is at work on is not touched.

    Args:
        folder: Does not exist, or is empty; its parent exists. A link is followed.
        needed_bytes: How much will be written into it; more than is free is refused at once.
        sync: Whether the rename is on the disk when this returns; without it a power cut may take it back.

    Yields:
        The folder to write into, beside the final one.

    Raises:
        StorageError: The system refused, or the folder exists and is not empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with partial_folder(f"{parent}/merged", needed_bytes=2) as folder:
        ...         write_bytes(folder / "config.json", b"{}")
        ...     os.listdir(f"{parent}/merged")
        ['config.json']
    """
    folder = _named(Path(folder))
    temporary = _temporary_name(folder)
    owner = -1
    try:
        _refuse_taken(folder)
        _remove_abandoned(folder)
        _check_space(folder.parent, needed_bytes)
        temporary.mkdir()
        owner = _own(temporary)
        yield temporary
        if sync:
            _sync_folder(temporary)
        os.rename(temporary, folder)
        if sync:
            _sync_folder(folder.parent)
    except BaseException as error:  # an interrupt too must leave no partial folder; raised again
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise _storage_error(folder, f"{needed_bytes} bytes cannot be written", error) from error
        raise
    finally:
        if owner >= 0:
            os.close(owner)


def _own(folder: Path, *, needs_lock: bool = False) -> int:
    """Locks a folder for as long as this process lives, so that others know that somebody is at work there.

    A file system without locks is as good for a folder that was made here, but not for one that was found
    (`needs_lock`): nothing tells then whether its owner lives.
    """
    file = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if needs_lock or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            os.close(file)
            raise
    return file


def _remove_abandoned(folder: Path) -> None:
    """Removes the partial folders of this name whose owner is gone."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        if not _PARTIAL.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            owner = _own(path, needs_lock=True)
        except OSError:  # somebody is at work on it, or it is not ours to look at
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def _named(folder: Path) -> Path:
    """Returns the folder behind a link; refuses what has no name that a finished folder could take."""
    if folder.name in ("", ".."):
        raise StorageError(f"{folder} is no name of a folder to make; write {folder.resolve()}, or choose another one")
    return Path(os.path.realpath(folder)) if os.path.islink(folder) else folder


def _refuse_taken(folder: Path) -> None:
    """Refuses a name that is taken before anything is written; the rename itself would refuse it too."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file, where a folder is to be made: choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def _check_space(folder: Path, needed_bytes: int) -> None:
    """Refuses at once what would fill the disk only after a long time of writing; quotas are met while writing."""
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    # a file system without a size of its own reports zero blocks
    if status.f_blocks and needed_bytes > free_bytes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free_bytes} bytes are free")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that order renames by themselves
            raise
    finally:
        os.close(file)


def _storage_error(path: Path, what: str, error: OSError) -> StorageError:
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and the path")
    wrapped = StorageError(f"{path}: {what}: {error.strerror or error}; {remedy}")
    wrapped.errno = error.errno
    return wrapped
