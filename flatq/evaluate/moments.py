"""Mean and covariance of features, the fixed reference statistics with their cached root, and the checks
and the standard error that all paired comparisons share.

Features may be larger than memory: where a function takes `as_rows`, they are read in blocks of rows, so that
a memory-mapped file (`numpy.load(..., mmap_mode="r")`) in float32 does.

Distances between them live in `flatq.evaluate.frechet`, extracting features in the extractor modules, files
of reference statistics in `flatq.evaluate.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError

__all__ = [
    "F64",
    "Moments",
    "Reference",
    "Rows",
    "as_rows",
    "blocks_of",
    "check_confidence",
    "check_pairs",
    "moments_of",
    "normal_quantile",
    "rank_threshold",
    "reference_from_features",
    "reference_from_moments",
    "same_rows",
    "standard_error_of_mean",
]

F64 = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]
"""Features [n, d] as they lie, in memory or mapped; float64 only block by block."""

_RANK_MARGIN = 10.0
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Moments:
    """n samples' mean [d] f64 and unbiased (n - 1) covariance [d, d] f64; n is None where it is unknown."""

    n: int | None
    mean: F64
    cov: F64

    @property
    def dim(self) -> int:
        return int(self.mean.shape[0])


@dataclass(frozen=True, eq=False)
class Reference:
    """Reference statistics (mu_r, R), taken as fixed.

    mean [d], cov [d, d] and root = R^(1/2) [d, d] are f64 and read-only; n is the number of reference
    samples, None where it is unknown. rank counts the eigenvalues of R that R^(1/2) S R^(1/2) can tell from
    rounding for an S like R: those above 10 sqrt(10 eps d) l_max (the square root because R enters twice,
    the factor 10 so that a direction at the edge of rounding never decides whether there is an interval).
    """

    n: int | None
    mean: F64
    cov: F64
    root: F64
    rank: int

    @property
    def dim(self) -> int:
        return int(self.mean.shape[0])


def rank_threshold(dim: int) -> float:
    """Relative threshold 10 eps d under which an eigenvalue of R^(1/2) S R^(1/2) counts as zero."""
    return 10.0 * float(np.finfo(np.float64).eps) * dim


def as_rows(features: ArrayLike, *, name: str = "features") -> Rows:
    """Features [n, d] with n >= 2, checked to be finite; floats stay as they lie, without a copy.

    Raises:
        DataError: not two-dimensional, too few rows, no columns, or not finite.
    """
    array: NDArray[Any] = np.asanyarray(features)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise DataError(
            f"The {name} have the wrong shape.",
            expected="[n, d] with n >= 2 and d >= 1",
            got=str(list(array.shape)),
        )
    bad = [
        start + np.flatnonzero(~np.isfinite(array[start : start + _BLOCK_ROWS]).all(axis=1))
        for start in range(0, len(array), _BLOCK_ROWS)
    ]
    rows = np.concatenate(bad)
    if len(rows):
        raise DataError(
            f"The {name} are not finite.",
            got=f"{len(rows)} of {len(array)} rows with NaN or infinity, first row {rows[0]}",
            next_step="look at the images of these rows; a model that gives them must fail the gate",
        )
    return array


def blocks_of(rows: Rows) -> Iterator[tuple[slice, F64]]:
    """The rows in blocks of at most 2048, as float64 copies, with their place."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        place = slice(start, min(start + _BLOCK_ROWS, len(rows)))
        yield place, np.array(rows[place], dtype=np.float64)


def same_rows(x: Rows, q: Rows) -> bool:
    """Whether two arrays of one shape are equal, read block by block."""
    return all(
        np.array_equal(x[start : start + _BLOCK_ROWS], q[start : start + _BLOCK_ROWS])
        for start in range(0, len(x), _BLOCK_ROWS)
    )


def moments_of(features: ArrayLike) -> Moments:
    """Mean and unbiased covariance of features [n, d], n >= 2, in float64, block by block.

    Each block is centred by its own mean and merged by the pairwise update of Chan, Golub, LeVeque 1983, so
    that a mean far from zero costs no digits.

    Raises:
        DataError: as `as_rows`.
    """
    rows = as_rows(features)
    count, dim = 0, rows.shape[1]
    mean, scatter = np.zeros(dim), np.zeros((dim, dim))
    for _, block in blocks_of(rows):
        own = block.mean(axis=0)
        centred = block - own
        total = count + len(block)
        delta = own - mean
        scatter += centred.T @ centred
        scatter += np.outer(delta, delta) * (count * len(block) / total)
        mean += delta * (len(block) / total)
        count = total
    return Moments(n=count, mean=mean, cov=scatter / (count - 1))


def check_pairs(x: Rows, q: Rows, confidence: float) -> None:
    """Raises:
    DataError: x and q differ in shape, or the confidence lies outside (0, 1).
    """
    if x.shape != q.shape:
        raise DataError(
            "Float and quantized features do not pair up.",
            expected=f"{list(x.shape)} on both sides, row i from the same noise",
            got=str(list(q.shape)),
        )
    check_confidence(confidence)


def check_confidence(confidence: float) -> None:
    """Raises:
    DataError: the confidence lies outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise DataError("The confidence is out of range.", expected="0 < confidence < 1", got=f"{confidence}")


def normal_quantile(confidence: float) -> float:
    """Two-sided normal quantile: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def standard_error_of_mean(values: F64) -> float:
    """Standard error of the mean of values [n], n >= 2."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def reference_from_moments(moments: Moments) -> Reference:
    """Reference with R^(1/2) from the symmetric eigenproblem of R; rounding below zero is cut to zero.

    Raises:
        DataError: shapes do not fit, not finite, not symmetric, not positive semidefinite, or
            zero.
    """
    mean, cov = np.array(moments.mean, dtype=np.float64), np.array(moments.cov, dtype=np.float64)
    if mean.ndim != 1 or mean.size < 1 or cov.shape != (mean.size, mean.size):
        raise DataError(
            "The reference statistics have the wrong shape.",
            expected="mean [d] and covariance [d, d]",
            got=f"{list(mean.shape)} and {list(cov.shape)}",
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise DataError("The reference statistics are not finite.")
    scale = float(np.abs(cov).max())
    if scale == 0.0:
        raise DataError("The reference covariance is zero: all reference samples have the same features.")
    if float(np.abs(cov - cov.T).max()) > 1e-6 * scale:
        raise DataError("The reference covariance is not symmetric.")
    cov = (cov + cov.T) / 2
    values, vectors = np.linalg.eigh(cov)
    top = float(values[-1])
    if top <= 0.0 or float(values[0]) < -1e-5 * top:  # float32 statistics are off by about 1e-6
        raise DataError(
            "The reference covariance is not positive semidefinite.",
            got=f"eigenvalues from {float(values[0]):.3g} to {top:.3g}",
        )
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    root = (root + root.T) / 2
    rank = int((values > _RANK_MARGIN * np.sqrt(rank_threshold(mean.size)) * top).sum())
    for array in (mean, cov, root):
        array.flags.writeable = False
    return Reference(n=moments.n, mean=mean, cov=cov, root=root, rank=rank)


def reference_from_features(features: ArrayLike) -> Reference:
    """Reference statistics of features [n, d], n >= 2.

    Raises:
        DataError: as `as_rows` and `reference_from_moments`.
    """
    return reference_from_moments(moments_of(features))
