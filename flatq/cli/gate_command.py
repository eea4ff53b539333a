"""`flatq gate`, and how verdicts are printed and published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.assessment import GateSettings, OnInconclusive
from flatq.cli.common import note
from flatq.errors import UsageError

if TYPE_CHECKING:
    from flatq.report.result import GateResult

__all__ = [
    "IfInconclusive",
    "Junit",
    "MaxDrift",
    "MaxDriftRel",
    "MinSamples",
    "checked_choice",
    "command",
    "print_verdicts",
    "publish",
]


MaxDrift = Annotated[float | None, typer.Option(help="Gate: the largest drift that passes.")]
MaxDriftRel = Annotated[
    float | None,
    typer.Option(help="Gate: the largest drift that passes, as a share of the float model's FID."),
]
Junit = Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")]
MinSamples = Annotated[int | None, typer.Option(help="Gate: fewer images are inconclusive.")]
IfInconclusive = Annotated[
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
    on_inconclusive: IfInconclusive = GateSettings.on_inconclusive,
    junit: Junit = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report's page with these verdicts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Judge a report without sampling again: exit 0 pass, 1 fail, 4 inconclusive.

    In a GitHub workflow the verdicts are also added to the step's summary.
    """
    import flatq

    settings = GateSettings(
        max_drift, max_drift_rel, min_samples, confidence, baseline, checked_choice(on_inconclusive)
    )
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


def print_verdicts(result: GateResult) -> None:
    """One line for each model."""
    for model in result.models:
        typer.echo(f"{model.verdict.outcome.upper()}: {model.name}: {model.verdict.reason}")


def checked_choice(on_inconclusive: str) -> OnInconclusive:
    """The choice of --on-inconclusive.

    Raises:
        UsageError: neither pass, fail nor error.
    """
    for known in ("pass", "fail", "error"):
        if known == on_inconclusive:
            return known
    raise UsageError("--on-inconclusive is not valid", expected="pass, fail or error", got=on_inconclusive)
