"""`flatq flatness`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import note, progress_bar
from flatq.cli.options import ResizeChoice, Threads

__all__ = ["command"]


class _Weights(StrEnum):  # typer takes no list of a Literal
    RAW = "raw"
    EMA = "ema"
    SWA = "swa"


def command(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CKPT", help="Checkpoints to measure.")],
    weights: Annotated[
        list[_Weights] | None,
        typer.Option(help="Weights variant; may be repeated. By default ema if there, else raw."),
    ] = None,
    artifact: Annotated[
        list[Path] | None,
        typer.Option(
            help="Artifact of one of the checkpoints, to measure its quantization error; may be repeated."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="Images to draw from, as in training.")] = "digits:train",
    resize: ResizeChoice = None,
    n: Annotated[
        int, typer.Option("-n", help="Number of draws of (image, timestep, noise), a multiple of 4.")
    ] = 512,
    sigma: Annotated[
        list[float] | None,
        typer.Option(help="Standard deviation of the absolute weight noise; may be repeated."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of antithetic pairs of weight noise per sigma.")] = 50,
    seed: Annotated[int, typer.Option(help="Random seed of the draws.")] = 0,
    threads: Threads = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder to write flatness.json, flatness.md and plots to.")
    ] = Path("flatq-flatness"),
) -> None:
    """Measure how flat the loss is around a checkpoint's weights, and what quantization does to it."""
    from flatq.flatness.run import flatness_settings, run_flatness

    given = {
        "images": n,
        "seed": seed,
        "pairs": pairs,
        "threads": threads,
        **({"sigmas": sigma} if sigma else {}),
    }
    with progress_bar() as bar:
        run_flatness(
            checkpoints,
            out,
            weights=weights or (),
            artifacts=artifact or (),
            data=data,
            resize=resize,
            settings=flatness_settings(given),
            progress=bar,
        )
    note(f"plots: {out / 'noise.svg'}, {out / 'quarters.svg'}")
    typer.echo((out / "flatness.md").read_text(encoding="utf-8"), nl=False)
