"""`flatq demo`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import Threads, note, progress_bar

if TYPE_CHECKING:
    from flatq.demo import DemoRow

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the results.")] = Path(
        "flatq-demo"
    ),
    steps: Annotated[int, typer.Option(help="Training steps for each method.")] = 1000,
    n: Annotated[int, typer.Option("-n", help="Images sampled for each model.")] = 1000,
    threads: Threads = None,
) -> None:
    """Train ADM and SAM on digits, quantize, export, sample on ONNX Runtime, and compare."""
    from flatq.demo import conclusion, run_demo

    note("digits, ADM and SAM, raw and EMA weights, W8A8 and W4A8: a few minutes on two cores")
    if sys.stderr.isatty():
        with progress_bar() as bar:
            rows = run_demo(out, bar, steps=steps, images=n, threads=threads)
    else:
        rows = run_demo(out, _lines(), steps=steps, images=n, threads=threads)
    _table(rows)
    typer.echo("")
    for line in conclusion(rows):
        typer.echo(line)
    typer.echo("Distances are in the features of digits48, flatq's own network; no Inception FID compares.")
    typer.echo(f"results: {out}/ (picture: {out / 'demo.png'}; reports: {out}/*/*/eval/report.md)")


def _lines() -> Callable[[str, int, int], None]:
    """A line at the start of each stage and at every quarter of it, for logs."""
    said: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if said.get(what) != quarter:
            said[what] = quarter
            note(f"{what}: {done}/{total}")

    return report


def _table(rows: list[DemoRow]) -> None:
    head = (
        "method",
        "weights",
        "precision",
        "FID float",
        "FID",
        "drift",
        "95 % interval",
        "file",
        "ms a step",
    )
    cells = [head]
    for row in rows:
        entry, drift = row.entry, row.entry.drift
        interval = corrected = fids = fidq = "-"
        if drift is not None:
            fids, fidq = f"{drift.fid_float:.3f}", f"{drift.fid_quantized:.3f}"
            if drift.corrected is not None:
                corrected, interval = f"{drift.corrected:+.3f}", f"{drift.low:+.3f} .. {drift.high:+.3f}"
        latency = "-" if entry.latency_ms is None else f"{entry.latency_ms:.1f}"
        size = f"{entry.size_bytes / 1000:.0f} kB"
        cells.append(
            (row.method.upper(), row.average, entry.precision, fids, fidq, corrected, interval, size, latency)
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
