"""`flatq study run` and `flatq study report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import note, progress_bar

if TYPE_CHECKING:
    from flatq.study.config import Cell
    from flatq.study.results import CellResult

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train and measure over methods and training seeds, and judge claims by what was found.",
)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A study, as a .toml file.")],
    cells: Annotated[
        str, typer.Option(help="Only the cells whose name RUN-SEED matches this shell pattern.")
    ] = "*",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder of the results. Default: that of study.toml, else CONFIG without .toml.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and what they cost, and stop.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep weights, artifacts and single results of each cell.")
    ] = False,
) -> None:
    """Run the cells of a study that have no result yet, or go on with them.

    A cell is one training run at one seed and everything measured on it. Its result is one file,
    DIR/cells/RUN-SEED.json; what a killed cell has finished is kept.
    """
    from flatq.study.config import read_config
    from flatq.study.run import existing_result, place_config, run_cell

    study = read_config(config)
    folder = out or (config.parent if config.name == "study.toml" else config.with_suffix(""))
    chosen = study.cells(cells)
    results = {cell.name: existing_result(folder, cell) for cell in study.cells()}
    if dry_run:
        _print_cost(chosen, results)
        return
    place_config(config, folder)
    for cell in chosen:
        results[cell.name] = existing_result(folder, cell)  # once more: other processes may be at work
        if results[cell.name] is not None:
            continue
        note(f"{cell.name}: {_left(chosen, results)}")
        with progress_bar() as bar:
            results[cell.name] = run_cell(cell, folder, keep=keep, progress=bar, note=note)
    note(f"{sum(results[c.name] is not None for c in chosen)} of {len(chosen)} cells are done: {folder}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `flatq study run`.")],
) -> None:
    """Judge the claims by the cells that are there, and write report.json, report.md and index.html."""
    from flatq.study.report import write_report

    for line in write_report(folder, note):
        typer.echo(line)


def _left(chosen: list[Cell], results: dict[str, CellResult | None]) -> str:
    """How many cells are left, and how long they take."""
    left = [cell for cell in chosen if results[cell.name] is None]
    seconds = [_seconds(cell, results) for cell in left]
    known = "" if None in seconds else f", about {sum(s or 0 for s in seconds) / 3600:.1f} hours"
    return f"{len(left)} {'cell' if len(left) == 1 else 'cells'} to go{known}"


def _seconds(cell: Cell, results: dict[str, CellResult | None]) -> float | None:
    from flatq.study.estimate import measured_seconds

    return measured_seconds(cell, filter(None, results.values()))


def _print_cost(chosen: list[Cell], results: dict[str, CellResult | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    from flatq.study.estimate import cell_cost, cell_gigabytes

    table = Table("cell", "result", "gradient passes", "evaluations", "artifacts", "hours", box=None)
    total, unknown = 0.0, False
    for cell in chosen:
        cost, seconds = cell_cost(cell), _seconds(cell, results)
        done = results[cell.name] is not None
        unknown |= seconds is None
        total += 0.0 if done or seconds is None else seconds
        hours = "?" if seconds is None else f"{seconds / 3600:.2f}"
        row = (f"{cost.passes:,}", f"{cost.evaluations:,}", str(cost.artifacts), hours)
        table.add_row(cell.name, "done" if done else "to do", *row)
    Console(width=110).print(table)
    study = chosen[0].study
    if study.cost is not None:
        typer.echo(
            f"Rates of {study.cost.device}; disk while a cell runs: "
            f"{max(map(cell_gigabytes, chosen)):.1f} GB, less than 1 MB of it stays."
        )
    typer.echo(
        "Time to go: " + ("unknown, the study names no rates" if unknown else f"{total / 3600:.1f} hours")
    )
