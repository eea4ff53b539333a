"""`flatq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT", help="The report.json of `flatq eval`, or its folder."),
    ],
    bench: Annotated[
        Path | None,
        typer.Option(
            help="The bench.json of `flatq bench` on the same models, or its folder, for the latency plot."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="HTML file to write; by default report.html beside the first report."
        ),
    ] = None,
) -> None:
    """Make the HTML page of one report, or of several on the same scale, without sampling."""
    from flatq.bench.result import read_result, speeds_of
    from flatq.report.html.page_models import PageSource
    from flatq.report.model import read_report
    from flatq.report.write import write_html

    folders = [path if path.is_dir() else path.parent for path in reports]
    sources = [PageSource(read_report(path), folder) for path, folder in zip(reports, folders, strict=True)]
    speeds = [] if bench is None else speeds_of(read_result(bench))
    typer.echo(str(write_html(sources, out or folders[0] / "report.html", speeds)))
