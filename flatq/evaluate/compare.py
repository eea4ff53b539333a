"""One quantized model against its float model, from the features of paired samples. Pure statistics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.frechet import FrechetSide, frechet_side
from flatq.evaluate.kid import KidDrift, KidTerms, kid_drift, kid_terms
from flatq.evaluate.moments import F64, Rows, same_rows
from flatq.evaluate.precision_recall import PrecisionRecall
from flatq.evaluate.reference import MeasuredReference

__all__ = ["KID_PAIRS", "Comparison", "FeatureSet", "compare"]

KID_PAIRS = 10_000
"""Pairs that the KID is taken of, the first ones: its time grows with their square."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features [n, d] of one model's samples, and what the distances need of them alone, computed once."""

    features: Rows
    reference: MeasuredReference

    @cached_property
    def frechet(self) -> FrechetSide:
        return frechet_side(self.features, self.reference.statistics)

    @cached_property
    def kid(self) -> KidTerms:
        return kid_terms(self.features[:KID_PAIRS], self.reference.features)

    @cached_property
    def precision_recall(self) -> PrecisionRecall | None:
        return self.reference.precision_recall(self.features)


@dataclass(frozen=True, eq=False)
class Comparison:
    """kid is of the quantized samples from the float ones where there are no reference features
    (`KidDrift.against`). influence_float and influence_quantized: f64 [n], of each image on the FID; None
    where the FID has no gradient."""

    drift: Drift
    kid: KidDrift
    influence_float: F64 | None
    influence_quantized: F64 | None


def compare(x: FeatureSet, q: FeatureSet, confidence: float = 0.95) -> Comparison:
    """Both drifts of quantized samples q from float samples x, row i of both from the same noise.

    Raises:
        DataError: as `fid_drift` and `kid_drift`.
    """
    if x.features.shape == q.features.shape and same_rows(x.features, q.features):
        q = x
    sides = x.frechet, q.frechet
    return Comparison(
        fid_drift(x.features, q.features, x.reference.statistics, confidence, sides=sides),
        kid_drift(x.kid, q.features[:KID_PAIRS], x.reference.features, confidence),
        sides[0].influence,
        sides[1].influence,
    )
