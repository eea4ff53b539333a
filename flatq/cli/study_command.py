"""`flatq study run` and `flatq study report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import note, print_table, progress_bar

if TYPE_CHECKING:
    from flatq.study.config import Cell
    from flatq.study.results import CellResult

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Train and measure over methods and training seeds, and judge claims.",
)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Study configuration, a .toml file.")],
    cells: Annotated[
        str, typer.Option(help="Shell pattern of the cells to run, by their name RUN-SEED.")
    ] = "*",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder of the results; by default that of study.toml, else CONFIG without .toml.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells with their cost, and exit.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep weights, artifacts and intermediate results of each cell.")
    ] = False,
) -> None:
    """Run or resume the cells of a study that have no result yet.

    A cell is one training run at one seed and everything measured on it. Its result is one file,
    DIR/cells/RUN-SEED.json; an interrupted cell keeps what it has finished.
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
    """Judge the claims by the finished cells, and write report.json, report.md and index.html."""
    from flatq.study.report import write_report

    for line in write_report(folder, note):
        typer.echo(line)


def _left(chosen: list[Cell], results: dict[str, CellResult | None]) -> str:
    """How many cells are left, and how long they take."""
    left = [cell for cell in chosen if results[cell.name] is None]
    seconds = [_seconds(cell, results) for cell in left]
    known = "" if None in seconds else f", about {sum(s or 0 for s in seconds) / 3600:.1f} hours"
    return f"{len(left)} {'cell' if len(left) == 1 else 'cells'} left{known}"


def _seconds(cell: Cell, results: dict[str, CellResult | None]) -> float | None:
    from flatq.study.estimate import measured_seconds

    return measured_seconds(cell, filter(None, results.values()))


def _print_cost(chosen: list[Cell], results: dict[str, CellResult | None]) -> None:
    from flatq.study.estimate import cell_cost, cell_gigabytes

    rows, numbers = [], ("gradient passes", "evaluations", "artifacts", "hours")
    total, unknown = 0.0, False
    for cell in chosen:
        cost, seconds = cell_cost(cell), _seconds(cell, results)
        done = results[cell.name] is not None
        unknown |= seconds is None
        total += 0.0 if done or seconds is None else seconds
        hours = "?" if seconds is None else f"{seconds / 3600:.2f}"
        work = (f"{cost.passes:,}", f"{cost.evaluations:,}", str(cost.artifacts), hours)
        rows.append((cell.name, "done" if done else "to do", *work))
    print_table(("cell", "result", *numbers), rows, numbers)
    study = chosen[0].study
    if study.cost is not None:
        typer.echo(
            f"Rates of {study.cost.device}; disk while a cell runs: "
            f"{max(map(cell_gigabytes, chosen)):.1f} GB, less than 1 MB of it stays."
        )
    typer.echo(
        "Time left: " + ("unknown, the study names no rates" if unknown else f"{total / 3600:.1f} hours")
    )
