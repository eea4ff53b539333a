"""The cache folder, and the reference's features and statistics in it, kept by content.

Measuring them is `flatq.evaluate.measure`, files of statistics that a user names `flatq.evaluate.reference`;
samples are kept by `flatq.evaluate.samples`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq import __version__
from flatq.errors import DataError
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import F64, Moments, as_features
from flatq.evaluate.reference import write_npz
from flatq.images import ImageSet

__all__ = ["Note", "ReferenceCache", "cache_folder", "cache_key"]

Note = Callable[[str], None]
"""Called with one line that a user should see."""

_VERSION = 1


def cache_folder() -> Path:
    """`FLATQ_CACHE`, else flatq in `XDG_CACHE_HOME`, else ~/.cache/flatq. It need not exist."""
    if chosen := os.environ.get("FLATQ_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "flatq"
    return Path.home() / ".cache" / "flatq"


def cache_key(images: ImageSet, extractor: Extractor, threads: int) -> dict[str, Any]:
    """Whatever changes the features, in plain values; dim and n are in it to check an entry by.

    The machine is not: two machines' features differ by roundings of float32, which is nothing beside the
    images, and both models of a comparison are measured against the same reference. So an entry may go from
    machine to machine, as a file of `flatq stats` does.
    """
    return {
        "version": _VERSION,
        "flatq": __version__,
        "images": images.digest,
        "n": len(images.pixels),
        "extractor": extractor.digest,
        "dim": extractor.dim,
        "identity": extractor.identity(threads),
    }


@dataclass(frozen=True)
class ReferenceCache:
    """Features and statistics of images, one file for each pair of images and extractor.

    folder: the files lie in reference/ below it. note: told of damaged entries and of a folder that cannot be
    written; neither is an error.
    """

    folder: Path
    note: Note

    def path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / "reference" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"

    def load(self, key: dict[str, Any], *, features: bool) -> tuple[F64 | None, Moments] | None:
        """The entry, with its features [n, d] if asked for; None where there is none that can be used."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream:
                archive = np.load(stream, allow_pickle=False)
                if str(archive["key"]) != json.dumps(key, sort_keys=True):
                    raise ValueError("it belongs to other images or another extractor")
                moments = Moments(int(archive["n"]), archive["mu"], archive["sigma"])
                found = as_features(archive["features"]) if features else None
            expected = (key["n"], key["dim"])
            if (moments.n, moments.dim) != expected or (found is not None and found.shape != expected):
                raise ValueError("it has another shape")
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, DataError) as error:
            reason = " ".join(str(error).split())
            self.note(f"the cached reference {path} is damaged and is measured again ({reason})")
            return None
        return found, moments

    def store(self, key: dict[str, Any], features: F64, moments: Moments) -> None:
        """Writes an entry atomically; features in float32 where that loses nothing."""
        single = features.astype(np.float32)
        kept: NDArray[Any] = single if np.array_equal(single, features) else features
        entry: dict[str, ArrayLike] = {
            "key": np.array(json.dumps(key, sort_keys=True)),
            "n": np.int64(key["n"]),
            "mu": moments.mean,
            "sigma": moments.cov,
            "features": kept,
        }
        try:
            write_npz(self.path(key), entry)
        except DataError as error:
            self.note(f"the reference was not cached: {error.what}: {error.got}")
