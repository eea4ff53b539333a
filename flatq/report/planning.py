"""The plan that a pilot's report gives, as text. The numbers are `flatq.evaluate.sample_size`'s."""

from __future__ import annotations

from pathlib import Path

from flatq.evaluate.drift import beyond_relative_tolerance
from flatq.evaluate.sample_size import SampleSizes, sizes_from_pilot
from flatq.report.model import ModelEntry, Report
from flatq.report.sidecar import read_sidecar

__all__ = ["plan_text", "plans_of"]


def plans_of(
    report: Report, folder: Path, max_drift: float | None, max_drift_rel: float | None
) -> list[SampleSizes]:
    """A plan for each model. At most one of the tolerances.

    Raises:
        DataError: as `beyond_relative_tolerance` and `read_sidecar`.
    """
    return [_plan(report, entry, folder, max_drift, max_drift_rel) for entry in report.models]


def plan_text(report: Report, folder: Path, max_drift: float | None, max_drift_rel: float | None) -> str:
    """A table for each model: images of either model, wall time of both, and the half-width they give."""
    blocks = []
    plans = plans_of(report, folder, max_drift, max_drift_rel)
    for entry, plan in zip(report.models, plans, strict=True):
        if plan.resolvable is None:
            head = f"{entry.name}: {plan.pilot} images give no interval: {plan.reason}"
        else:
            head = (
                f"{entry.name}: {plan.pilot} images resolve {plan.resolvable:.4g} "
                f"({100 * plan.confidence:.3g} %, half-width)"
            )
        lines = [head, f"{'images':>10} {'wall time':>10} {'resolves':>9}  for"]
        lines += [
            f"{goal.images:>10} {_duration(goal.seconds):>10} "
            f"{'-' if goal.half_width is None else format(goal.half_width, '.4g'):>9}  {goal.purpose}"
            for goal in plan.goals
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _plan(
    report: Report, entry: ModelEntry, folder: Path, max_drift: float | None, max_drift_rel: float | None
) -> SampleSizes:
    drift = entry.drift
    if max_drift_rel is not None:
        kept = read_sidecar(entry, folder)
        influences = (None, None) if kept is None else (kept.influence_float, kept.influence_quantized)
        drift = beyond_relative_tolerance(drift, max_drift_rel, *influences)
    seconds = None
    if entry.seconds_per_image is not None and report.baseline.seconds_per_image is not None:
        seconds = entry.seconds_per_image + report.baseline.seconds_per_image
    return sizes_from_pilot(drift, seconds, max_drift)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
