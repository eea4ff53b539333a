"""Precision and recall of samples against the reference, from their nearest neighbours in feature space.

Needs the reference's features, not only its moments. They carry no interval and decide nothing: the gate is
`flatq.evaluate.gate`.

Source: Kynkaanniemi, Karras, Laine, Lehtinen, Aila 2019 (arXiv 1904.06991), equation 1: a point lies on the
manifold of a set where it is at most as far from some member as that member's k-th nearest neighbour is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flatq.evaluate.moments import F64, Rows

__all__ = [
    "MAX_POINTS",
    "NEIGHBOURS",
    "Manifold",
    "PrecisionRecall",
    "fixed_choice",
    "manifold_of",
    "precision_recall",
]

NEIGHBOURS = 3
"""k of the paper."""
MAX_POINTS = 10_000
"""Points taken of a side; of more, a fixed random choice of that many."""

_BLOCK_ENTRIES = 4_000_000  # distances held at a time: 32 MB, a few times over


@dataclass(frozen=True)
class PrecisionRecall:
    """precision: fraction of the n samples on the reference's manifold. recall: fraction of the n_reference
    reference points on the samples' manifold. k: of the neighbours. n and n_reference count the points that
    were taken, at most MAX_POINTS of each side."""

    precision: float
    recall: float
    k: int
    n: int
    n_reference: int


@dataclass(frozen=True, eq=False)
class Manifold:
    """points: f64 [m, d]. radii2: f64 [m], the squared distance of each to its k-th nearest neighbour."""

    points: F64
    radii2: F64
    k: int


def fixed_choice(rows: Rows) -> Rows:
    """All rows, or MAX_POINTS of more: a random choice, the same one for the same number, as a set may be
    sorted by class, or its classes may take turns."""
    if len(rows) <= MAX_POINTS:
        return rows
    # RandomState, because its stream is frozen for ever (NEP 19), default_rng's is not
    return rows[np.sort(np.random.RandomState(0).permutation(len(rows))[:MAX_POINTS])]


def manifold_of(features: ArrayLike, k: int = NEIGHBOURS) -> Manifold:
    """The manifold of features [n, d], n above k >= 1, of their `fixed_choice`.

    O(m^2 d) time for m points, bounded memory.
    """
    x = fixed_choice(np.asarray(features)).astype(np.float64)
    centred = x - x.mean(axis=0)
    radii2 = np.empty(len(x))
    for rows in _blocks(len(x), len(x)):
        distance2 = _distances2(centred[rows], centred)
        distance2[np.arange(len(distance2)), np.arange(len(x))[rows]] = np.inf  # not its own neighbour
        radii2[rows] = np.partition(distance2, k - 1, axis=1)[:, k - 1]
    return Manifold(x, radii2, k)


def precision_recall(samples: Manifold, reference: Manifold) -> PrecisionRecall:
    """Both in one pass over the distances, O(n m d); of manifolds in the same features, of the same k."""
    centre = reference.points.mean(axis=0)
    x, r = samples.points - centre, reference.points - centre
    on_reference = np.zeros(len(x), np.bool_)
    on_samples = np.zeros(len(r), np.bool_)
    for rows in _blocks(len(x), len(r)):
        distance2 = _distances2(x[rows], r)
        on_reference[rows] = (distance2 <= reference.radii2).any(axis=1)
        on_samples |= (distance2 <= samples.radii2[rows, None]).any(axis=0)
    return PrecisionRecall(float(on_reference.mean()), float(on_samples.mean()), reference.k, len(x), len(r))


def _blocks(n: int, m: int) -> list[slice]:
    rows = max(1, _BLOCK_ENTRIES // m)
    return [slice(i, i + rows) for i in range(0, n, rows)]


def _distances2(a: F64, b: F64) -> F64:
    """Squared distances [len(a), len(b)]; rounding below zero is cut."""
    d: F64 = a @ b.T
    d *= -2.0
    d += np.einsum("ij,ij->i", a, a)[:, None]
    d += np.einsum("ij,ij->i", b, b)
    return np.maximum(d, 0.0, out=d)
