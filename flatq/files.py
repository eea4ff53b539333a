"""A file that is whole or not there, written under a temporary name; a folder that is free to be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flatq.errors import UsageError

__all__ = ["check_free_folder", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written takes the place of `path` at the end.

    After an error `path` is as it was, and the temporary file is gone.

    Raises:
        OSError: nothing was written, or it cannot be moved.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_file():
            temporary.unlink()


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
