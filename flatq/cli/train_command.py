"""`flatq train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flatq.cli.common import note, progress_bar
from flatq.errors import UsageError

__all__ = ["command"]


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(
            f"{option} is not a list of whole numbers",
            expected="such as 32,64",
            got=text,
            next_step="separate by commas",
        ) from error


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run; ckpt.pt goes there.")],
    data: Annotated[str, typer.Option(help="digits, or a folder, .zip or .npz of images.")] = "digits",
    method: Annotated[str, typer.Option(help="adm (plain) or sam (sharpness-aware).")] = "adm",
    rho: Annotated[float, typer.Option(help="SAM's radius.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Images for each step.")] = 128,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-3,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.999,
    channels: Annotated[str, typer.Option(help="Widths of the UNet's levels.")] = "32,64",
    layers: Annotated[int, typer.Option(help="Residual blocks on each level.")] = 1,
    attention: Annotated[str, typer.Option(help="Resolutions with attention, e.g. 16,8.")] = "",
    head_dim: Annotated[int, typer.Option(help="Width of an attention head.")] = 8,
    patch: Annotated[int, typer.Option(help="Fold PATCH x PATCH pixels into channels.")] = 1,
    dropout: Annotated[float, typer.Option(help="Dropout in the residual blocks.")] = 0.0,
    schedule: Annotated[str, typer.Option(help="cosine or linear.")] = "cosine",
    size: Annotated[int | None, typer.Option(help="Crop and resize the images to SIZE pixels.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first LIMIT images.")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, batches, noise and dropout.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Train a UNet by noise prediction; RUN/ckpt.pt holds raw and EMA weights."""
    from pydantic import ValidationError

    from flatq.train import TrainConfig, train

    options: dict[str, Any] = {
        "data": data, "method": method, "rho": rho, "steps": steps, "batch_size": batch_size, "lr": lr,
        "ema_decay": ema, "channels": _numbers(channels, "--channels"), "layers_per_block": layers,
        "attention": _numbers(attention, "--attention"), "head_dim": head_dim, "patch_size": patch,
        "dropout": dropout, "schedule": schedule, "size": size, "limit": limit, "flip": flip, "seed": seed,
        "threads": threads,
    }  # fmt: skip
    try:
        config = TrainConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"the option {'.'.join(map(str, first['loc']))} is not valid",
            expected=first["msg"],
            got=str(first["input"]),
            next_step="flatq train --help",
        ) from error
    with progress_bar() as bar:
        checkpoint = train(config, run, progress=lambda step, loss: bar(f"training ({method})", step, steps))
    note(f"weights: {', '.join(checkpoint.weights)}; final loss {checkpoint.provenance['final_loss']:.4f}")
    typer.echo(str(checkpoint.source))
