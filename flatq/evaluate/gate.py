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
        UsageError: none or two tolerances.
        DataError: a tolerance that is negative or not finite.
    """
    tolerance, label = _tolerance(drift, max_drift)
    broken = _broken(kid, drift.n, not_finite)
    if broken is not None:
        return broken
    if min_samples is not None and drift.n < min_samples:
        return Verdict(
            "inconclusive",
            f"{drift.n} samples are fewer than the {min_samples} asked for.",
            "fid",
            min_samples,
        )
    if drift.identical:
        return Verdict("pass", f"The features of all {drift.n} pairs are identical: the drift is 0.", "fid")
    if drift.low is None or drift.high is None or drift.corrected is None:
        reason = (
            f"The FID drift (raw {drift.raw:+.4g}) has no interval: {drift.reason}; the {_kid_name(kid)} is "
            f"{kid.drift:+.4g}, {_percent(kid.confidence)} in {_ends(kid)}."
        )
        return Verdict("inconclusive", reason, "fid", _settle(drift, tolerance))
    interval = f"{drift.corrected:+.4g}, {_percent(drift.confidence)} in {_ends(drift)}, n = {drift.n}"
    if drift.high <= tolerance:
        return Verdict("pass", f"The drift ({interval}) is at most {label}.", "fid")
    if drift.low > tolerance:
        return Verdict("fail", f"The drift ({interval}) is above {label}.", "fid")
    n = _settle(drift, tolerance)
    more = _more(n, "samples", f"drift is {drift.corrected:+.4g}")
    return Verdict(
        "inconclusive", f"The drift ({interval}) may be on either side of {label}; {more}.", "fid", n
    )


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
    broken = _broken(kid, new, not_finite)
    if broken is not None:
        return broken
    if min_samples is not None and min(difference.n) < min_samples:
        return Verdict(
            "inconclusive",
            f"{min(difference.n)} samples are fewer than the {min_samples} asked for.",
            "fid",
            min_samples,
        )
    if difference.corrected is None or difference.low is None or difference.high is None:
        return Verdict("inconclusive", f"The drifts cannot be compared: {difference.reason}.", "fid")
    pairs = f"paired on {difference.shared} images" if difference.paired else "unpaired"
    interval = (
        f"{difference.corrected:+.4g}, {_percent(difference.confidence)} in [{difference.low:+.4g}, "
        f"{difference.high:+.4g}], {pairs}, n = {old} and {new}"
    )
    why = "" if difference.paired else f" (unpaired: {difference.unpaired})"
    if difference.high <= max_drift:
        text = f"The drift over the earlier report ({interval}) is at most the tolerated {max_drift:g}{why}."
        return Verdict("pass", text, "fid")
    if difference.low > max_drift:
        text = f"The drift over the earlier report ({interval}) is above the tolerated {max_drift:g}{why}."
        return Verdict("fail", text, "fid")
    gap = abs(max_drift - difference.corrected)
    n = None
    if gap > 1e-3 * (difference.half_width or 0.0):
        needed = (z_with_power(difference.confidence) * (difference.standard_error or 0.0) / gap) ** 2
        n = max(math.ceil(max(old, new) * needed), max(old, new) + 1)
    more = _more(n, "samples of both", f"growth is {difference.corrected:+.4g}")
    return Verdict(
        "inconclusive",
        f"The drift over the earlier report ({interval}) may be on either side of the tolerated "
        f"{max_drift:g}; {more}{why}.",
        "fid",
        n,
    )


def _settle(drift: Drift, tolerance: float) -> int | None:
    if drift.corrected is None:
        return full_samples(drift) if drift.settles else None
    gap = abs(tolerance - drift.corrected)
    if gap <= 1e-3 * (drift.half_width or 0.0):  # a million times as many samples: no plan
        return None
    return max(samples_needed(drift, z_with_power(drift.confidence) / gap), drift.n + 1)


def _more(n: int | None, samples: str, truth: str) -> str:
    """How many samples would settle it, as the end of an inconclusive verdict's reason."""
    if n is None:
        return "no feasible n would settle it"
    return f"about {n} {samples} would settle it with {_percent(POWER)} power if the true {truth}"


def _tolerance(drift: Drift, max_drift: float | None) -> tuple[float, str]:
    relative = drift.relative_tolerance
    if (relative is None) == (max_drift is None):
        raise UsageError(
            "The gate needs one tolerance.",
            expected="max_drift, or a drift with a relative tolerance",
            got="none" if relative is None else "both",
        )
    if max_drift is None:
        return 0.0, f"0 beyond {_percent(relative or 0.0)} of the float model's FID"
    _check_tolerance(max_drift)
    return max_drift, f"the tolerated {max_drift:g}"


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


def _ends(interval: Drift | KidDrift) -> str:
    return f"[{interval.low:+.4g}, {interval.high:+.4g}]"
