"""A claim is one or more conditions on a contrast between methods, measured once for each training seed.

Each condition is a two-sided t test over seeds against its threshold. Holm's correction runs over all
conditions of one family; the interval shown is not adjusted. No torch, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.report.model import Record

__all__ = [
    "FEWEST_SEEDS",
    "Claim",
    "Condition",
    "JudgedClaim",
    "JudgedCondition",
    "judge_claims",
    "t_interval",
]

FEWEST_SEEDS = 5
"""With fewer seeds the estimates are shown without a verdict."""

_ALPHA = 0.05
_POWER = 0.8
_MOST_SEEDS = 1000

ClaimVerdict = Literal["confirmed", "refuted", "undecided", "too few seeds"]


class Condition(Record):
    """A contrast and the threshold that a claim sets.

    Attributes:
        name: such as "log ratio of LPF increase, SAM / ADM".
        values: the contrast at each training seed, paired within the seed.
        side: the claim holds below or above the threshold.
    """

    name: str
    values: tuple[float, ...]
    side: Literal["below", "above"]
    threshold: float


class Claim(Record):
    """Confirmed if all conditions hold, refuted if one does not."""

    name: str
    conditions: tuple[Condition, ...]


class JudgedCondition(Record):
    """One test.

    Attributes:
        mean, low, high: the contrast's mean over seeds and its unadjusted 95 % interval; None for one seed.
        p: two-sided, against the threshold. p_adjusted: after Holm.
        seeds_needed: seeds with which a spread and mean like these would decide with 80 % power at the
            unadjusted level; None where it is decided, or where more than 1,000 would be needed.
    """

    name: str
    seeds: int
    threshold: float
    side: Literal["below", "above"]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: ClaimVerdict
    seeds_needed: int | None


class JudgedClaim(Record):
    """A claim and its tests."""

    name: str
    verdict: ClaimVerdict
    conditions: tuple[JudgedCondition, ...]


def judge_claims(claims: Sequence[Claim]) -> list[JudgedClaim]:
    """Judge the claims of one family.

    Raises:
        DataError: a condition without values, or with values that are not finite.
    """
    conditions = [condition for claim in claims for condition in claim.conditions]
    for condition in conditions:
        if not condition.values or not np.isfinite(condition.values).all():
            raise DataError(
                f"the contrast {condition.name!r} cannot be judged",
                expected="a finite value for each training seed",
                got=", ".join(map(str, condition.values)) or "no seed",
                next_step="look at the cells that it is taken from",
            )
    tested = [condition for condition in conditions if len(condition.values) >= FEWEST_SEEDS]
    p = [_p(condition) for condition in tested]
    tests = iter(zip(p, _holm(p), strict=True))
    judged = iter([_judge(c, *(next(tests) if c in tested else (None, None))) for c in conditions])
    found = []
    for claim in claims:
        parts = tuple(next(judged) for _ in claim.conditions)
        found.append(JudgedClaim(name=claim.name, verdict=_joint(parts), conditions=parts))
    return found


def t_interval(values: NDArray[np.float64]) -> tuple[float, float | None, float | None]:
    """Mean of values [n] and the ends of its 95 % t interval; None for a single value."""
    from scipy.stats import t

    n, mean = len(values), float(values.mean())
    if n == 1:
        return mean, None, None
    half = float(t.ppf(1 - _ALPHA / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def _p(condition: Condition) -> float:
    """Two-sided p value of the t test against the threshold; without any spread 0, or 1 at the threshold."""
    from scipy.stats import t

    values = np.array(condition.values) - condition.threshold
    error = values.std(ddof=1) / np.sqrt(len(values))
    if error == 0:
        return float(values.mean() == 0)
    return float(2 * t.sf(abs(values.mean()) / error, len(values) - 1))


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979)."""
    order, found = np.argsort(p, kind="stable"), np.empty(len(p))
    steps = np.minimum(1.0, np.arange(len(p), 0, -1) * np.asarray(p)[order])
    found[order] = np.maximum.accumulate(steps)
    return [float(value) for value in found]


def _judge(condition: Condition, p: float | None, adjusted: float | None) -> JudgedCondition:
    mean, low, high = t_interval(np.array(condition.values))
    verdict: ClaimVerdict = "too few seeds" if adjusted is None else "undecided"
    if adjusted is not None and adjusted <= _ALPHA:
        holds = mean < condition.threshold if condition.side == "below" else mean > condition.threshold
        verdict = "confirmed" if holds else "refuted"
    return JudgedCondition(
        name=condition.name,
        seeds=len(condition.values),
        threshold=condition.threshold,
        side=condition.side,
        mean=mean,
        low=low,
        high=high,
        p=p,
        p_adjusted=adjusted,
        verdict=verdict,
        seeds_needed=_seeds_needed(condition) if verdict in ("undecided", "too few seeds") else None,
    )


def _seeds_needed(condition: Condition) -> int | None:
    """The fewest seeds at which the t test has the power, were mean and spread the true ones."""
    from scipy.stats import nct, t

    values = np.array(condition.values) - condition.threshold
    if len(values) < 2 or values.std(ddof=1) == 0 or values.mean() == 0:
        return None
    effect = abs(values.mean()) / values.std(ddof=1)
    n = np.arange(FEWEST_SEEDS, _MOST_SEEDS + 1)
    critical = t.ppf(1 - _ALPHA / 2, n - 1)
    power = nct.sf(critical, n - 1, effect * np.sqrt(n))
    reached = n[power >= _POWER]
    return int(reached[0]) if len(reached) else None


def _joint(parts: Sequence[JudgedCondition]) -> ClaimVerdict:
    verdicts = {part.verdict for part in parts}
    if "refuted" in verdicts:
        return "refuted"
    if verdicts == {"confirmed"}:
        return "confirmed"
    return "too few seeds" if "too few seeds" in verdicts else "undecided"
