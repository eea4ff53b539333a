"""A drift that was measured, at another confidence or beyond a relative tolerance; nothing is sampled again.

The influence values are those that the sidecar of a report keeps.
"""

from __future__ import annotations

from dataclasses import replace

from numpy.typing import ArrayLike

from flatq.errors import DataError
from flatq.evaluate.contrast import half_width
from flatq.evaluate.drift import Drift
from flatq.evaluate.moments import F64, check_relative_tolerance, standard_error_of_mean

__all__ = ["at_confidence", "beyond_relative_tolerance"]


def at_confidence(drift: Drift, confidence: float) -> Drift:
    """The same drift with the interval of another confidence.

    Raises:
        DataError: confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise DataError("The confidence is out of range.", expected="0 < confidence < 1", got=f"{confidence}")
    if drift.identical or drift.corrected is None:
        return replace(drift, confidence=confidence)
    assert drift.standard_error is not None
    half = half_width(drift.standard_error, confidence)
    return replace(
        drift,
        confidence=confidence,
        half_width=half,
        low=drift.corrected - half,
        high=drift.corrected + half,
    )


def beyond_relative_tolerance(
    drift: Drift,
    tolerance: float,
    influence_float: F64 | None,
    influence_quantized: F64 | None,
    clusters: ArrayLike | None = None,
) -> Drift:
    """FID(q) - (1 + tolerance) FID(x) of the samples that gave `drift`, as `fid_drift` would give it.

    Args:
        drift: without a relative tolerance.
        influence_float, influence_quantized: f64 [n], of the same samples; needed where there is an interval.
        clusters: as given to `fid_drift`.

    Raises:
        DataError: a tolerance that is negative or not finite, a drift that has one already, influence values
            or biases that are not there or not of these samples.
    """
    tau = check_relative_tolerance(tolerance)
    if drift.relative_tolerance is not None:
        raise DataError("The drift has a relative tolerance already.", got=f"{drift.relative_tolerance}")
    if drift.identical:
        return replace(drift, relative_tolerance=tolerance)
    raw = drift.fid_quantized - (1.0 + tau) * drift.fid_float
    if drift.corrected is None:
        return replace(drift, raw=raw, relative_tolerance=tolerance)
    if influence_float is None or influence_quantized is None:
        raise DataError(
            "A relative tolerance needs the influence values of the samples.",
            expected="the sidecar that `flatq eval` wrote beside the report",
            got="none",
            next_step="keep the report's folder together, or evaluate with --max-drift-rel",
        )
    if drift.bias_float is None or drift.bias_quantized is None:
        raise DataError(
            "A relative tolerance needs the bias of each side, which this report does not hold.",
            next_step="evaluate again; an older flatq wrote the report",
        )
    if influence_float.shape != (drift.n,) or influence_quantized.shape != (drift.n,):
        raise DataError(
            "The influence values are not of the drift's samples.",
            expected=f"[{drift.n}]",
            got=f"{list(influence_float.shape)} and {list(influence_quantized.shape)}",
        )
    bias = drift.bias_quantized - (1.0 + tau) * drift.bias_float
    se = standard_error_of_mean(influence_quantized - (1.0 + tau) * influence_float, clusters)
    half = half_width(se, drift.confidence)
    return replace(
        drift,
        raw=raw,
        bias_correction=bias,
        corrected=raw - bias,
        standard_error=se,
        half_width=half,
        low=raw - bias - half,
        high=raw - bias + half,
        relative_tolerance=tolerance,
    )
