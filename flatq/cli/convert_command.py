"""`flatq convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flatq.cli.common import note
from flatq.cli.options import Weights

__all__ = ["command"]


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, a .pt file.")],
    to: Annotated[
        Literal["diffusers"],
        typer.Option(help="Format to write; diffusers is a folder for DDPMPipeline.from_pretrained."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder to write.")],
    weights: Weights = None,
) -> None:
    """Convert a checkpoint to another library's format."""
    from flatq.checkpoint import choose_weights, load_checkpoint
    from flatq.interop.diffusers import export_diffusers

    loaded = load_checkpoint(checkpoint)
    export_diffusers(loaded, out, average=choose_weights(loaded, weights, note), note=note)
    typer.echo(str(out))
