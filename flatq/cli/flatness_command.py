"""`flatq flatness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import ResizeChoice, Threads, note, parse_resize, progress_bar

__all__ = ["command"]


def command(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CKPT ...", help="Checkpoints to measure.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights variant: raw, ema or swa; may be repeated. Default: ema if there, else raw."
        ),
    ] = None,
    artifact: Annotated[
        list[Path] | None,
        typer.Option(help="Artifact whose quantization error is measured; made from one of the checkpoints."),
    ] = None,
    data: Annotated[str, typer.Option(help="Images of the draws, as in training.")] = "digits:train",
    resize: ResizeChoice = None,
    n: Annotated[int, typer.Option("-n", help="Draws of (image, timestep, noise); a multiple of 4.")] = 512,
    sigma: Annotated[
        list[float] | None,
        typer.Option(help="Standard deviation of the absolute weight noise; may be repeated."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Antithetic pairs of weight noise at each sigma.")] = 50,
    seed: Annotated[int, typer.Option(help="Random seed of the draws.")] = 0,
    threads: Threads = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for flatness.json, flatness.md and plots.")
    ] = Path("flatq-flatness"),
) -> None:
    """Measure how flat the loss is around a checkpoint's weights, and what quantization does to it."""
    from flatq.flatness.run import FlatnessTask, flatness_settings, run_flatness

    given = {
        "images": n,
        "seed": seed,
        "pairs": pairs,
        "threads": threads,
        **({"sigmas": sigma} if sigma else {}),
    }
    task = FlatnessTask(
        checkpoints=tuple(checkpoints),
        weights=tuple(weights or ()),
        artifacts=tuple(artifact or ()),
        data=data,
        resize=parse_resize(resize),
        settings=flatness_settings(given),
        out=out,
    )
    with progress_bar() as bar:
        run_flatness(task, bar)
    note(f"plots: {out / 'noise.svg'}, {out / 'quarters.svg'}")
    typer.echo((out / "flatness.md").read_text(encoding="utf-8"), nl=False)
