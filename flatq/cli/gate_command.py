"""`flatq gate`, and the exit codes of verdicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flatq.cli.common import note
from flatq.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from flatq.evaluate.gate import Verdict
    from flatq.report.model import Report
    from flatq.report.result import GateResult

__all__ = [
    "Junit",
    "MaxDrift",
    "MaxDriftRel",
    "MinSamples",
    "OnInconclusive",
    "checked_choice",
    "command",
    "print_verdicts",
    "publish",
    "worst_code",
]


Choice = Literal["pass", "fail", "error"]
MaxDrift = Annotated[float | None, typer.Option(help="Gate: the largest drift that passes.")]
MaxDriftRel = Annotated[
    float | None,
    typer.Option(help="Gate: the largest drift that passes, as a share of the float model's FID."),
]
Junit = Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")]
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
    junit: Junit = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report's page with these verdicts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Judge a report without sampling again: exit 0 pass, 1 fail, 4 inconclusive.

    In a GitHub workflow the verdicts are also added to the step's summary.
    """
    from flatq.evaluate.judge import Tolerances
    from flatq.report.html.page import write_html
    from flatq.report.html.shown import Source
    from flatq.report.model import read_report
    from flatq.report.regate import growth, regate, with_confidence, with_verdicts
    from flatq.report.result import gate_result

    code_for = worst_code(on_inconclusive)
    loaded, folder = read_report(report), _folder(report)
    differences, notes = None, []
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
        tolerances = Tolerances(max_drift, min_samples=min_samples)
        verdicts, differences, notes = grown.verdicts, grown.differences, grown.notes
    else:
        tolerances = Tolerances(max_drift, max_drift_rel, min_samples)
        if max_drift is None and max_drift_rel is None and loaded.gate is not None:
            tolerances = replace(loaded.gate, min_samples=min_samples or loaded.gate.min_samples)
            note(f"tolerances: those of the report, {tolerances}")
        verdicts = regate(loaded, tolerances, folder)
    for line in notes:
        note(line)
    result = gate_result(
        loaded,
        verdicts,
        tolerances,
        exit_code=code_for(verdicts),
        on_inconclusive=checked_choice(on_inconclusive),
        differences=differences,
        notes=notes,
    )
    publish(result, junit=junit, markdown=markdown)
    if html is not None:
        judged = with_verdicts(loaded, verdicts, tolerances)
        write_html([Source(judged, folder, result.against, tuple(notes))], html)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        print_verdicts(loaded, verdicts)
    raise typer.Exit(result.exit_code)


def publish(result: GateResult, *, junit: Path | None = None, markdown: Path | None = None) -> None:
    """Write what was asked for, and add to the summary of a GitHub step where there is one.

    Raises:
        UsageError: a file cannot be written.
    """
    from flatq.report.result import junit as render_junit
    from flatq.report.result import summary

    step = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if junit is not None:
            junit.write_text(render_junit(result), encoding="utf-8")
        if markdown is not None:
            markdown.write_text(summary(result), encoding="utf-8")
        if step:
            with Path(step).open("a", encoding="utf-8") as stream:
                stream.write(summary(result))
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename}",
            expected="a file name in a folder that can be written",
            got=error.strerror or str(error),
        ) from error


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
    inconclusive = codes[checked_choice(on_inconclusive)]

    def code(verdicts: Sequence[Verdict]) -> int:
        outcomes = {verdict.outcome for verdict in verdicts}
        if "fail" in outcomes:
            return EXIT_GATE_FAILED
        return inconclusive if "inconclusive" in outcomes else EXIT_OK

    return code


def checked_choice(on_inconclusive: str) -> Choice:
    """The choice of --on-inconclusive.

    Raises:
        UsageError: neither pass, fail nor error.
    """
    for known in ("pass", "fail", "error"):
        if known == on_inconclusive:
            return known
    raise UsageError("--on-inconclusive is not valid", expected="pass, fail or error", got=on_inconclusive)
