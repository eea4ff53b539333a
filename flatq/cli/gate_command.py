"""`flatq gate`, and the exit codes of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from flatq.evaluate.gate import Verdict
    from flatq.report.model import Report

__all__ = ["command", "print_verdicts", "worst_code"]


def command(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of `flatq eval`.")],
    max_drift: Annotated[float, typer.Option(help="The largest drift that passes.")],
    on_inconclusive: Annotated[str | None, typer.Option(help="fail or pass: instead of exit 4.")] = None,
) -> None:
    """Judge a report without sampling again: exit 0 pass, 1 fail, 4 inconclusive."""
    from flatq.report.model import read_report
    from flatq.report.regate import regate

    code_for = worst_code(on_inconclusive)
    loaded = read_report(report)
    verdicts = regate(loaded, max_drift)
    print_verdicts(loaded, verdicts)
    raise typer.Exit(code_for(verdicts))


def print_verdicts(report: Report, verdicts: Sequence[Verdict]) -> None:
    """One line for each model."""
    for entry, verdict in zip(report.models, verdicts, strict=False):
        typer.echo(f"{verdict.outcome.upper()}: {entry.name}: {verdict.reason}")


def worst_code(on_inconclusive: str | None) -> Callable[[Sequence[Verdict]], int]:
    """The exit code of several verdicts: one that failed fails all, then one that is inconclusive counts.

    Raises:
        UsageError: `on_inconclusive` is neither fail nor pass.
    """
    codes = {None: EXIT_INCONCLUSIVE, "fail": EXIT_GATE_FAILED, "pass": EXIT_OK}
    if on_inconclusive not in codes:
        raise UsageError("--on-inconclusive is not valid", expected="fail or pass", got=str(on_inconclusive))

    def code(verdicts: Sequence[Verdict]) -> int:
        outcomes = {verdict.outcome for verdict in verdicts}
        if "fail" in outcomes:
            return EXIT_GATE_FAILED
        return codes[on_inconclusive] if "inconclusive" in outcomes else EXIT_OK

    return code
