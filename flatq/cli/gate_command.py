"""`flatq gate`, and the exit codes of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import note
from flatq.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from flatq.evaluate.gate import Verdict
    from flatq.report.model import Report

__all__ = [
    "MaxDrift",
    "MaxDriftRel",
    "MinSamples",
    "OnInconclusive",
    "command",
    "print_verdicts",
    "worst_code",
]


MaxDrift = Annotated[float | None, typer.Option(help="Gate: the largest drift that passes.")]
MaxDriftRel = Annotated[
    float | None,
    typer.Option(help="Gate: the largest drift that passes, as a share of the float model's FID."),
]
MinSamples = Annotated[int | None, typer.Option(help="Gate: fewer images are inconclusive.")]
OnInconclusive = Annotated[
    str, typer.Option(help="pass, fail or error: exit 0, 1, or 4 to tell it from both.")
]


def command(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of `flatq eval`.")],
    max_drift: MaxDrift = None,
    max_drift_rel: MaxDriftRel = None,
    min_samples: MinSamples = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of the interval; that of the report by default.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="An earlier report: --max-drift is then how much the drift may grow over its."),
    ] = None,
    on_inconclusive: OnInconclusive = "error",
) -> None:
    """Judge a report without sampling again: exit 0 pass, 1 fail, 4 inconclusive."""
    from flatq.evaluate.judge import Tolerances
    from flatq.report.model import read_report
    from flatq.report.regate import growth, regate, with_confidence

    code_for = worst_code(on_inconclusive)
    loaded, folder = read_report(report), _folder(report)
    if confidence is not None:
        loaded = with_confidence(loaded, confidence)
    if baseline is not None:
        if max_drift is None or max_drift_rel is not None:
            raise UsageError(
                "the growth over an earlier report needs one tolerance",
                expected="--max-drift with --baseline",
                got="--max-drift-rel" if max_drift is None else "both --max-drift and --max-drift-rel",
            )
        earlier = read_report(baseline)
        grown = growth(loaded, folder, earlier, _folder(baseline), max_drift, min_samples=min_samples)
        for line in grown.notes:
            note(line)
        verdicts = grown.verdicts
    else:
        tolerances = Tolerances(max_drift, max_drift_rel, min_samples)
        if max_drift is None and max_drift_rel is None and loaded.gate is not None:
            tolerances = replace(loaded.gate, min_samples=min_samples or loaded.gate.min_samples)
            note(f"tolerances: those of the report, {tolerances}")
        verdicts = regate(loaded, tolerances, folder)
    print_verdicts(loaded, verdicts)
    raise typer.Exit(code_for(verdicts))


def _folder(report: Path) -> Path:
    return report if report.is_dir() else report.parent


def print_verdicts(report: Report, verdicts: Sequence[Verdict]) -> None:
    """One line for each model."""
    for entry, verdict in zip(report.models, verdicts, strict=False):
        typer.echo(f"{verdict.outcome.upper()}: {entry.name}: {verdict.reason}")


def worst_code(on_inconclusive: str) -> Callable[[Sequence[Verdict]], int]:
    """The exit code of several verdicts: one that failed fails all, then one that is inconclusive counts.

    Raises:
        UsageError: `on_inconclusive` is neither pass, fail nor error.
    """
    codes = {"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "error": EXIT_INCONCLUSIVE}
    if on_inconclusive not in codes:
        raise UsageError(
            "--on-inconclusive is not valid", expected="pass, fail or error", got=on_inconclusive
        )

    def code(verdicts: Sequence[Verdict]) -> int:
        outcomes = {verdict.outcome for verdict in verdicts}
        if "fail" in outcomes:
            return EXIT_GATE_FAILED
        return codes[on_inconclusive] if "inconclusive" in outcomes else EXIT_OK

    return code
