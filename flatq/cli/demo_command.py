"""`flatq demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import note, print_table, progress_bar
from flatq.cli.options import Threads
from flatq.progress import Progress

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the results.")] = Path(
        "flatq-demo"
    ),
    steps: Annotated[int, typer.Option(help="Number of training steps per method.")] = 500,
    n: Annotated[int, typer.Option("-n", help="Number of images sampled per model.")] = 1000,
    threads: Threads = None,
) -> None:
    """Train ADM and SAM on digits, quantize both to 8 and 4 bits, and compare their samples on one page."""
    from flatq.demo import run_demo
    from flatq.report.findings import COLUMNS, cells

    note("Training, quantizing and sampling two small models of digits: a few minutes on two cores")
    if sys.stderr.isatty():
        with progress_bar() as bar:
            demo = run_demo(out, bar, steps=steps, images=n, threads=threads)
    else:
        demo = run_demo(out, _stages(), steps=steps, images=n, threads=threads)
    print_table(COLUMNS, [cells(result) for result in demo.results], COLUMNS[3:])
    typer.echo("")
    for line in demo.sentences:
        typer.echo(line)
    typer.echo("")
    for line in demo.notes:
        typer.echo(f"- {line}")
    typer.echo("")
    typer.echo(f"Pictures and plot: {demo.page}")


def _stages() -> Progress:
    """One line at the start of each stage, for logs."""
    begun: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        if what not in begun:
            begun.add(what)
            note(what)

    return report
