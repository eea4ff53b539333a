"""Which images a report keeps beside their features, and reading them back: the first ones, for the grids of
samples, and the pairs that changed most.

Distances are measured in `flatq.evaluate.compare`; files are read by `flatq.report.sidecar`; drawing is the
pages'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.evaluate.moments import F64
from flatq.report.sidecar import read_arrays, read_sidecar

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry

__all__ = ["CHANGED", "FIRST", "Pictures", "kept_rows", "most_changed", "pictures_at", "read_pictures"]

FIRST = 24
"""Images of the grid of samples."""
CHANGED = 12
"""Pairs of those that changed most."""
_PIXELS = 64 * 64  # larger images are kept in smaller numbers
_FEWEST = 4

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Of one model's pairs. distance: f64 [n], the root mean square distance of the pair of each of indices
    i64 [n]. kept: i64 [k], the indices whose images were kept, ascending; of_float, of_quantized: uint8
    [k, C, H, W]. These three are None where none were."""

    indices: I64
    distance: F64
    kept: I64 | None = None
    of_float: U8 | None = None
    of_quantized: U8 | None = None

    def pair(self, index: int) -> tuple[U8, U8] | None:
        """Both images of an index, uint8 [C, H, W]; None where they were not kept."""
        if self.kept is None or self.of_float is None or self.of_quantized is None:
            return None
        rows = np.flatnonzero(self.kept == index)
        return (self.of_float[rows[0]], self.of_quantized[rows[0]]) if rows.size else None


def kept_rows(distance: F64, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The rows of images [n, C, H, W] of this shape that a report keeps, ascending.

    Args:
        distance: f64 [n] of the pairs, finite.
    """
    first = np.arange(min(_count(FIRST, shape), len(distance)))
    return np.union1d(first, most_changed(distance, _count(CHANGED, shape)))


def most_changed(distance: F64, count: int = CHANGED) -> NDArray[np.intp]:
    """Rows of the largest distances, largest first; those that did not change at all are not among them."""
    order = np.argsort(-distance, kind="stable")[:count]
    return order[distance[order] > 0]


def pictures_at(indices: I64, of_float: U8, of_quantized: U8) -> dict[str, NDArray[Any]]:
    """The arrays of the sidecar that hold kept images uint8 [k, C, H, W]."""
    return {"kept": indices, "kept_float": of_float, "kept_quantized": of_quantized}


def read_pictures(entry: ModelEntry, folder: Path) -> Pictures | None:
    """What a report's model keeps of its images; None without a sidecar, or in one without distances.

    Raises:
        DataError: as `read_sidecar`; images that are none, or not of the sidecar's indices.
    """
    sidecar = read_sidecar(entry, folder)
    if sidecar is None or entry.sidecar is None:
        return None
    file = folder / entry.sidecar
    found = read_arrays(file, ("image_distance", "kept", "kept_float", "kept_quantized"))
    distance = found.get("image_distance")
    if distance is None:
        return None
    pictures = Pictures(
        sidecar.indices, distance, found.get("kept"), found.get("kept_float"), found.get("kept_quantized")
    )
    if not _fit(pictures):
        raise DataError(
            f"the images in the sidecar {file} do not fit its indices",
            expected="uint8 [k, C, H, W] of k of the indices, and a distance for each index",
            got="something else",
            next_step="evaluate again",
        )
    return pictures


def _count(most: int, shape: tuple[int, ...]) -> int:
    """Fewer of larger images, so that the kept ones take about the same room."""
    return max(_FEWEST, min(most, most * _PIXELS // (shape[-1] * shape[-2])))


def _fit(pictures: Pictures) -> bool:
    if pictures.distance.shape != pictures.indices.shape or pictures.distance.dtype.kind != "f":
        return False
    if not np.isfinite(pictures.distance).all():
        return False
    kept, left, right = pictures.kept, pictures.of_float, pictures.of_quantized
    if kept is None or left is None or right is None:
        return all(part is None for part in (kept, left, right))
    return bool(
        kept.dtype.kind in "iu"
        and kept.ndim == 1
        and np.isin(kept, pictures.indices).all()
        and left.dtype == right.dtype == np.uint8
        and left.shape == right.shape
        and left.ndim == 4
        and len(left) == len(kept)
        and left.shape[1] in (1, 3)
        and left.size > 0
    )
