"""Files of reference statistics: flatq's own, which name their extractor and data, and those of others."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from flatq.errors import DataError
from flatq.evaluate.cache import write_npz
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Moments, Reference, reference_from_moments

__all__ = ["ReferenceSource", "StoredReference", "load_reference", "save_reference"]

_FORMAT = "flatq-reference"


class _Labels(BaseModel):
    """What flatq's own files hold beside mu and sigma; `format` tells them from others'."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1] = 1
    n: int = Field(ge=2)
    extractor_name: str
    extractor_digest: str
    data_name: str
    data_digest: str
    image_shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    preprocessing: str


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


def save_reference(
    path: str | os.PathLike[str],
    reference: Reference | Moments,
    source: ReferenceSource,
    extractor: Extractor,
) -> None:
    """Writes statistics of images of a known source to an npz (mu [d], sigma [d, d] and where they are from).

    Raises:
        DataError: the file cannot be written.
    """
    labels = {
        "n": reference.n,
        "extractor_name": extractor.name,
        "extractor_digest": extractor.digest,
        "data_name": source.name,
        "data_digest": source.digest,
        "image_shape": list(source.image_shape or ()),
        "preprocessing": source.preprocessing,
    }
    kept = {name: np.array(value) for name, value in _Labels.model_validate(labels).model_dump().items()}
    arrays = {"format": np.array(_FORMAT), "mu": reference.mean, "sigma": reference.cov, **kept}
    write_npz(path, arrays)


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
                raise ValueError("a bare array")
            keys = list(archive.files)
            own = "format" in keys and str(archive["format"]) == _FORMAT
            wanted = ["mu", "sigma", *(_Labels.model_fields if own else ())]
            missing = [key for key in wanted if key not in keys]
            content = {key: archive[key] for key in wanted if key in keys}
            numbers = [
                content[key].astype(np.float64, casting="same_kind") for key in wanted[:2] if key in keys
            ]
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
    try:
        labels = _labels(content) if own else None
        reference = reference_from_moments(Moments(labels.n if labels else None, *numbers))
    except DataError as error:
        error.what = f"{file}: {error.what}"
        raise
    if labels is None:
        source = ReferenceSource("foreign-statistics", file.name, digest, None, None)
        return StoredReference(reference, source, None, None)
    c, h, w = labels.image_shape
    source = ReferenceSource(
        "statistics", labels.data_name, labels.data_digest, labels.n, (c, h, w), labels.preprocessing
    )
    return StoredReference(reference, source, labels.extractor_name, labels.extractor_digest)


def _labels(content: Mapping[str, NDArray[Any]]) -> _Labels:
    try:
        return _Labels.model_validate({name: content[name].tolist() for name in _Labels.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"{first['loc'][0]} is not what this version of flatq writes.",
            expected=first["msg"],
            got=repr(first["input"]),
            next_step="make them again with `flatq stats DATA -o ref.npz`",
        ) from error
