"""What a comparison of training methods found, as a table and in sentences. Plain text: each page escapes it.

Both are derived from the same rows, so a reader can check every sentence against the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatq.report.wording import NONE, size

if TYPE_CHECKING:
    from flatq.report.model import ModelEntry

__all__ = ["COLUMNS", "MethodResult", "cells", "findings"]

COLUMNS = (
    "method",
    "weights",
    "bits",
    "FID float",
    "FID quantized",
    "drift",
    "95 % interval",
    "size",
    "ms per step",
)


@dataclass(frozen=True)
class MethodResult:
    """The evaluation of one quantized model.

    Attributes:
        method: training method, such as "ADM".
        weights: the weights variant, as "EMA".
        bits: bit widths, and the kind of rounding where it is not the default: "W8A8".
    """

    method: str
    weights: str
    bits: str
    entry: ModelEntry


def cells(result: MethodResult) -> tuple[str, ...]:
    """A table row, one text for each of `COLUMNS`; milliseconds are for a full batch."""
    entry, drift = result.entry, result.entry.drift
    corrected = interval = NONE
    if drift.corrected is not None:
        corrected, interval = f"{drift.corrected:+.3f}", f"{drift.low:+.3f} to {drift.high:+.3f}"
    return (
        result.method,
        result.weights,
        result.bits,
        f"{drift.fid_float:.3f}",
        f"{drift.fid_quantized:.3f}",
        corrected,
        interval,
        size(entry.size_bytes),
        NONE if entry.latency_ms is None else f"{entry.latency_ms:.1f}",
    )


def findings(results: Sequence[MethodResult], method: str, baseline: str) -> list[str]:
    """One sentence for each bit width: how each method's FID moved, and whether `method` lost less.

    An interval above 0 is a rise, one below 0 a fall, and one that contains 0 is neither. Two methods differ
    only where their intervals do not overlap.

    Args:
        results: one of each of the two methods for each bit width, all of one weights variant.
        method, baseline: names of training methods in `results`.
    """
    lines = []
    for bits in dict.fromkeys(result.bits for result in results):
        old, new = (
            next(r for r in results if (r.bits, r.method) == (bits, name)) for name in (baseline, method)
        )
        lines.append(f"{bits}: {_movement(old)}; {_movement(new)}. {_comparison(old, new)}.")
    return lines


def _movement(result: MethodResult) -> str:
    drift = result.entry.drift
    if drift.corrected is None or drift.low is None or drift.high is None:
        return f"{result.method}'s drift has no interval ({drift.reason})"
    value = f"{drift.corrected:+.3f}, {drift.low:+.3f} to {drift.high:+.3f}"
    if drift.low > 0:
        return f"{result.method}'s FID rises ({value})"
    if drift.high < 0:
        return f"{result.method}'s FID falls ({value})"
    return f"{result.method}'s FID shows no change ({value})"


def _comparison(old: MethodResult, new: MethodResult) -> str:
    a, b = old.entry.drift, new.entry.drift
    both = f"{new.method} and {old.method}"
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return f"{both} are not compared"
    if b.high < a.low:
        return f"{new.method} drifts less than {old.method}"
    if b.low > a.high:
        return f"{new.method} drifts more than {old.method}"
    return f"The intervals overlap: no difference between {both} is shown"
