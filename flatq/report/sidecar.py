"""Reading what `flatq eval` keeps of each image beside a report: indices and influence values.

Written by `flatq.assess`; features stay in the file, and images are `flatq.report.pictures`'s.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatq.checkpoint import file_digest
from flatq.errors import DataError
from flatq.evaluate.difference import MeasuredDrift
from flatq.evaluate.moments import F64, standard_error_of_mean

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry

__all__ = ["Sidecar", "check_digest", "measured", "read_arrays", "read_sidecar"]


@dataclass(frozen=True, eq=False)
class Sidecar:
    """Row i is the image indices[i]. The influences f64 [n] are None where the FID has no gradient."""

    indices: NDArray[np.int64]
    influence_float: F64 | None
    influence_quantized: F64 | None


def read_sidecar(entry: ModelEntry, folder: Path) -> Sidecar | None:
    """The sidecar of a report's model; None where there is no such file.

    Raises:
        DataError: a file that is damaged or changed, or that is not of the report's samples (its influence
            values do not give the report's standard error).
    """
    if entry.sidecar is None or not (folder / entry.sidecar).is_file():
        return None
    file = folder / entry.sidecar
    check_digest(file, entry.sidecar_sha256)
    kept = read_arrays(file, ("indices", "influence_float", "influence_quantized"))
    if "indices" not in kept:
        raise _unreadable(file, "no indices")
    sidecar = Sidecar(kept["indices"], kept.get("influence_float"), kept.get("influence_quantized"))
    if not _fits(entry, sidecar):
        raise DataError(
            f"the sidecar {file} is not of the report's samples",
            expected=f"{entry.drift.n} images whose influence values give the report's standard error",
            got=f"{sidecar.indices.size} images",
            next_step="keep the report's folder together, or evaluate again",
        )
    return sidecar


def check_digest(file: Path, expected: str | None) -> None:
    """Compare a file beside a report with the sha256 that the report gives; older reports give None.

    Raises:
        DataError: another digest, or a file that cannot be read.
    """
    if expected is None:
        return
    try:
        got = file_digest(file)
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    if got != expected:
        raise DataError(
            f"checksum mismatch: {file} is not the file that was written with its report",
            expected=f"sha256 {expected}",
            got=got,
            next_step="restore the report's folder from a copy, or evaluate again",
        )


def read_arrays(file: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names in an npz, as far as they are there.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            return {key: archive[key] for key in keys if key in archive.files}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(file, " ".join(str(error).split())) from error


def _unreadable(file: Path, why: str) -> DataError:
    return DataError(
        f"{file} cannot be read",
        expected="the file that `flatq eval` wrote",
        got=why,
        next_step="evaluate again",
    )


def measured(entry: ModelEntry, sidecar: Sidecar | None) -> MeasuredDrift:
    """For `flatq.evaluate.difference`."""
    if sidecar is None:
        return MeasuredDrift(entry.drift)
    values = None
    if sidecar.influence_float is not None and sidecar.influence_quantized is not None:
        values = sidecar.influence_quantized - sidecar.influence_float
    return MeasuredDrift(entry.drift, sidecar.indices, values)


def _fits(entry: ModelEntry, sidecar: Sidecar) -> bool:
    drift = entry.drift
    rows = {
        array.shape
        for array in (sidecar.indices, sidecar.influence_float, sidecar.influence_quantized)
        if array is not None
    }
    if rows != {(drift.n,)} or sidecar.indices.dtype.kind not in "iu":
        return False
    if drift.standard_error is None or drift.identical or drift.relative_tolerance is not None:
        return True
    if sidecar.influence_float is None or sidecar.influence_quantized is None:
        return False
    se = standard_error_of_mean(sidecar.influence_quantized - sidecar.influence_float)
    return bool(np.isclose(se, drift.standard_error, rtol=1e-6, atol=0.0))
