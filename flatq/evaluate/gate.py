"""From a drift to a verdict: pass, fail or inconclusive, and how many samples would settle it.

Only decides. Measuring lives in `flatq.evaluate.drift` and `flatq.evaluate.kid`; exit codes and what
inconclusive maps to in the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from flatq.errors import DataError, UsageError
from flatq.evaluate.contrast import FULL_RATIO
from flatq.evaluate.difference import DriftDifference
from flatq.evaluate.drift import Drift
from flatq.evaluate.kid import KidDrift
from flatq.evaluate.moments import normal_quantile

__all__ = [
    "COLLAPSE_LIMIT",
    "COLLAPSE_VARIANCE",
    "POWER",
    "Verdict",
    "decide",
    "decide_difference",
    "full_samples",
    "samples_for_half_width",
    "samples_to_pass",
]

COLLAPSE_LIMIT = 0.5
"""KID drift, in units of the KID of a model that repeats one of the float model's images."""
COLLAPSE_VARIANCE = 0.05
"""Share of the float samples' total feature variance under which the quantized samples count as one image."""
POWER = 0.8
"""Probability of a decision at the number of samples that an inconclusive verdict names."""

_NOT_FINITE = "The quantized model gave samples that are not finite."


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


def decide(
    drift: Drift | None,
    kid: KidDrift | None,
    max_drift: float | None,
    *,
    finite: bool,
    min_samples: int | None = None,
    collapse_limit: float = COLLAPSE_LIMIT,
) -> Verdict:
    """The verdict on a drift against the tolerance max_drift (in FID).

    In this order: samples that are not finite fail; a collapse fails at any n; fewer than min_samples are
    inconclusive; identical features pass; no FID interval is inconclusive; upper end <= tolerance passes;
    lower end > tolerance fails; else inconclusive.

    A collapse is either of (needs kid; both relative to the float samples, so to the features' scale):
      - the lower end of the KID drift (where kid.against is "float", of the KID from the float samples) is
        above collapse_limit x spread_float, spread_float being the KID, seen from the float samples, of a
        model that repeats one of the float model's images;
      - kid.variance_share < 0.05: the quantized samples hardly differ from one another. (A model that gives
        one grey image near the float samples' mean is not far away in KID: this catches it.)

    Where drift has a relative tolerance, that is the tolerance, and max_drift must be None.

    Raises:
        UsageError: no drift though the samples are finite, or none or two tolerances.
        DataError: a limit that is negative or not finite, or drift and kid of different samples.
    """
    if not finite:
        return Verdict("fail", _NOT_FINITE, "samples")
    if drift is None:
        raise UsageError("There is no FID drift to decide on, though the samples are finite.")
    tolerance, label = _tolerance(drift, max_drift)
    if not 0.0 < collapse_limit < math.inf:
        raise DataError("The collapse limit is out of range.", expected="> 0", got=f"{collapse_limit}")
    if kid is not None and kid.relative_tolerance is not None:
        raise DataError("A collapse is judged by the KID drift without a relative tolerance.")
    if kid is not None and kid.n != drift.n:
        raise DataError("FID and KID drift are of different samples.", got=f"n = {drift.n} and {kid.n}")
    collapse = _collapse(kid, collapse_limit)
    if collapse is not None:
        return Verdict("fail", collapse, "kid")
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
        reason = f"The FID drift (raw {drift.raw:+.4g}) has no interval: {drift.reason}"
        if kid is not None:
            reason += (
                f"; the {_kid_name(kid)} is {kid.drift:+.4g}, {_percent(kid.confidence)} in {_ends(kid)}"
            )
        return Verdict("inconclusive", reason + ".", "fid", _settle(drift, tolerance))
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
    difference: DriftDifference | None,
    kid: KidDrift | None,
    max_drift: float,
    *,
    finite: bool,
    min_samples: int | None = None,
    collapse_limit: float = COLLAPSE_LIMIT,
) -> Verdict:
    """The verdict on how much a drift grew over that of an earlier report, in the order of `decide`.

    Args:
        difference: None where the samples are not finite.
        kid: of the new model.
        max_drift: the tolerated growth, in FID.

    Raises:
        UsageError: no difference though the samples are finite.
        DataError: a tolerance that is negative or not finite.
    """
    if not finite:
        return Verdict("fail", _NOT_FINITE, "samples")
    if difference is None:
        raise UsageError("There is no difference to decide on, though the samples are finite.")
    _check_tolerance(max_drift)
    collapse = _collapse(kid, collapse_limit)
    if collapse is not None:
        return Verdict("fail", collapse, "kid")
    if min_samples is not None and min(difference.n) < min_samples:
        return Verdict(
            "inconclusive",
            f"{min(difference.n)} samples are fewer than the {min_samples} asked for.",
            "fid",
            min_samples,
        )
    if difference.corrected is None or difference.low is None or difference.high is None:
        return Verdict("inconclusive", f"The drifts cannot be compared: {difference.reason}.", "fid")
    old, new = difference.n
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
        needed = (_z_with_power(difference.confidence) * (difference.standard_error or 0.0) / gap) ** 2
        n = max(math.ceil(max(old, new) * needed), max(old, new) + 1)
    more = _more(n, "samples of both", f"growth is {difference.corrected:+.4g}")
    return Verdict(
        "inconclusive",
        f"The drift over the earlier report ({interval}) may be on either side of the tolerated "
        f"{max_drift:g}; {more}{why}.",
        "fid",
        n,
    )


def samples_for_half_width(drift: Drift, half_width: float) -> int:
    """n for an interval of corrected -+ half_width at drift.confidence, from drift as the pilot.

    n = (z s / h)^2 with s = SE sqrt(n), and n >= 10 rank, where the bias is known well.

    Raises:
        DataError: half_width <= 0 or not finite, or a pilot without an interval.
    """
    if not 0.0 < half_width < math.inf:
        raise DataError("The half-width is out of range.", expected="> 0", got=f"{half_width}")
    return _samples(drift, normal_quantile(drift.confidence) / half_width)


def samples_to_pass(drift: Drift, max_drift: float, expected_drift: float, power: float = POWER) -> int:
    """n to pass max_drift with the given power where the true drift is expected_drift.

    n = ((z_confidence + z_power) s / (max_drift - expected_drift))^2: (2.8 s / ...)^2 at 95 % and 80 %.

    Raises:
        DataError: expected_drift >= max_drift, power outside (0, 1), or a pilot without an interval.
    """
    gap = max_drift - expected_drift
    if not 0.0 < gap < math.inf:
        raise DataError(
            "A drift that is not under the tolerance cannot be shown to be.",
            expected=f"expected_drift < {max_drift}",
            got=f"{expected_drift}",
        )
    if not 0.0 < power < 1.0:
        raise DataError("The power is out of range.", expected="0 < power < 1", got=f"{power}")
    return _samples(drift, _z_with_power(drift.confidence, power) / gap)


def _z_with_power(confidence: float, power: float = POWER) -> float:
    """Standard errors between truth and tolerance at which the interval excludes the tolerance that often."""
    return normal_quantile(confidence) + NormalDist().inv_cdf(power)


def _samples(drift: Drift, z_over_gap: float) -> int:
    if drift.standard_error is None:
        raise DataError(
            "Planning needs a pilot whose drift has an interval.",
            got=drift.reason,
            next_step=f"take a pilot of at least {full_samples(drift)} samples",
        )
    n = z_over_gap**2 * drift.standard_error**2 * drift.n
    return max(math.ceil(n), full_samples(drift), 2)


def full_samples(drift: Drift) -> int:
    """n at 10 samples per direction, in the pilot's proportion of independent samples."""
    return max(math.ceil(FULL_RATIO * drift.n / drift.n_over_rank), drift.dim + 1)


def _settle(drift: Drift, tolerance: float) -> int | None:
    if drift.corrected is None:
        return full_samples(drift) if drift.settles else None
    gap = abs(tolerance - drift.corrected)
    if gap <= 1e-3 * (drift.half_width or 0.0):  # a million times as many samples: no plan
        return None
    return max(_samples(drift, _z_with_power(drift.confidence) / gap), drift.n + 1)


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


def _collapse(kid: KidDrift | None, limit: float) -> str | None:
    if kid is None or kid.identical or kid.spread_float <= 0.0:
        return None
    if kid.variance_share < COLLAPSE_VARIANCE:
        return (
            f"The quantized model collapsed: its {kid.n} samples keep {_percent(kid.variance_share)} of the "
            f"float samples' variance, under {_percent(COLLAPSE_VARIANCE)}."
        )
    if kid.low > limit * kid.spread_float:
        return (
            f"The quantized model collapsed: the lower end of its {_kid_name(kid)}, {kid.low:.4g}, is above "
            f"{limit:g} times the KID of a model that repeats one image, {kid.spread_float:.4g} "
            f"(n = {kid.n})."
        )
    return None


def _kid_name(kid: KidDrift) -> str:
    return "KID from the float samples" if kid.against == "float" else "KID drift"


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _ends(interval: Drift | KidDrift) -> str:
    return f"[{interval.low:+.4g}, {interval.high:+.4g}]"
