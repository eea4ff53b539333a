"""Deciding again on a stored report, with another tolerance.

Nothing is measured here; `flatq.evaluate.gate` decides.
"""

from __future__ import annotations

from flatq.evaluate.gate import COLLAPSE_LIMIT, Verdict, decide
from flatq.report.model import Report

__all__ = ["regate", "with_verdicts"]


def regate(
    report: Report,
    max_drift: float | None,
    *,
    min_samples: int | None = None,
    collapse_limit: float = COLLAPSE_LIMIT,
) -> list[Verdict]:
    """The verdict on each of the report's models, in their order; arguments and errors as `decide`."""
    return [
        decide(
            entry.drift,
            entry.kid,
            max_drift,
            finite=entry.finite,
            min_samples=min_samples,
            collapse_limit=collapse_limit,
        )
        for entry in report.models
    ]


def with_verdicts(report: Report, verdicts: list[Verdict]) -> Report:
    """A copy of the report that holds these verdicts, one for each model."""
    models = [
        entry.model_copy(update={"verdict": verdict})
        for entry, verdict in zip(report.models, verdicts, strict=True)
    ]
    return report.model_copy(update={"models": models})
