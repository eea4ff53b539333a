"""`flatq train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatq.cli.common import note, progress_bar
from flatq.errors import UsageError

if TYPE_CHECKING:
    from flatq.train import TrainConfig

__all__ = ["command"]

_KEYS = {"ema": "ema_decays", "layers": "layers_per_block", "patch": "patch_size"}
_LISTS = ("ema", "channels", "attention")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run; ckpt.pt goes there.")],
    preset: Annotated[
        str | None,
        typer.Option(help="digits, cifar10-small, cifar10-adm, lsun64, ffhq64, or a .toml file."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; see --dry-run."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the size of the run, and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted, or begin it.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="digits (the default), or a folder, .zip or .npz of images.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="adm (plain), ip (input perturbation), sam or noise (on the weights).")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="SAM's radius.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Input perturbation, with ip or sam.")] = None,
    sam_on: Annotated[
        str | None, typer.Option(help="Weights that SAM perturbs: all, or norm (normalization layers only).")
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Weight noise's standard deviation, as a fraction of the range.")
    ] = None,
    sam_every: Annotated[int | None, typer.Option(help="SAM at every SAM_EVERY-th step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after so much time in training.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Images for the held-out loss.")] = None,
    stop_loss: Annotated[float | None, typer.Option(help="Stop at this held-out loss.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images for each step, all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps in which the learning rate rises.")] = None,
    lr_schedule: Annotated[
        str | None, typer.Option(help="Learning rate after warm-up: constant, or cosine or linear to zero.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    ema: Annotated[str | None, typer.Option(help="Decays of the averages, e.g. 0.999,0.9999.")] = None,
    swa_start: Annotated[
        str | None, typer.Option(help="First step that SWA takes, or a share such as 0.75.")
    ] = None,
    swa_period: Annotated[int | None, typer.Option(help="Steps between the weights that SWA takes.")] = None,
    channels: Annotated[str | None, typer.Option(help="Widths of the UNet's levels, e.g. 32,64.")] = None,
    layers: Annotated[int | None, typer.Option(help="Residual blocks on each level.")] = None,
    attention: Annotated[str | None, typer.Option(help="Resolutions with attention, e.g. 16,8.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of an attention head.")] = None,
    patch: Annotated[int | None, typer.Option(help="Fold PATCH x PATCH pixels into channels.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout in the residual blocks.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine or linear.")] = None,
    variance: Annotated[str | None, typer.Option(help="fixed_large or learned_range.")] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="uniform, or loss-second-moment (differs between methods).")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Crop and resize the images to SIZE pixels.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first LIMIT images.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, batches, noise and dropout.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
) -> None:
    """Train a UNet by noise prediction; RUN/ckpt.pt holds raw and averaged weights.

    Without a preset: two levels, plain ADM, 2000 steps. On several devices: `accelerate launch -m flatq
    train RUN ...`, or torchrun.
    """
    given = {
        "data": data, "method": method, "rho": rho, "gamma": gamma, "sam_every": sam_every, "sam_on": sam_on,
        "sigma": sigma, "lr_schedule": lr_schedule, "steps": steps,
        "max_minutes": max_minutes, "heldout": heldout, "stop_loss": stop_loss, "batch_size": batch_size,
        "lr": lr, "warmup": warmup, "precision": precision, "ema": ema, "swa_start": swa_start,
        "swa_period": swa_period, "channels": channels, "layers": layers, "attention": attention,
        "head_dim": head_dim, "patch": patch, "dropout": dropout, "schedule": schedule, "variance": variance,
        "timesteps": timesteps, "size": size, "limit": limit, "flip": flip, "seed": seed,
        "threads": threads, "device": device,
    }  # fmt: skip
    options = _options({name: value for name, value in given.items() if value is not None}, settings or [])

    import flatq

    config = _configuration(preset, options, run if resume else None)
    if dry_run:
        _describe(config)
        return
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        flatq.train(config, run, resume=resume)
        return
    with progress_bar() as bar:
        what = f"training ({config.method})"
        checkpoint = flatq.train(
            config, run, resume=resume, progress=lambda step, loss: bar(what, step, config.steps)
        )
    note(f"weights: {', '.join(checkpoint.weights)}; final loss {checkpoint.provenance['final_loss']:.4f}")
    typer.echo(str(checkpoint.source))


def _options(given: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Options and `--set`, by the configuration's keys.

    Raises:
        UsageError: a key given twice, or a list that is none.
    """
    from flatq.train.configure import parse_settings

    options = parse_settings(settings)
    for name, value in given.items():
        key = _KEYS.get(name, name)
        if key in options:
            raise UsageError(
                f"{key} is given twice", expected="--set or its option", got="both", next_step="drop one"
            )
        if name in _LISTS:
            options[key] = _numbers(value, f"--{name}", float if name == "ema" else int)
        elif name == "swa_start":
            options[key] = parse_settings([f"{key}={value}"])[key]
        else:
            options[key] = value
    return options


def _numbers(text: str, option: str, kind: type[int] | type[float]) -> list[int] | list[float]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(
            f"{option} is not a list of {'whole ' if kind is int else ''}numbers",
            expected="such as 32,64" if kind is int else "such as 0.999,0.9999",
            got=text,
            next_step="separate by commas",
        ) from error


def _configuration(preset: str | None, options: dict[str, Any], resumed: Path | None) -> TrainConfig:
    """The preset, the run that is resumed or the defaults, and the options on top."""
    from flatq.train.configure import read_preset, resolve
    from flatq.train.state import STATE_FILE, read_state

    name, base = "the defaults", {"data": "digits"}
    if preset is not None:
        name, base = f"the preset {preset}", read_preset(preset)
    elif resumed is not None and ((resumed / STATE_FILE).exists() or not options):
        name, base = f"the run {resumed}", read_state(resumed)["config"]
    return resolve((name, base), ("the command line", options))


def _describe(config: TrainConfig) -> None:
    """TOML on stdout: the configuration, and the size of the run in comments."""
    from flatq.train.configure import to_toml
    from flatq.train.dry_run import forecast, look_at_images

    images = look_at_images(config)
    size = forecast(config, images)
    typer.echo(to_toml(config), nl=False)
    classes = "" if images.labels is None else f", {images.labels} classes"
    count = "" if images.count is None else f"{images.count:,} of "
    typer.echo(f"# images: {count}{' x '.join(map(str, images.shape))}{classes}")
    typer.echo(f"# parameters: {size.parameters:,}")
    typer.echo(f"# MACs of an image (multiply-adds of one forward pass): {size.macs:,}")
    typer.echo(f"# memory for weights, gradients, optimizer and averages: {_megabytes(size.weights_bytes)}")
    typer.echo(f"# memory for the activations of a batch, at least: {_megabytes(size.activations_bytes)}")
    if size.images_bytes is not None:
        typer.echo(f"# memory for the images: {_megabytes(size.images_bytes)}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
