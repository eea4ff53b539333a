"""Mean and covariance of features, the fixed reference statistics with their cached root, and the checks
and the standard error that all paired comparisons share.

Distances between them live in `flatq.evaluate.frechet`, extracting features in the extractor modules, files
of reference statistics in `flatq.evaluate.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatq.errors import DataError

__all__ = [
    "F64",
    "Moments",
    "Reference",
    "as_features",
    "check_pairs",
    "cluster_index",
    "moments_of",
    "normal_quantile",
    "rank_threshold",
    "reference_from_features",
    "reference_from_moments",
    "standard_error_of_mean",
]

F64 = NDArray[np.float64]
_RANK_MARGIN = 10.0


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


def as_features(features: ArrayLike, *, name: str = "features", min_samples: int = 2) -> F64:
    """Features as a finite f64 array [n, d] with n >= min_samples.

    Raises:
        DataError: not two-dimensional, too few rows, no columns, not numbers, or not finite.
    """
    try:
        array = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The {name} are not numbers.", expected="an array [n, d] of floats") from error
    if array.ndim != 2 or array.shape[0] < min_samples or array.shape[1] < 1:
        raise DataError(
            f"The {name} have the wrong shape.",
            expected=f"[n, d] with n >= {min_samples} and d >= 1",
            got=str(list(array.shape)),
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise DataError(
            f"The {name} are not finite.",
            got=f"{len(bad)} of {len(array)} rows with NaN or infinity, first row {bad[0]}",
            next_step="look at the images of these rows; a model that gives them must fail the gate",
        )
    return array


def moments_of(features: ArrayLike) -> Moments:
    """Mean and unbiased covariance of features [n, d], n >= 2, in float64.

    Raises:
        DataError: as `as_features`.
    """
    x = as_features(features)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(n=len(x), mean=mean, cov=centred.T @ centred / (len(x) - 1))


def cluster_index(clusters: ArrayLike, n: int) -> tuple[NDArray[np.intp], int]:
    """Cluster labels [n] of any dtype as indices 0 .. G - 1, and G.

    Raises:
        DataError: another shape than [n].
    """
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise DataError(
            "The cluster labels have the wrong shape.", expected=f"[{n}]", got=str(list(labels.shape))
        )
    names, index = np.unique(labels, return_inverse=True)
    return index, len(names)


def check_pairs(x: F64, q: F64, confidence: float) -> None:
    """Raises:
    DataError: x and q differ in shape, or the confidence lies outside (0, 1).
    """
    if x.shape != q.shape:
        raise DataError(
            "Float and quantized features do not pair up.",
            expected=f"{list(x.shape)} on both sides, row i from the same noise",
            got=str(list(q.shape)),
        )
    if not 0.0 < confidence < 1.0:
        raise DataError("The confidence is out of range.", expected="0 < confidence < 1", got=f"{confidence}")


def normal_quantile(confidence: float) -> float:
    """Two-sided normal quantile: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def standard_error_of_mean(values: F64, clusters: ArrayLike | None = None) -> float:
    """Standard error of the mean of values [n]; with labels [n], summed within each cluster first.

    Raises:
        DataError: fewer than 2 clusters, or labels of another shape.
    """
    n = len(values)
    sums, count = values - values.mean(), n
    if clusters is not None:
        index, count = cluster_index(clusters, n)
        if count < 2:
            raise DataError("All samples are in one cluster.", expected="at least 2 clusters", got=str(count))
        sums = np.bincount(index, weights=sums, minlength=count)
    return float(np.sqrt(count / (count - 1) * (sums @ sums)) / n)


def reference_from_moments(moments: Moments) -> Reference:
    """Reference with R^(1/2) from the symmetric eigenproblem of R; rounding below zero is cut to zero.

    Raises:
        DataError: not numbers, shapes do not fit, not finite, not symmetric, not positive semidefinite, or
            zero.
    """
    try:
        mean = np.array(moments.mean, dtype=np.float64)
        cov = np.array(moments.cov, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("The reference statistics are not numbers.", got=str(error)) from error
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
        DataError: as `as_features` and `reference_from_moments`.
    """
    return reference_from_moments(moments_of(features))
