"""`flatq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import note, one_artifact, print_table, progress_bar
from flatq.cli.options import Hint, Precision, PrintJson, Threads, Weights, parse_list
from flatq.report.wording import size

if TYPE_CHECKING:
    from flatq.bench.result import BenchResult, Entry, Measured

__all__ = ["command"]

_WORDS = ("model", "runtime")
_NUMBERS = (
    "batch", "median ms", "p90 ms", "ms an image", "CPU ms", "x float", "p10 to p90", "x CPU", "memory",
    "size",
)  # fmt: skip


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="Artifacts, checkpoints or deployment folders; by default the one of the working folder.",
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Runtimes, separated by commas: torch, onnxruntime, openvino, tensorrt; by default all that "
            "are installed."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    baseline: Annotated[
        Path | None,
        typer.Option(help="Float checkpoint of the artifacts; by default the one beside each artifact."),
    ] = None,
    weights: Weights = None,
    threads: Threads = None,
    precision: Precision = None,
    hint: Hint = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timed calls per model and batch size.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Number of untimed calls before them.")] = 3,
    seed: Annotated[int, typer.Option(help="Random seed of the inputs, which are noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write bench.json and bench.png to.")
    ] = None,
    as_json: PrintJson = False,
) -> None:
    """Measure latency, memory and size, float and quantized, on every runtime side by side.

    Each model runs in a process of its own; the models are called round-robin. "x float" is the speedup over
    the float model on the same runtime, the median over the rounds.
    """
    from flatq.backends import RuntimeSettings
    from flatq.bench import BenchTask, bench, write_result
    from flatq.bench.result import PLOT_FILE, save_plot

    task = BenchTask(
        paths=tuple(paths or [one_artifact(None)]),
        runtimes=None if runtime is None else tuple(dict.fromkeys(map(str.strip, runtime.split(",")))),
        batches=tuple(dict.fromkeys(parse_list(batch, "--batch", int))),
        baseline=baseline,
        weights=weights,
        runtime=RuntimeSettings(precision=precision, threads=threads, hint=hint),
        rounds=rounds,
        warmup=warmup,
        seed=seed,
    )
    with progress_bar() as report:
        result = bench(task, report, note)
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        _print(result)
    if out is not None:
        written = write_result(result, out)
        save_plot(result, out / PLOT_FILE)
        note(f"written: {written}, {out / PLOT_FILE}")


def _print(result: BenchResult) -> None:
    rows = [
        _row(entry, measured)
        for batch in result.batches
        for entry in result.entries
        for measured in entry.measured
        if measured.batch == batch
    ]
    print_table((*_WORDS, *_NUMBERS), rows, _NUMBERS)
    for each in result.left_out:
        typer.echo(f"left out: {each.label}: {each.reason}")
    loads = result.machine.load_average
    typer.echo(
        f"{result.machine.environment.cpu}; {result.rounds} rounds after {result.warmup}"
        + ("" if loads is None else f"; load average {loads[0]:.1f} at the start")
    )
    typer.echo(
        "x float: median speedup over the rounds (10th to 90th percentile). memory: peak above the process "
        "with its libraries, before it opened the model."
    )


def _row(entry: Entry, found: Measured) -> tuple[str, ...]:
    floats = entry.runtime.get("float precision")
    runtime = f"{entry.runtime['runtime']} {entry.runtime.get('version', '')}".split("-")[0].strip()
    if entry.runtime["runtime"] == "torch" and entry.precision != "fp32":
        runtime += ", integers simulated"
    wall = found.speedup.wall if found.speedup is not None else None
    cpu = found.speedup.cpu if found.speedup is not None else None
    return (
        entry.model,
        runtime + (f", floats in {floats}" if floats else ""),
        str(found.batch),
        f"{found.wall.median_ms:.2f}",
        f"{found.wall.p90_ms:.2f}",
        f"{found.per_image_ms:.2f}",
        f"{found.cpu.median_ms:.2f}",
        "" if wall is None else f"{wall.median:.2f}",
        "" if wall is None else f"{wall.low:.2f} to {wall.high:.2f}",
        "" if cpu is None else f"{cpu.median:.2f}",
        "-" if entry.memory is None else size(entry.memory.model_bytes),
        size(entry.size_bytes),
    )
