"""Files of reference statistics: flatq's own, which name their extractor and data, and those of others.

Reads and writes; the statistics themselves are `flatq.evaluate.moments`, measuring them and keeping what was
measured is `flatq.evaluate.cache`.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Moments, Reference, reference_from_moments
from flatq.files import replacing
from flatq.images import ImageSet

__all__ = [
    "REFERENCE_FORMAT",
    "REFERENCE_VERSION",
    "ReferenceSource",
    "StoredReference",
    "load_reference",
    "save_reference",
    "source_of",
    "write_npz",
]

REFERENCE_FORMAT = "flatq-reference"
REFERENCE_VERSION = 1

_KEYS = (
    "version",
    "mu",
    "sigma",
    "n",
    "extractor_name",
    "extractor_digest",
    "data_name",
    "data_digest",
    "image_shape",
    "preprocessing",
)


@dataclass(frozen=True)
class ReferenceSource:
    """Where reference statistics come from.

    kind: "images" that were at hand; "statistics" that flatq made; "foreign-statistics" that name neither
    their extractor nor their images. name, digest: of the images; of the file where they are foreign. n: of
    images, None where it is unknown. image_shape: (C, H, W), None where unknown. preprocessing: of the
    images, as `ImageSet.preprocessing`; None where it is unknown.
    """

    kind: Literal["images", "statistics", "foreign-statistics"]
    name: str
    digest: str
    n: int | None
    image_shape: tuple[int, int, int] | None
    preprocessing: str | None = None


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A file of statistics. extractor_name and extractor_digest: None where it is foreign."""

    reference: Reference
    source: ReferenceSource
    extractor_name: str | None
    extractor_digest: str | None


def source_of(images: ImageSet) -> ReferenceSource:
    """Images at hand, as a source."""
    return ReferenceSource(
        "images", images.name, images.digest, len(images.pixels), images.shape, images.preprocessing
    )


def save_reference(
    path: str | os.PathLike[str],
    reference: Reference | Moments,
    source: ReferenceSource,
    extractor: Extractor,
) -> None:
    """Writes an npz (mu [d], sigma [d, d], n and where they come from), under a temporary name first.

    Raises:
        DataError: the file cannot be written, or it is unknown what images the statistics are of.
    """
    if reference.n is None or source.image_shape is None or source.preprocessing is None:
        raise DataError(
            "Statistics of unknown images are not written again.",
            expected="statistics that were measured on images",
            next_step="keep the file that they came from",
        )
    write_npz(
        path,
        {
            "format": np.array(REFERENCE_FORMAT),
            "version": np.int64(REFERENCE_VERSION),
            "mu": np.asarray(reference.mean, dtype=np.float64),
            "sigma": np.asarray(reference.cov, dtype=np.float64),
            "n": np.int64(reference.n),
            "extractor_name": np.array(extractor.name),
            "extractor_digest": np.array(extractor.digest),
            "data_name": np.array(source.name),
            "data_digest": np.array(source.digest),
            "image_shape": np.array(source.image_shape, dtype=np.int64),
            "preprocessing": np.array(source.preprocessing),
        },
    )


def load_reference(path: str | os.PathLike[str]) -> StoredReference:
    """Reads what `save_reference` wrote, or the `mu` and `sigma` of a foreign npz. Never unpickles.

    Foreign are pytorch-fid's files and guided-diffusion's batches; of the latter `arr_0`, `mu_s` and
    `sigma_s` are left alone (the images may be fewer than the statistics were made of, so that n stays
    unknown).

    Raises:
        DataError: no such file, no npz, keys missing, another version, or unusable statistics.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{file} holds a bare array.",
                    expected="an npz with mu and sigma",
                    next_step="make statistics with `flatq stats DATA -o ref.npz`",
                )
            keys = list(archive.files)
            own = "format" in keys and str(archive["format"]) == REFERENCE_FORMAT
            missing = [key for key in (_KEYS if own else ("mu", "sigma")) if key not in keys]
            if not missing:
                wanted = _KEYS if own else ("mu", "sigma")
                content = {key: archive[key] for key in wanted}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"Cannot read the reference statistics {file}.",
            expected="an npz with mu and sigma, nothing pickled",
            got=str(error),
            next_step="make them with `flatq stats DATA -o ref.npz`",
        ) from error
    if missing:
        raise DataError(
            f"{file} holds no reference statistics.",
            expected="the keys mu and sigma, or a file of `flatq stats`",
            got=f"{', '.join(sorted(keys)) or 'no keys'} (missing: {', '.join(missing)})",
            next_step="name images with --data, or make statistics: flatq stats DATA -o ref.npz",
        )
    for key in ("mu", "sigma"):
        if content[key].dtype.kind not in "fiu":
            raise DataError(f"{file}: {key} is no array of real numbers.", got=str(content[key].dtype))
    try:
        return _own(file, content) if own else _foreign(file, content, digest)
    except DataError as error:
        raise DataError(
            f"{file}: {error.what}", expected=error.expected, got=error.got, next_step=error.next_step
        ) from error


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike]) -> None:
    """Writes arrays to exactly this path, under a temporary name first.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(
            f"cannot write {target}",
            expected="a file name in a folder that can be written",
            got=error.strerror or str(error),
        ) from error


def _own(file: Path, content: Mapping[str, NDArray[Any]]) -> StoredReference:
    version = _whole(content, "version")
    if version != REFERENCE_VERSION:
        raise DataError(
            "the reference statistics have another format version.",
            expected=str(REFERENCE_VERSION),
            got=str(version),
            next_step="make them again with `flatq stats DATA -o ref.npz`",
        )
    words = {}
    for key in _KEYS:
        if key.startswith(("extractor_", "data_")) or key == "preprocessing":
            if content[key].dtype.kind != "U" or content[key].ndim != 0:
                raise DataError(f"{key} is no text.", got=f"{content[key].dtype} {list(content[key].shape)}")
            words[key] = str(content[key])
    n, shape = _whole(content, "n"), content["image_shape"]
    if n < 2 or shape.shape != (3,) or shape.dtype.kind not in "iu" or int(shape.min()) < 1:
        raise DataError(
            "the number or the shape of the images is not possible.",
            expected="n >= 2 and an image shape [C, H, W]",
            got=f"n = {n}, image shape {shape.tolist()}",
        )
    reference = reference_from_moments(Moments(n, content["mu"], content["sigma"]))
    c, h, w = (int(size) for size in shape)
    source = ReferenceSource(
        "statistics",
        words["data_name"],
        words["data_digest"],
        n,
        (c, h, w),
        words["preprocessing"],
    )
    return StoredReference(reference, source, words["extractor_name"], words["extractor_digest"])


def _foreign(file: Path, content: Mapping[str, NDArray[Any]], digest: str) -> StoredReference:
    reference = reference_from_moments(Moments(None, content["mu"], content["sigma"]))
    source = ReferenceSource("foreign-statistics", file.name, digest, None, None)
    return StoredReference(reference, source, None, None)


def _whole(content: Mapping[str, NDArray[Any]], key: str) -> int:
    if content[key].ndim != 0 or content[key].dtype.kind not in "iu":
        raise DataError(f"{key} is no whole number.", got=f"{content[key].dtype} {list(content[key].shape)}")
    return int(content[key])
