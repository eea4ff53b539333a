"""What `flatq eval` keeps of each image beside a report: the choice of images, and reading it back.

Written by `flatq.assess`; features stay in the file. Distances are measured in `flatq.evaluate.compare`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flatq.checkpoint import file_digest
from flatq.errors import DataError, one_line
from flatq.evaluate.moments import F64, standard_error_of_mean

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry

__all__ = ["CHANGED", "FIRST", "Sidecar", "kept_rows", "most_changed", "read_sidecar"]

FIRST = 24
"""Images of the grid of samples."""
CHANGED = 12
"""Pairs of those that changed most."""
_PIXELS = 64 * 64  # larger images are kept in smaller numbers
_FEWEST = 4

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sidecar:
    """Arrays of one model's n pairs; each but the first is None where it was not kept.

    Attributes:
        indices: i64 [n], of the image in each row.
        influence_float, influence_quantized: f64 [n]; None where the FID has no gradient, too.
        image_distance: f64 [n], root mean square distance of the two images.
        kept: i64 [k], ascending, the indices whose images kept_float and kept_quantized are, uint8
            [k, C, H, W].
    """

    indices: I64
    influence_float: F64 | None = None
    influence_quantized: F64 | None = None
    image_distance: F64 | None = None
    kept: I64 | None = None
    kept_float: U8 | None = None
    kept_quantized: U8 | None = None

    def pair(self, index: int) -> tuple[U8, U8] | None:
        """Both images of an index, uint8 [C, H, W]; None where they were not kept."""
        if self.kept is None or self.kept_float is None or self.kept_quantized is None:
            return None
        rows = np.flatnonzero(self.kept == index)
        return (self.kept_float[rows[0]], self.kept_quantized[rows[0]]) if rows.size else None


def kept_rows(distance: F64, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The rows of images [n, C, H, W] of this shape that a report keeps, ascending: the first ones, and those
    that changed most.

    Args:
        distance: f64 [n] of the pairs, finite.
    """
    first, changed = (
        max(_FEWEST, min(most, most * _PIXELS // (shape[-1] * shape[-2]))) for most in (FIRST, CHANGED)
    )
    return np.union1d(np.arange(min(first, len(distance))), most_changed(distance, changed))


def most_changed(distance: F64, count: int = CHANGED) -> NDArray[np.intp]:
    """Rows of the largest distances, largest first; those that did not change at all are not among them."""
    order = np.argsort(-distance, kind="stable")[:count]
    return order[distance[order] > 0]


def read_sidecar(entry: ModelEntry, folder: Path) -> Sidecar | None:
    """The sidecar of a report's model; None where there is no such file.

    Raises:
        DataError: a file that is damaged or changed, or that is not of the report's samples (its influence
            values do not give the report's standard error, its images are none or of other indices).
    """
    if entry.sidecar is None or not (folder / entry.sidecar).is_file():
        return None
    file = folder / entry.sidecar
    names = Sidecar.__dataclass_fields__
    try:
        # reports that are older than the field give no digest
        digest = None if entry.sidecar_sha256 is None else file_digest(file)
        if digest != entry.sidecar_sha256:
            raise DataError(
                f"checksum mismatch: {file} is not the file that was written with its report",
                expected=f"sha256 {entry.sidecar_sha256}",
                got=str(digest),
                next_step="restore the report's folder from a copy, or evaluate again",
            )
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            sidecar = Sidecar(**{name: archive[name] for name in names if name in archive.files})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} cannot be read",
            expected="the file that `flatq eval` wrote",
            got=one_line(error),
            next_step="evaluate again",
        ) from error
    if not (_influences_fit(entry, sidecar) and _images_fit(sidecar)):
        raise DataError(
            f"the sidecar {file} is not of the report's samples",
            expected=f"{entry.drift.n} images whose influence values give the report's standard error, a "
            "distance for each, and uint8 [k, C, H, W] of k of them",
            got=f"{sidecar.indices.size} images",
            next_step="keep the report's folder together, or evaluate again",
        )
    return sidecar


def _influences_fit(entry: ModelEntry, sidecar: Sidecar) -> bool:
    drift, a, b = entry.drift, sidecar.influence_float, sidecar.influence_quantized
    rows = {array.shape for array in (sidecar.indices, a, b, sidecar.image_distance) if array is not None}
    if rows != {(drift.n,)} or sidecar.indices.dtype.kind not in "iu":
        return False
    if drift.standard_error is None or drift.identical or drift.relative_tolerance is not None:
        return True
    return (
        a is not None
        and b is not None
        and bool(np.isclose(standard_error_of_mean(b - a), drift.standard_error, rtol=1e-6, atol=0.0))
    )


def _images_fit(sidecar: Sidecar) -> bool:
    if sidecar.image_distance is not None and not np.isfinite(sidecar.image_distance).all():
        return False
    kept, left, right = sidecar.kept, sidecar.kept_float, sidecar.kept_quantized
    if kept is None or left is None or right is None:
        return kept is None and left is None and right is None
    return bool(
        np.isin(kept, sidecar.indices).all()
        and left.dtype == right.dtype == np.uint8
        and left.shape == right.shape == (*kept.shape, *left.shape[-3:])
        and left.ndim == 4
        and left.shape[1] in (1, 3)
    )
