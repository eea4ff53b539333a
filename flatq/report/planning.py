"""The plan that a pilot's report gives, as text. The numbers are `flatq.evaluate.sample_size`'s."""

from __future__ import annotations

from pathlib import Path

from flatq.evaluate.drift import beyond_relative_tolerance
from flatq.evaluate.sample_size import sizes_from_pilot
from flatq.report.model import Report
from flatq.report.sidecar import read_sidecar
from flatq.report.wording import NONE, number

__all__ = ["plan_text"]


def plan_text(report: Report, folder: Path, max_drift: float | None, max_drift_rel: float | None) -> str:
    """A table for each model: images of either model, wall time of both, and the half-width they give.

    Args:
        max_drift, max_drift_rel: at most one of them.

    Raises:
        DataError: as `beyond_relative_tolerance` and `read_sidecar`.
    """
    blocks = []
    for entry in report.models:
        drift, seconds = entry.drift, None
        if max_drift_rel is not None:
            kept = read_sidecar(entry, folder)
            influences = (None, None) if kept is None else (kept.influence_float, kept.influence_quantized)
            drift = beyond_relative_tolerance(drift, max_drift_rel, *influences)
        if entry.seconds_per_image is not None and report.baseline.seconds_per_image is not None:
            seconds = entry.seconds_per_image + report.baseline.seconds_per_image
        plan = sizes_from_pilot(drift, seconds, max_drift)
        if plan.resolvable is None:
            told = f"give no interval: {plan.reason}"
        else:
            told = f"resolve {plan.resolvable:.4g} ({100 * plan.confidence:.3g} %, half-width)"
        lines = [
            f"{entry.name}: {plan.pilot} images {told}",
            f"{'images':>10} {'wall time':>10} {'resolves':>9}  for",
        ]
        lines += [
            f"{goal.images:>10} {_duration(goal.seconds):>10} {number(goal.half_width):>9}  {goal.purpose}"
            for goal in plan.goals
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
