"""Writing files and folders whole or not at all, checking for a free folder, digests of files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flatq.errors import DataError, UsageError

__all__ = ["check_free_folder", "file_digest", "replacing", "writing"]

_SUFFIX = ".flatq-tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder to; what was written takes the place of `path` at the end.

    It lies in a temporary folder beside `path`, which is locked while this process lives. After an error
    `path` is as it was and the temporary folder is gone. Those that killed processes left beside `path` are
    removed. A folder replaces only an empty one.

    Raises:
        OSError: nothing was written, or it cannot be moved.
    """
    _remove_leftovers(path.parent)
    temporary, lock = _make_temporary(path.parent)
    try:
        yield temporary / path.name
        (temporary / path.name).replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`, for a file that a user named; its folder is made.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"cannot write {path}",
            expected="a file name in a folder that can be written",
            got=error.strerror or str(error),
            next_step="choose another name",
        ) from error


def _make_temporary(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; None where the file system has no locks, so that nobody removes it."""
    while True:
        temporary = parent / f".{secrets.token_hex(4)}{_SUFFIX}"
        temporary.mkdir()
        try:
            return temporary, _lock(temporary)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for a leftover, between the two lines above
        except OSError:
            return temporary, None


def _remove_leftovers(parent: Path) -> None:
    for temporary in parent.glob(f".*{_SUFFIX}"):
        with suppress(OSError):
            lock = _lock(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)


def _lock(temporary: Path) -> int:
    """Lock a temporary folder until the file that is returned is closed, or this process ends.

    Raises:
        BlockingIOError: another process has it.
        FileNotFoundError: another process removed it.
        OSError: the file system has no locks, or the folder is another user's.
    """
    file = os.open(temporary / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink == 0:
            raise FileNotFoundError(temporary)
    except OSError:
        os.close(file)
        raise
    return file


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_folder(folder: Path) -> None:
    """Refuse a folder that is there and not empty, before the work is done that is to go there.

    Raises:
        UsageError: it exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} already exists",
            expected="a new or empty folder",
            got="something that would be overwritten",
            next_step="choose another name with -o, or remove it",
        )
