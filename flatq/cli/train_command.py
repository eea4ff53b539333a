"""`flatq train`."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flatq.cli.common import note, progress_bar
from flatq.cli.options import Threads, parse_list, runtime_option
from flatq.errors import UsageError

if TYPE_CHECKING:
    from flatq.train import TrainConfig

__all__ = ["command"]

_KEYS = {"ema": "ema_decays", "layers": "layers_per_block", "patch": "patch_size"}
_LISTS = ("ema", "channels", "attention")
_NOT_SETTINGS = ("run", "preset", "settings", "dry_run", "resume")


_data = partial(typer.Option, rich_help_panel="Data")
_method = partial(typer.Option, rich_help_panel="Method")
_network = partial(typer.Option, rich_help_panel="Network")
_optimizer = partial(typer.Option, rich_help_panel="Optimizer")
_averages = partial(typer.Option, rich_help_panel="Weight averages")
_length = partial(typer.Option, rich_help_panel="Length of the run")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run; it will hold ckpt.pt.")],
    preset: Annotated[
        str | None,
        typer.Option(help="Preset: digits, cifar10-small, cifar10-adm, lsun64, ffhq64, or a .toml file."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set any key of the configuration; --dry-run lists them."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the size of the run, and exit.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run, or start it.")] = False,
    data: Annotated[
        str | None, _data(help="Training images: digits (the default), or a folder, .zip or .npz.")
    ] = None,
    method: Annotated[
        Literal["adm", "ip", "sam", "noise"] | None,
        _method(help="Training method: ADM, input perturbation, SAM, or weight noise."),
    ] = None,
    rho: Annotated[float | None, _method(help="SAM radius.")] = None,
    gamma: Annotated[float | None, _method(help="Input perturbation strength, with ip or sam.")] = None,
    sam_on: Annotated[
        Literal["all", "norm"] | None,
        _method(help="Weights that SAM perturbs: all, or the normalization layers' only."),
    ] = None,
    sigma: Annotated[
        float | None,
        _method(help="Standard deviation of the weight noise, as a fraction of the weight range."),
    ] = None,
    sam_every: Annotated[int | None, _method(help="Number of steps between SAM steps.")] = None,
    steps: Annotated[int | None, _length(help="Number of optimizer steps.")] = None,
    max_minutes: Annotated[float | None, _length(help="Stop after this many minutes of training.")] = None,
    heldout: Annotated[str | None, _data(help="Images for the held-out loss.")] = None,
    stop_loss: Annotated[float | None, _length(help="Stop at this held-out loss.")] = None,
    batch_size: Annotated[int | None, _optimizer(help="Global batch size, over all processes.")] = None,
    lr: Annotated[float | None, _optimizer(help="Learning rate of AdamW.")] = None,
    warmup: Annotated[int | None, _optimizer(help="Number of warm-up steps.")] = None,
    lr_schedule: Annotated[
        Literal["constant", "cosine", "linear"] | None,
        _optimizer(help="Learning rate after the warm-up; cosine and linear decay to zero."),
    ] = None,
    precision: Annotated[Literal["fp32", "bf16"] | None, _optimizer(help="Training precision.")] = None,
    ema: Annotated[str | None, _averages(help="EMA decays, separated by commas, e.g. 0.999,0.9999.")] = None,
    swa_start: Annotated[
        str | None, _averages(help="First step of SWA, or a fraction of the run such as 0.75.")
    ] = None,
    swa_period: Annotated[int | None, _averages(help="Number of steps between SWA updates.")] = None,
    channels: Annotated[str | None, _network(help="Widths of the UNet's levels, e.g. 32,64.")] = None,
    layers: Annotated[int | None, _network(help="Number of residual blocks per level.")] = None,
    attention: Annotated[str | None, _network(help="Resolutions with attention, e.g. 16,8.")] = None,
    head_dim: Annotated[int | None, _network(help="Width of an attention head.")] = None,
    patch: Annotated[int | None, _network(help="Fold PATCH x PATCH pixels into channels.")] = None,
    dropout: Annotated[float | None, _network(help="Dropout probability in the residual blocks.")] = None,
    schedule: Annotated[Literal["cosine", "linear"] | None, _method(help="Noise schedule.")] = None,
    variance: Annotated[
        Literal["fixed_large", "learned_range"] | None, _method(help="Variance of the reverse process.")
    ] = None,
    timesteps: Annotated[
        Literal["uniform", "loss-second-moment"] | None,
        _method(help="Timestep sampler; the second one adapts to the loss."),
    ] = None,
    size: Annotated[int | None, _data(help="Crop and resize images to SIZE x SIZE pixels.")] = None,
    limit: Annotated[int | None, _data(help="Number of images to use; all by default.")] = None,
    flip: Annotated[bool | None, _data("--flip/--no-flip", help="Mirror half of the images.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, batches, noise and dropout.")
    ] = None,
    threads: Threads = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, runtime_option(help="Device.")] = None,
) -> None:
    """Train a diffusion UNet; RUN/ckpt.pt will hold the raw and averaged weights.

    Without a preset: two levels, plain ADM, 2000 steps. On several devices, run `accelerate launch -m flatq
    train RUN ...` or torchrun.
    """
    given = {
        name: value for name, value in locals().items() if name not in _NOT_SETTINGS and value is not None
    }
    options = _options(given, settings or [])

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
            options[key] = (
                parse_list(value, "--ema", float) if name == "ema" else parse_list(value, f"--{name}", int)
            )
        elif name == "swa_start":
            options[key] = parse_settings([f"{key}={value}"])[key]
        else:
            options[key] = value
    return options


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
    from flatq.train.dry_run import forecast

    size = forecast(config)
    typer.echo(to_toml(config), nl=False)
    classes = "" if size.labels is None else f", {size.labels} classes"
    count = "" if size.images is None else f"{size.images:,} of "
    typer.echo(f"# images: {count}{' x '.join(map(str, size.image_shape))}{classes}")
    typer.echo(f"# parameters: {size.parameters:,}")
    typer.echo(f"# MACs of an image (multiply-adds of one forward pass): {size.macs:,}")
    typer.echo(f"# memory for weights, gradients, optimizer and averages: {_megabytes(size.weights_bytes)}")
    typer.echo(f"# memory for the activations of a batch, at least: {_megabytes(size.activations_bytes)}")
    if size.images is not None:
        images_bytes = size.images * math.prod(size.image_shape)
        typer.echo(f"# memory for the images: {_megabytes(images_bytes)}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
