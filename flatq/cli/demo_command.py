"""`flatq demo`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import Threads, note, progress_bar

if TYPE_CHECKING:
    from flatq.report.findings import MethodResult

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the results.")] = Path(
        "flatq-demo"
    ),
    steps: Annotated[int, typer.Option(help="Training steps for each method.")] = 500,
    n: Annotated[int, typer.Option("-n", help="Images sampled for each model.")] = 1000,
    threads: Threads = None,
) -> None:
    """Train ADM and SAM on digits, quantize to 8 and 4 bits, compare samples, and show all on one page."""
    from flatq.demo import run_demo

    note("Training, quantizing and sampling two small models of digits: a few minutes on two cores")
    if sys.stderr.isatty():
        with progress_bar() as bar:
            demo = run_demo(out, bar, steps=steps, images=n, threads=threads)
    else:
        demo = run_demo(out, _stages(), steps=steps, images=n, threads=threads)
    _table(demo.results)
    typer.echo("")
    for line in demo.sentences:
        typer.echo(line)
    typer.echo("")
    for line in demo.notes:
        typer.echo(f"- {line}")
    typer.echo("")
    typer.echo(f"Pictures and plot: {demo.page}")


def _stages() -> Callable[[str, int, int], None]:
    """One line at the start of each stage, for logs."""
    begun: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        if what not in begun:
            begun.add(what)
            note(what)

    return report


def _table(results: tuple[MethodResult, ...]) -> None:
    from flatq.report.findings import COLUMNS, cells

    lines = [COLUMNS, *map(cells, results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
