"""`flatq convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import Weights, note
from flatq.errors import UsageError

__all__ = ["command"]


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint, .pt.")],
    to: Annotated[str, typer.Option("--to", help="diffusers: a folder for DDPMPipeline.from_pretrained.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    weights: Weights = None,
) -> None:
    """Write a checkpoint for another code base."""
    if to != "diffusers":
        raise UsageError("--to is not valid", expected="diffusers", got=to)
    from flatq.checkpoint import choose_weights, load_checkpoint
    from flatq.interop.diffusers import export_diffusers

    loaded = load_checkpoint(checkpoint)
    export_diffusers(loaded, out, average=choose_weights(loaded, weights, note), note=note)
    typer.echo(str(out))
