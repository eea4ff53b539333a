"""The Frechet distance to a fixed reference, its influence values and its bias, one side at a time.

Symmetric eigenproblems in float64 only. The difference of two sides and its interval live in
`flatq.evaluate.drift`.

Symbols: features x with mean mu and covariance S (n - 1), reference mu_r and R,
M = R^(1/2) S R^(1/2) = U diag(s^2) U^T with the r eigenvalues above 10 eps d l_max kept,
y = U^T R^(1/2) (x - mu), so that Cov(y) = diag(s^2).

Sources: Dowson, Landau 1982 (the distance); Rippl, Munk, Sturm 2016, arXiv 1507.04090 (its derivative);
Mestre 2008, IEEE Trans. Inf. Theory 54(11) (the contour integral).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flatq.errors import DataError
from flatq.evaluate.moments import (
    F64,
    Moments,
    Reference,
    Rows,
    as_rows,
    blocks_of,
    moments_of,
    rank_threshold,
)

__all__ = [
    "FrechetSide",
    "frechet_distance",
    "frechet_side",
    "population_root_sum",
]


@dataclass(frozen=True, eq=False)
class FrechetSide:
    """One side of a drift.

    distance: the plug-in FID. rank: r. influence: f64 [n] with mean zero, or None where the gradient does
    not exist (n <= d, or r below the reference's rank). bias: what to subtract from `distance`,
    b_rmt + b2 - b2_gauss, or None where in addition r >= n - 1.
    """

    n: int
    dim: int
    distance: float
    rank: int
    influence: F64 | None = None
    bias: float | None = None
    b2: float | None = None
    b_rmt: float | None = None
    b2_gauss: float | None = None


@dataclass(frozen=True, eq=False)
class _Bures:
    distance: float
    s: F64  # [r], ascending
    to_y: F64  # [d, r], R^(1/2) U


def _distance(moments: Moments, reference: Reference, s: F64) -> float:
    shift = moments.mean - reference.mean
    return float(shift @ shift + np.trace(moments.cov) + np.trace(reference.cov) - 2.0 * s.sum())


def _bures(moments: Moments, reference: Reference) -> _Bures:
    m = reference.root @ moments.cov @ reference.root
    values, vectors = np.linalg.eigh((m + m.T) / 2)
    keep = values > max(rank_threshold(moments.dim) * float(values[-1]), 0.0)
    s = np.sqrt(values[keep])
    return _Bures(distance=_distance(moments, reference, s), s=s, to_y=reference.root @ vectors[:, keep])


def _few(x: Rows, moments: Moments, reference: Reference) -> tuple[float, int]:
    """Distance and rank for n <= d, from the n x n matrix that has the eigenvalues of M that are not zero."""
    y = (x - moments.mean) @ reference.root
    values = np.linalg.eigvalsh(y @ y.T / (len(x) - 1))
    s = np.sqrt(values[values > max(rank_threshold(moments.dim) * float(values[-1]), 0.0)])
    return _distance(moments, reference, s), len(s)


def frechet_distance(features_or_moments: ArrayLike | Moments, reference: Reference) -> float:
    """FID = |mu - mu_r|^2 + tr S + tr R - 2 sum s, of features [n, d] or of their moments.

    Rounding can take it slightly below zero for equal statistics; it is not cut.

    Raises:
        DataError: bad features.
    """
    moments = (
        features_or_moments if isinstance(features_or_moments, Moments) else moments_of(features_or_moments)
    )
    return _bures(moments, reference).distance


def frechet_side(features: ArrayLike, reference: Reference) -> FrechetSide:
    """Distance, influence and bias of features [n, d] against the reference.

    The influence of a sample x, centred, is 2 x.(mu - mu_r) + |x|^2 - sum_i y_i^2 / s_i: the gradient I - T
    of the Bures term, T the optimal transport map, without forming T. The bias is b_rmt + b2 - b2_gauss with
      b2       = [tr S + 1/2 sum_ij Var(y_i y_j) / (s_i s_j (s_i + s_j))] / n   (infinitesimal jackknife),
      b2_gauss = [tr S + 1/2 sum_ij (1 + [i=j]) s_i s_j / (s_i + s_j)] / n      (b2 for gaussian y),
      b_rmt    = tr S / n + 2 (t_hat - sum s), t_hat from `population_root_sum`.

    Raises:
        DataError: bad features.
    """
    x = as_rows(features)
    n, d = x.shape
    moments = moments_of(x)
    if n <= d:
        distance, r = _few(x, moments, reference)
        return FrechetSide(n=n, dim=d, distance=distance, rank=r)
    bures = _bures(moments, reference)
    s, r = bures.s, len(bures.s)
    if r < reference.rank:
        return FrechetSide(n=n, dim=d, distance=bures.distance, rank=r)

    trace = float(np.trace(moments.cov))
    shift = 2.0 * (moments.mean - reference.mean)
    inf = np.empty(n)
    fourth = np.zeros((r, r))
    for rows, centred in blocks_of(x):
        centred -= moments.mean
        y2 = (centred @ bures.to_y) ** 2
        inf[rows] = centred @ shift + (centred**2).sum(axis=1) - y2 @ (1.0 / s)
        fourth += y2.T @ y2
    inf -= inf.mean()

    variance = s**2 * ((n - 1) / n)  # mean of y_i^2
    pair_sum = s[:, None] + s[None, :]
    weight = 0.5 / (s[:, None] * s[None, :] * pair_sum)
    second = float((weight * (fourth / n)).sum() - (np.diag(weight) * variance**2).sum())
    b2 = (trace + second) / n
    if r >= n - 1:
        return FrechetSide(n=n, dim=d, distance=bures.distance, rank=r, influence=inf, b2=b2)
    product = s[:, None] * s[None, :] / pair_sum
    b2_gauss = (trace + 0.5 * float(product.sum() + np.trace(product))) / n
    b_rmt = trace / n + 2.0 * (population_root_sum(s**2, n) - float(s.sum()))
    return FrechetSide(
        n=n,
        dim=d,
        distance=bures.distance,
        rank=r,
        influence=inf,
        bias=b_rmt + b2 - b2_gauss,
        b2=b2,
        b_rmt=b_rmt,
        b2_gauss=b2_gauss,
    )


def population_root_sum(eigenvalues: ArrayLike, n: float, points: int = 200) -> float:
    """t_hat: sum of the square roots of the population eigenvalues, from the sample ones.

    Args:
        eigenvalues: the r positive eigenvalues of a sample covariance (n - 1).
        n: number of samples, r < n - 1.
        points: points of the contour's upper half (the lower half is its conjugate).

    Mestre 2008: c = r / (n - 1), m(z) = -(1 - c) / z + c mean(1 / (l - z)), z0 its zero in (0, l_min),
    w = -1 / m; t_hat = -r Re[1 / (2 pi i) closed-integral sqrt(w) (w - z - c w) / (c w^2) w' dz] over an
    ellipse in log z from log(z0 / 2) to log(2 l_max) with imaginary half-axis 1.5.

    Raises:
        DataError: no positive eigenvalues, or r >= n - 1.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64).ravel())
    r = len(values)
    if r == 0:
        return 0.0
    if not (values[0] > 0 and np.isfinite(values[-1])) or r >= n - 1:
        raise DataError(
            "The population eigenvalues cannot be estimated.",
            expected="positive eigenvalues, fewer than n - 1",
            got=f"{r} eigenvalues from {values[0]:.3g} on, n = {n:g}",
        )
    scale = float(values[-1])
    lam = values / scale
    c = r / (n - 1)
    low, high = np.log(lam[0]) - 80.0, float(np.log(lam[0]))
    for _ in range(100):  # bisection on log z: m rises from -inf to +inf on (0, l_min)
        middle = (low + high) / 2
        z = np.exp(middle)
        gap = lam - z
        if gap[0] <= 0 or -(1 - c) / z + c * np.mean(1 / gap) > 0:
            high = middle
        else:
            low = middle
    left, right = low - np.log(2.0), np.log(2.0)
    theta = np.pi * (np.arange(points) + 0.5) / points
    z = np.exp((left + right) / 2 + (right - left) / 2 * np.cos(theta) + 1.5j * np.sin(theta))
    dz = z * (-(right - left) / 2 * np.sin(theta) + 1.5j * np.cos(theta))
    inverse = 1.0 / (lam[None, :] - z[:, None])
    m = -(1 - c) / z + c * inverse.mean(axis=1)
    dm = (1 - c) / z**2 + c * (inverse**2).mean(axis=1)
    w = -1.0 / m
    integrand = np.sqrt(w) * (w - z - c * w) / (c * w**2) * (dm / m**2) * dz
    # the lower half gives the conjugate with the opposite sign: 1 / (2 pi i) * 2i Im = Im / pi
    return float(-r * integrand.imag.sum() / points * np.sqrt(scale))
