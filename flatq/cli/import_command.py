"""`flatq import`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatq.cli.common import note
from flatq.errors import UsageError

if TYPE_CHECKING:
    from flatq.checkpoint import Checkpoint

__all__ = ["command"]


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="State dict of guided-diffusion, diffusers folder, or id of one on the Hugging Face hub.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint to write, a .pt file.")],
    flags: Annotated[
        Path | None,
        typer.Option(help="JSON file of the flags that a guided-diffusion network was trained with."),
    ] = None,
    ema: Annotated[Path | None, typer.Option(help="EMA weights of the same network.")] = None,
    scheduler: Annotated[
        Path | None, typer.Option(help="Scheduler folder or scheduler_config.json of a diffusers network.")
    ] = None,
    null_label: Annotated[
        int | None, typer.Option(help="Row of the class embedding that means no label (for guidance).")
    ] = None,
) -> None:
    """Import a network that another library trained."""
    if out.exists():
        raise UsageError(
            f"{out} exists already",
            expected="a path that is free",
            got="a folder" if out.is_dir() else "a file",
            next_step="choose another -o, or remove it",
        )
    checkpoint = _read(source, flags, ema, scheduler)
    if null_label is not None:
        checkpoint = _with_null_label(checkpoint, null_label)

    from flatq.checkpoint import save_checkpoint

    save_checkpoint(checkpoint, out)
    model, process = checkpoint.model, checkpoint.process
    shape = " x ".join(map(str, model.image_shape))
    count = sum(value.numel() for value in checkpoint.weights[checkpoint.choose()].values())
    labels = "" if model.num_classes is None else f", {model.num_classes} classes"
    note(
        f"{count:,} parameters, images {shape}{labels}; {process.schedule}, "
        f"{process.train_steps} steps, {process.prediction}, {process.variance}; "
        f"weights: {', '.join(checkpoint.weights)}"
    )
    typer.echo(str(out))


def _read(source: str, flags: Path | None, ema: Path | None, scheduler: Path | None) -> Checkpoint:
    path = Path(source)
    if flags is None and (path.is_file() or path.suffix in (".pt", ".pth")):
        raise UsageError(
            f"{source} is a file, and a state dict does not say what network it is of",
            expected="--flags with a JSON file of the flags that guided-diffusion was trained with",
            got="no --flags",
            next_step="head width, order of the attention's q, k and v, and schedule stand in no tensor: "
            "take them from the training command",
        )
    if flags is None:
        from flatq.interop.diffusers import import_diffusers

        return import_diffusers(source, ema=ema, scheduler=scheduler, note=note)
    if path.is_dir() or scheduler is not None:
        raise UsageError(
            "--flags is for a state dict of guided-diffusion",
            expected="a .pt file, and no --scheduler: the flags give the process",
            got=f"the folder {source}" if path.is_dir() else f"--scheduler {scheduler}",
            next_step="leave --flags out for a diffusers network",
        )
    from flatq.interop.guided_diffusion import import_guided_diffusion

    return import_guided_diffusion(path, flags, ema, note=note)


def _with_null_label(checkpoint: Checkpoint, null_label: int) -> Checkpoint:
    from pydantic import ValidationError

    from flatq.network_config import ModelConfig

    model = checkpoint.model
    try:
        changed = ModelConfig.model_validate(model.model_dump() | {"null_label": null_label})
    except ValidationError as error:
        count = model.num_classes
        raise UsageError(
            "the network has no such null label",
            expected="no --null-label: the network takes no labels" if count is None else f"0 to {count - 1}",
            got=f"--null-label {null_label}",
            next_step="name the row of the class embedding that was trained without a label",
        ) from error
    return replace(checkpoint, model=changed)
