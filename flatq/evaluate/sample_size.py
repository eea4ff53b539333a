"""What an evaluation would cost and could tell, from a pilot: images, wall time, the drift it resolves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from flatq.evaluate.drift import FULL_RATIO, Drift
from flatq.evaluate.moments import normal_quantile

__all__ = [
    "POWER",
    "Goal",
    "SampleSizes",
    "full_samples",
    "samples_needed",
    "sizes_from_pilot",
    "z_with_power",
]

POWER = 0.8
"""Probability of a decision at the number of samples that a verdict or `flatq eval --plan` names."""
_GROWTH = (1, 2, 4, 10)


@dataclass(frozen=True)
class Goal:
    """purpose in words, images for each of the two models, wall time of both in seconds (None where it was
    not measured), and the half-width that the interval has then (None without a pilot's interval)."""

    purpose: str
    images: int
    seconds: float | None
    half_width: float | None


@dataclass(frozen=True)
class SampleSizes:
    """pilot: its n. deviation: s, of IF_q - IF_x (None without an interval, and reason says why).
    resolvable: the half-width at the pilot's n. goals: the cheapest first."""

    pilot: int
    deviation: float | None
    resolvable: float | None
    confidence: float
    reason: str | None
    goals: tuple[Goal, ...]


def sizes_from_pilot(
    drift: Drift, seconds_per_image: float | None, max_drift: float | None = None
) -> SampleSizes:
    """Goals from the pilot's drift: a whole interval, larger samples, and what a tolerance needs.

    With a tolerance: images to resolve half of it, to pass with 80 % power if the true drift is 0, and
    likewise if it is the pilot's (where that is below the tolerance). n as `samples_needed`.

    Args:
        drift: of the pilot. Where it is beyond a relative tolerance, that is the tolerance; the true drift 0
            then means FID(q) = FID(x), and max_drift must be None.
        seconds_per_image: of both models together.
    """
    whole = full_samples(drift)
    z, powerful = normal_quantile(drift.confidence), z_with_power(drift.confidence)
    deviation = None if drift.standard_error is None else drift.standard_error * drift.n**0.5

    def goal(purpose: str, images: int) -> Goal:
        half = None if deviation is None else z * deviation / images**0.5
        seconds = None if seconds_per_image is None else images * seconds_per_image
        return Goal(purpose, images, seconds, half)

    goals = [goal(f"{FULL_RATIO:g} samples per feature rank, where the bias is known well", whole)]
    if deviation and drift.corrected is not None:
        goals += [goal(f"{k} x the pilot", k * drift.n) for k in _GROWTH if k * drift.n >= whole]
        limit, null = max_drift, 0.0
        if drift.relative_tolerance is not None:  # drift = FID(q) - (1 + tau) FID(x) is to be at most 0
            limit, null = 0.0, -drift.relative_tolerance * drift.fid_float
        if limit is not None and limit > null:
            half, passing = (limit - null) / 2, f"to pass with {POWER:.0%} power if"
            needed = samples_needed(drift, z / half)
            goals.append(goal(f"to resolve {half:.4g}, half the tolerance", needed))
            needed = samples_needed(drift, powerful / (limit - null))
            goals.append(goal(f"{passing} there is no drift", needed))
        if limit is not None and limit > drift.corrected:
            needed = samples_needed(drift, powerful / (limit - drift.corrected))
            goals.append(goal(f"{passing} the drift is the pilot's, {drift.corrected:+.4g}", needed))
    return SampleSizes(
        pilot=drift.n,
        deviation=deviation,
        resolvable=drift.half_width,
        confidence=drift.confidence,
        reason=drift.reason,
        goals=tuple(sorted(goals, key=lambda found: found.images)),
    )


def z_with_power(confidence: float) -> float:
    """Standard errors between truth and tolerance at which the interval excludes the tolerance with 80 %
    probability: 2.8 at 95 % confidence."""
    return normal_quantile(confidence) + NormalDist().inv_cdf(POWER)


def samples_needed(drift: Drift, z_over_gap: float) -> int:
    """n = (z s / gap)^2 with s = SE sqrt(n) of the pilot, which has an interval; and n >= 10 rank, where the
    bias is known well.

    Args:
        z_over_gap: the quantile for a half-width of `gap`, or `z_with_power` to tell the drift from a
            tolerance at that distance.
    """
    assert drift.standard_error is not None
    return max(math.ceil(z_over_gap**2 * drift.standard_error**2 * drift.n), full_samples(drift), 2)


def full_samples(drift: Drift) -> int:
    """n at 10 samples per feature rank."""
    return max(math.ceil(FULL_RATIO * drift.n / drift.n_over_rank), drift.dim + 1)
