"""`flatq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import Hint, Precision, Threads, Weights, note, one_artifact, progress_bar
from flatq.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from flatq.bench.result import BenchResult, Entry, Measured

__all__ = ["command"]


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ARTIFACT...]", help="Artifacts; also checkpoints and folders of `flatq export`."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="torch, onnxruntime, openvino, tensorrt, with commas; all installed by default."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8",
    baseline: Annotated[
        Path | None,
        typer.Option(help="The artifacts' float checkpoint; by default the one beside each of them."),
    ] = None,
    weights: Weights = None,
    threads: Threads = None,
    precision: Precision = None,
    hint: Hint = None,
    rounds: Annotated[int, typer.Option(help="Calls that count, of each model at each batch size.")] = 30,
    warmup: Annotated[int, typer.Option(help="Calls before them.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the inputs, which are noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for bench.json and bench.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure latency, memory and size, float and quantized, on every runtime side by side.

    Each model runs in a process of its own, one call each in turn. "x float" is how many times as fast a
    model is as the float model on the same runtime, by the median of the rounds.
    """
    from flatq.backends import RuntimeSettings
    from flatq.bench import BenchTask, bench, write_result
    from flatq.bench.result import PLOT_FILE, save_plot

    task = BenchTask(
        paths=tuple(paths or [one_artifact(None)]),
        runtimes=None if runtime is None else tuple(dict.fromkeys(map(str.strip, runtime.split(",")))),
        batches=_batches(batch),
        baseline=baseline,
        average=weights,
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


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(n) for n in text.split(",")))
    except ValueError as error:
        raise UsageError(
            "--batch is not valid", expected="numbers with commas, such as 1,8", got=text
        ) from error


def _print(result: BenchResult) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file has no edge to wrap at
    console.print(_table(result))
    for each in result.left_out:
        typer.echo(f"left out: {each.label}: {each.reason}")
    loads = result.machine.load_average
    typer.echo(
        f"{result.machine.environment.cpu}; {result.rounds} rounds after {result.warmup}"
        + ("" if loads is None else f"; load average {loads[0]:.1f} at the start")
    )
    typer.echo(
        "x float: median of the rounds (10th to 90th percentile). memory: the highest above the process with "
        "its libraries, before it opened the model."
    )


def _table(result: BenchResult) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("runtime", no_wrap=True)
    for name in (
        "batch",
        "median ms",
        "p90 ms",
        "ms an image",
        "CPU ms",
        "x float",
        "",
        "x CPU",
        "memory",
        "size",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for batch in result.batches:
        for entry in result.entries:
            found = next(m for m in entry.measured if m.batch == batch)
            table.add_row(*_row(entry, found))
        table.add_section()
    return table


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
        "" if wall is None else f"({wall.low:.2f} to {wall.high:.2f})",
        "" if cpu is None else f"{cpu.median:.2f}",
        "-" if entry.memory is None else _size(entry.memory.model_bytes),
        _size(entry.size_bytes),
    )


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
