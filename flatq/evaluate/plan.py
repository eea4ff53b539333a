"""What an evaluation would cost and could tell, from a pilot: images, wall time, the drift it resolves.

Nothing is measured here; how many images a goal needs is in `flatq.evaluate.gate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatq.evaluate.contrast import FULL_RATIO
from flatq.evaluate.drift import Drift
from flatq.evaluate.gate import full_samples, samples_for_half_width, samples_to_pass
from flatq.evaluate.moments import normal_quantile

__all__ = ["Goal", "Plan", "plan_from_pilot"]

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
class Plan:
    """pilot: its n. deviation: s, of IF_q - IF_x (None without an interval, and reason says why).
    resolvable: the half-width at the pilot's n. goals: the cheapest first."""

    pilot: int
    deviation: float | None
    resolvable: float | None
    confidence: float
    reason: str | None
    goals: tuple[Goal, ...]


def plan_from_pilot(
    drift: Drift, seconds_per_image: float | None, max_drift: float | None = None, *, power: float = 0.8
) -> Plan:
    """Goals from the pilot's drift: a whole interval, larger samples, and what a tolerance needs.

    With a tolerance: images to resolve half of it, to pass with the given power if the true drift is 0, and
    likewise if it is the pilot's (where that is below the tolerance). n = (z s / h)^2, and >= 10 r.

    Args:
        drift: of the pilot. Where it is beyond a relative tolerance, that is the tolerance; the true drift 0
            then means FID(q) = FID(x), and max_drift must be None.
        seconds_per_image: of both models together.

    Raises:
        DataError: as `samples_for_half_width` and `samples_to_pass`.
    """
    whole = full_samples(drift)
    z = normal_quantile(drift.confidence)
    deviation = None if drift.standard_error is None else drift.standard_error * drift.n**0.5

    def goal(purpose: str, images: int) -> Goal:
        half = None if deviation is None else z * deviation / images**0.5
        seconds = None if seconds_per_image is None else images * seconds_per_image
        return Goal(purpose, images, seconds, half)

    goals = [goal(f"{FULL_RATIO:g} samples per direction, where the bias is known well", whole)]
    if deviation and drift.corrected is not None:
        goals += [goal(f"{k} x the pilot", k * drift.n) for k in _GROWTH if k * drift.n >= whole]
        relative = drift.relative_tolerance
        limit = max_drift
        null = 0.0
        if relative is not None:  # drift = FID(q) - (1 + tau) FID(x) is to be at most 0
            limit, null = 0.0, -relative * drift.fid_float
        if limit is not None:
            if limit - null > 0:
                half = (limit - null) / 2
                goals.append(
                    goal(f"to resolve {half:.4g}, half the tolerance", samples_for_half_width(drift, half))
                )
                goals.append(
                    goal(
                        f"to pass with {power:.0%} power if there is no drift",
                        samples_to_pass(drift, limit, null, power),
                    )
                )
            if drift.corrected < limit:
                goals.append(
                    goal(
                        f"to pass with {power:.0%} power if the drift is the pilot's, {drift.corrected:+.4g}",
                        samples_to_pass(drift, limit, drift.corrected, power),
                    )
                )
    return Plan(
        pilot=drift.n,
        deviation=deviation,
        resolvable=drift.half_width,
        confidence=drift.confidence,
        reason=drift.reason,
        goals=tuple(sorted(goals, key=lambda found: found.images)),
    )
