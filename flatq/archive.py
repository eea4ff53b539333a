"""Checks the checksums in the zip archive of a `.pt` file, which torch does not when it reads one."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

__all__ = ["check_archive", "is_archive"]


def is_archive(stream: BinaryIO) -> bool:
    """Whether torch takes these bytes for a zip archive; older checkpoints are a bare pickle instead."""
    stream.seek(0)
    return stream.read(4) == b"PK\3\4"


def check_archive(stream: BinaryIO) -> None:
    """Check the CRC-32 of every member, in chunks.

    Raises:
        zipfile.BadZipFile: damaged, says where. Headers that make no sense raise other exceptions:
            ValueError, NotImplementedError, struct.error and the like.
    """
    with zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum mismatch in {damaged}")
