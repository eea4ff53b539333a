"""From a drift to a verdict: pass, fail or inconclusive, and how many samples would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flatq.errors import DataError, UsageError
from flatq.evaluate.difference import DriftDifference
from flatq.evaluate.drift import Drift, beyond_relative_tolerance
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.moments import F64
from flatq.evaluate.sample_size import POWER, full_samples, samples_needed, z_with_power

__all__ = ["COLLAPSE_VARIANCE", "Tolerances", "Verdict", "decide", "decide_difference", "judge", "worst"]

COLLAPSE_LIMIT = 0.5
"""KID drift, in units of the KID of a model that repeats one of the float model's images."""
COLLAPSE_VARIANCE = 0.05
"""Share of the float samples' total feature variance under which the quantized samples count as one image."""
_ORDER = ("fail", "inconclusive", "pass")
_LEAST_GAP = 1e-3
"""Half-widths between truth and tolerance under which no feasible n decides: a million times as many."""


@dataclass(frozen=True)
class Verdict:
    """outcome, one sentence of reason with the numbers, the metric it rests on ("samples", "kid" or
    "fid"). samples_to_settle: for an inconclusive outcome, the number of samples at which a new evaluation
    reaches a decision with 80 % power if the true drift is the measured one; where the drift has no interval
    or there were too few samples, the number that gives it one or is enough. None where no number would."""

    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
    metric: str
    samples_to_settle: int | None = None


@dataclass(frozen=True)
class Tolerances:
    """max_drift: in FID. max_drift_rel: as a fraction of the float model's FID; where both are given, both
    have to pass. min_samples: fewer are inconclusive."""

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


def judge(
    drift: Drift,
    kid: KidDrift,
    tolerances: Tolerances,
    influence_float: F64 | None = None,
    influence_quantized: F64 | None = None,
    *,
    not_finite: int = 0,
) -> Verdict:
    """The verdict of `decide` for each tolerance; of two, the worse.

    Args:
        drift: without a relative tolerance.
        influence_float, influence_quantized: f64 [n] of each image on either FID, needed for a relative
            tolerance where the drift has an interval.
        not_finite: as in `decide`.

    Raises:
        UsageError: no tolerance.
        DataError: as `decide` and `beyond_relative_tolerance`.
    """
    tolerances.check()
    judged: list[tuple[Drift, float | None]] = []
    if tolerances.max_drift is not None:
        judged.append((drift, tolerances.max_drift))
    if tolerances.max_drift_rel is not None:
        influences = influence_float, influence_quantized
        judged.append((beyond_relative_tolerance(drift, tolerances.max_drift_rel, *influences), None))
    least = tolerances.min_samples
    return worst([decide(d, kid, limit, min_samples=least, not_finite=not_finite) for d, limit in judged])


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


def decide(
    drift: Drift,
    kid: KidDrift,
    max_drift: float | None,
    *,
    min_samples: int | None = None,
    not_finite: int = 0,
) -> Verdict:
    """The verdict on a drift against max_drift, in FID.

    In this order: quantized images that are not finite (not_finite of them) fail at any n; a collapse fails
    at any n; fewer than min_samples are inconclusive; identical features pass; no FID interval is
    inconclusive; upper end <= tolerance passes; lower end > tolerance fails; else inconclusive.

    A collapse is either of (both relative to the float samples, so to the features' scale):
      - the lower end of the KID drift (where kid.against is "float", of the KID from the float samples) is
        above half of spread_float, spread_float being the KID, seen from the float samples, of a
        model that repeats one of the float model's images;
      - kid.variance_share < 0.05: the quantized samples hardly differ from one another. (A model that gives
        one grey image near the float samples' mean is not far away in KID: this catches it.)

    Where drift has a relative tolerance, that is the tolerance, and max_drift must be None.

    Raises:
        DataError: a tolerance that is negative or not finite.
    """
    if max_drift is None:
        limit, label = 0.0, f"0 beyond {_percent(drift.relative_tolerance or 0.0)} of the float model's FID"
    else:
        limit, label = max_drift, f"the tolerated {max_drift:g}"
    _check_tolerance(limit)
    early = _early_verdict(kid, drift.n, drift.n, min_samples, not_finite)
    if early is not None:
        return early
    if drift.identical:
        return Verdict("pass", f"The features of all {drift.n} pairs are identical: the drift is 0.", "fid")
    if drift.low is None or drift.high is None or drift.corrected is None:
        reason = (
            f"The FID drift (raw {drift.raw:+.4g}) has no interval: {drift.reason}; the {_kid_name(kid)} is "
            f"{kid.drift:+.4g}, {_percent(kid.confidence)} in {_ends(kid)}."
        )
        return Verdict("inconclusive", reason, "fid", full_samples(drift) if drift.settles else None)
    gap, n = abs(limit - drift.corrected), None
    if gap > _LEAST_GAP * (drift.half_width or 0.0):
        n = max(samples_needed(drift, z_with_power(drift.confidence) / gap), drift.n + 1)
    what = f"drift ({drift.corrected:+.4g}, {_percent(drift.confidence)} in {_ends(drift)}, n = {drift.n})"
    more = _more(n, "samples", f"drift is {drift.corrected:+.4g}")
    return _verdict(what, (drift.low, drift.high), limit, label, more, n)


def decide_difference(
    difference: DriftDifference,
    kid: KidDrift,
    max_drift: float,
    *,
    min_samples: int | None = None,
    not_finite: int = 0,
) -> Verdict:
    """The verdict on how much a drift grew over that of an earlier report, in the order of `decide`.

    Args:
        kid, not_finite: of the new model.
        max_drift: the tolerated growth, in FID.

    Raises:
        DataError: a tolerance that is negative or not finite.
    """
    _check_tolerance(max_drift)
    old, new = difference.n
    early = _early_verdict(kid, new, min(old, new), min_samples, not_finite)
    if early is not None:
        return early
    if difference.corrected is None or difference.low is None or difference.high is None:
        return Verdict("inconclusive", f"The drifts cannot be compared: {difference.reason}.", "fid")
    gap, n = abs(max_drift - difference.corrected), None
    if gap > _LEAST_GAP * (difference.half_width or 0.0):
        needed = (z_with_power(difference.confidence) * (difference.standard_error or 0.0) / gap) ** 2
        n = max(math.ceil(max(old, new) * needed), max(old, new) + 1)
    pairs = f"paired on {difference.shared} images" if difference.paired else "unpaired"
    what = (
        f"drift over the earlier report ({difference.corrected:+.4g}, {_percent(difference.confidence)} in "
        f"{_ends(difference)}, {pairs}, n = {old} and {new})"
    )
    why = "" if difference.paired else f" (unpaired: {difference.unpaired})"
    more = _more(n, "samples of both", f"growth is {difference.corrected:+.4g}")
    ends = difference.low, difference.high
    return _verdict(what, ends, max_drift, f"the tolerated {max_drift:g}", more, n, why)


def _early_verdict(
    kid: KidDrift, n: int, fewest: int, min_samples: int | None, not_finite: int
) -> Verdict | None:
    """The verdict that needs no interval: on a broken model of n images, or too few images."""
    broken = _broken(kid, n, not_finite)
    if broken is not None or min_samples is None or fewest >= min_samples:
        return broken
    reason = f"{fewest} samples are fewer than the {min_samples} asked for."
    return Verdict("inconclusive", reason, "fid", min_samples)


def _verdict(
    what: str, ends: tuple[float, float], limit: float, label: str, more: str, n: int | None, why: str = ""
) -> Verdict:
    """The verdict on an interval.

    Args:
        what, label: what the interval is of, and the limit, in words.
        more: how many samples would settle it, in words; n, the number.
        why: appended to the reason.
    """
    if ends[1] <= limit:
        return Verdict("pass", f"The {what} is at most {label}{why}.", "fid")
    if ends[0] > limit:
        return Verdict("fail", f"The {what} is above {label}{why}.", "fid")
    reason = f"The interval of the {what} straddles {label}; {more}{why}."
    return Verdict("inconclusive", reason, "fid", n)


def _more(n: int | None, samples: str, truth: str) -> str:
    """How many samples would settle it, as the end of an inconclusive verdict's reason."""
    if n is None:
        return "no feasible n would settle it"
    return f"about {n} {samples} would settle it with {_percent(POWER)} power if the true {truth}"


def _check_tolerance(max_drift: float) -> None:
    if not 0.0 <= max_drift < math.inf:
        raise DataError("The tolerated drift is out of range.", expected=">= 0", got=f"{max_drift}")


def _broken(kid: KidDrift, n: int, not_finite: int) -> Verdict | None:
    """The failure of a quantized model whose n images are not all finite, or that collapsed."""
    if not_finite:
        reason = f"{not_finite} of {n} images of the quantized model are not finite."
        return Verdict("fail", reason, "samples")
    if kid.identical or kid.spread_float <= 0.0:
        return None
    if kid.variance_share < COLLAPSE_VARIANCE:
        reason = (
            f"The quantized model collapsed: its {kid.n} samples keep {_percent(kid.variance_share)} of the "
            f"float samples' variance, under {_percent(COLLAPSE_VARIANCE)}."
        )
        return Verdict("fail", reason, "kid")
    if kid.low > COLLAPSE_LIMIT * kid.spread_float:
        reason = (
            f"The quantized model collapsed: the lower end of its {_kid_name(kid)}, {kid.low:.4g}, is above "
            f"{COLLAPSE_LIMIT:g} times the KID of a model that repeats one image, {kid.spread_float:.4g} "
            f"(n = {kid.n})."
        )
        return Verdict("fail", reason, "kid")
    return None


def _kid_name(kid: KidDrift) -> str:
    return "KID from the float samples" if kid.against == "float" else "KID drift"


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _ends(interval: Drift | DriftDifference | KidDrift) -> str:
    return f"[{interval.low:+.4g}, {interval.high:+.4g}]"
