"""The gate's settings, applied to a drift with its influence values: one verdict of all tolerances.

What a single tolerance says is decided in `flatq.evaluate.gate`; the files are read in `flatq.report`.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from flatq.errors import UsageError
from flatq.evaluate.drift import Drift
from flatq.evaluate.gate import Verdict, decide
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.moments import F64
from flatq.evaluate.restate import beyond_relative_tolerance

__all__ = ["Influences", "Tolerances", "judge", "worst"]

_ORDER = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class Tolerances:
    """max_drift: in FID. max_drift_rel: as a share of the float model's FID; where both are given, both have
    to pass. min_samples: fewer are inconclusive."""

    max_drift: float | None = None
    max_drift_rel: float | None = None
    min_samples: int | None = None

    def check(self) -> None:
        """Raises:
        UsageError: no tolerance at all.
        """
        if self.max_drift is None and self.max_drift_rel is None:
            raise UsageError(
                "the gate has no tolerance",
                expected="--max-drift, --max-drift-rel or both",
                got="neither",
            )


@dataclass(frozen=True, eq=False)
class Influences:
    """f64 [n] of each image on the FID of either model, and the labels [n] of clusters, if any."""

    on_float: F64 | None = None
    on_quantized: F64 | None = None
    clusters: ArrayLike | None = None


def judge(
    drift: Drift | None,
    kid: KidDrift | None,
    tolerances: Tolerances,
    influences: Influences | None,
    *,
    finite: bool,
) -> Verdict:
    """The verdict of `decide` for each tolerance; of two, the worse.

    Args:
        drift: without a relative tolerance.
        influences: needed for a relative tolerance where the drift has an interval.

    Raises:
        UsageError: no tolerance.
        DataError: as `decide` and `beyond_relative_tolerance`.
    """
    tolerances.check()
    verdicts = []
    if tolerances.max_drift is not None:
        verdicts.append(
            decide(drift, kid, tolerances.max_drift, finite=finite, min_samples=tolerances.min_samples)
        )
    if tolerances.max_drift_rel is not None:
        relative = drift
        if drift is not None:
            kept = influences or Influences()
            relative = beyond_relative_tolerance(
                drift, tolerances.max_drift_rel, kept.on_float, kept.on_quantized, kept.clusters
            )
        limit = tolerances.max_drift_rel if relative is None else None
        verdicts.append(decide(relative, kid, limit, finite=finite, min_samples=tolerances.min_samples))
    return worst(verdicts)


def worst(verdicts: list[Verdict]) -> Verdict:
    """One verdict of several on the same model: the worst outcome, with the reasons of all that have it."""
    outcome = min((verdict.outcome for verdict in verdicts), key=_ORDER.index)
    counted = [verdict for verdict in verdicts if verdict.outcome == outcome]
    numbers = [verdict.samples_to_settle for verdict in counted]
    settled = [n for n in numbers if n is not None]
    return Verdict(
        outcome,
        " ".join(dict.fromkeys(verdict.reason for verdict in counted)),
        counted[0].metric,
        max(settled) if len(settled) == len(numbers) else None,
    )
