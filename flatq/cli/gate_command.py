"""`flatq gate`, and how verdicts are printed and published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.assessment import GateSettings
from flatq.cli.common import note
from flatq.cli.options import (
    Confidence,
    Junit,
    MaxDrift,
    MaxDriftRel,
    MinSamples,
    OnInconclusive,
    PrintJson,
    gate_option,
    output_option,
)
from flatq.files import writing

if TYPE_CHECKING:
    from flatq.report.result import GateResult

__all__ = ["command", "print_verdicts", "publish"]


def command(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="The report.json of `flatq eval`, or its folder.")
    ],
    max_drift: MaxDrift = None,
    max_drift_rel: MaxDriftRel = None,
    min_samples: MinSamples = None,
    confidence: Confidence = None,
    baseline: Annotated[
        Path | None,
        gate_option(help="Earlier report; the tolerance then applies to the growth of the drift since."),
    ] = None,
    on_inconclusive: OnInconclusive = GateSettings.on_inconclusive,
    junit: Junit = None,
    markdown: Annotated[
        Path | None, output_option(help="File to write the verdicts to, as Markdown.")
    ] = None,
    html: Annotated[
        Path | None, output_option(help="File to write the report's page with these verdicts to.")
    ] = None,
    as_json: PrintJson = False,
) -> None:
    """Judge a report without sampling again; exits 0 on pass, 1 on fail, 4 when inconclusive.

    In a GitHub workflow the verdicts are also added to the step's summary.
    """
    import flatq

    settings = GateSettings(max_drift, max_drift_rel, min_samples, confidence, baseline, on_inconclusive)
    result = flatq.gate(report, settings, page=html, note=note)
    publish(result, junit=junit, markdown=markdown)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        print_verdicts(result)
    raise typer.Exit(result.exit_code)


def publish(result: GateResult, *, junit: Path | None = None, markdown: Path | None = None) -> None:
    """Write what was asked for, and add to the summary of a GitHub step where there is one.

    Raises:
        DataError: a file cannot be written.
    """
    from flatq.report.result import junit as render_junit
    from flatq.report.result import summary

    for path, render in ((junit, render_junit), (markdown, summary)):
        if path is not None:
            with writing(path) as temporary:
                temporary.write_text(render(result), encoding="utf-8")
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(step).open("a", encoding="utf-8") as stream:
            stream.write(summary(result))


def print_verdicts(result: GateResult) -> None:
    """One line for each model."""
    for model in result.models:
        typer.echo(f"{model.verdict.outcome.upper()}: {model.name}: {model.verdict.reason}")
