"""Arrays kept by content in the cache folder: the reference's features, samples and their features."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.files import writing
from flatq.progress import Note

__all__ = ["Cache", "cache_folder", "open_cache", "write_npz"]


def cache_folder() -> Path:
    """`FLATQ_CACHE`, else flatq in `XDG_CACHE_HOME`, else ~/.cache/flatq. It need not exist."""
    if chosen := os.environ.get("FLATQ_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "flatq"
    return Path.home() / ".cache" / "flatq"


def open_cache(folder: Path, note: Note) -> Cache | None:
    """The cache in a folder, which is made; None, and a note, where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return Cache(folder, note)
        reason = "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    note(f"the cache {folder} cannot be written ({reason}): nothing is kept for the next time")
    return None


@dataclass(frozen=True)
class Cache:
    """A file for each entry, named by the digest of its key: plain values that decide the arrays.

    note: told of damaged entries, which are made again.
    """

    folder: Path
    note: Note

    def path(self, kind: str, key: Mapping[str, Any], part: str = "") -> Path:
        """Parts of one key lie in a folder of their own, as a folder of too many files is slow."""
        digest = hashlib.sha256(_text(key).encode()).hexdigest()[:40]
        return self.folder / kind / digest / f"{part}.npz" if part else self.folder / kind / f"{digest}.npz"

    def load(self, kind: str, key: Mapping[str, Any], part: str = "") -> dict[str, NDArray[Any]] | None:
        """The arrays of an entry by name; None where there is no usable entry."""
        path = self.path(kind, key, part)
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream:
                found = dict(np.load(stream, allow_pickle=False))  # the zip's checksums find damage
            if str(found["key"]) != _text(key, part):
                raise ValueError("it belongs to another key")
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self.note(f"{path} in the cache is damaged and is made again ({' '.join(str(error).split())})")
            return None
        return found

    def store(
        self, kind: str, key: Mapping[str, Any], arrays: Mapping[str, ArrayLike], part: str = ""
    ) -> None:
        """Writes an entry atomically.

        Raises:
            DataError: it cannot be written.
        """
        write_npz(self.path(kind, key, part), {"key": np.array(_text(key, part)), **arrays})


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike]) -> None:
    """Writes arrays to exactly this path, under a temporary name first.

    Raises:
        DataError: the file cannot be written.
    """
    with writing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _text(key: Mapping[str, Any], part: str = "") -> str:
    return json.dumps(dict(key) | ({"part": part} if part else {}), sort_keys=True, default=str)
