"""Judging a stored report as `flatq gate` does: by other tolerances, at another confidence level, or by how
much the drift grew over an earlier report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flatq.assessment import GateSettings
from flatq.errors import UsageError
from flatq.evaluate.gate import Tolerances
from flatq.report.model import Report, read_report
from flatq.report.regate import growth, regate, with_confidence, with_verdicts
from flatq.report.result import GateResult, gate_result

__all__ = ["judge_report"]


def judge_report(
    report: Report, folder: Path | None, settings: GateSettings, note: Callable[[str], None]
) -> tuple[Report, GateResult]:
    """The report with its new verdicts, and the result.

    Args:
        folder: of the report, where its sidecars are; None for a report that is in memory only.

    Raises:
        UsageError: no tolerance, or tolerances that do not go with an earlier report.
        DataError: a report or a sidecar that is damaged, or reports that do not compare.
    """
    differences, notes = None, []
    if settings.confidence is not None:
        report = with_confidence(report, settings.confidence)
    tolerances = Tolerances(settings.max_drift, settings.max_drift_rel, settings.min_samples)
    if settings.baseline is not None:
        if settings.max_drift is None or settings.max_drift_rel is not None:
            raise UsageError(
                "the growth over an earlier report needs one tolerance",
                expected="--max-drift with --baseline",
                got="--max-drift-rel"
                if settings.max_drift is None
                else "both --max-drift and --max-drift-rel",
            )
        if folder is None:
            raise UsageError(
                "the growth over an earlier report needs the sidecars of both",
                expected="the path of the report",
                got="a report in memory",
            )
        earlier = settings.baseline
        grown = growth(
            report,
            folder,
            read_report(earlier),
            earlier if earlier.is_dir() else earlier.parent,
            settings.max_drift,
            min_samples=settings.min_samples,
        )
        verdicts, differences, notes = grown.verdicts, grown.differences, grown.notes
    else:
        if settings.max_drift is None and settings.max_drift_rel is None and report.gate is not None:
            least = settings.min_samples or report.gate.min_samples
            tolerances = replace(report.gate, min_samples=least)
            note(f"tolerances: those of the report, {tolerances}")
        verdicts = regate(report, tolerances, folder)
    for line in notes:
        note(line)
    result = gate_result(
        report,
        verdicts,
        tolerances,
        on_inconclusive=settings.on_inconclusive,
        differences=differences,
        notes=notes,
    )
    return with_verdicts(report, verdicts, tolerances), result
