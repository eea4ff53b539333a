"""`flatq sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatq.cli.common import note, progress_bar
from flatq.cli.options import (
    SAMPLING,
    BatchSize,
    Device,
    Eta,
    First,
    Guidance,
    Hint,
    Label,
    Precision,
    Runtime,
    Sampler,
    Seed,
    Steps,
    Threads,
    Weights,
    sampling_settings,
)
from flatq.errors import UsageError

__all__ = ["command"]


def command(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint, artifact or deployment folder.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 64,
    first: First = 0,
    steps: Steps = str(SAMPLING.steps),
    sampler: Sampler = SAMPLING.sampler,
    eta: Eta = SAMPLING.eta,
    seed: Seed = SAMPLING.seed,
    label: Label = SAMPLING.label,
    guidance: Guidance = SAMPLING.guidance,
    batch_size: BatchSize = 64,
    runtime: Runtime = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    weights: Weights = None,
    threads: Threads = None,
    grid: Annotated[Path | None, typer.Option(help="PNG file to write, a grid of the images.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help=".npz file to write: arr_0, uint8 NHWC.")
    ] = None,
) -> None:
    """Sample images; the same index gives the same noise whatever the batch size or runtime."""
    import flatq
    from flatq.evaluate.cache import write_npz
    from flatq.images import save_grid
    from flatq.sampler import check_labels

    if grid is None and out is None:
        raise UsageError("no output is named", expected="--grid FILE.png or -o FILE.npz", got="neither")
    settings = sampling_settings(steps, sampler, eta, seed, label, guidance)
    on = flatq.RuntimeSettings(runtime, device, precision, threads, hint)
    with progress_bar() as bar, flatq.load(path, weights=weights, runtime=on) as model:
        identity = model.runtime.identity
        floats = f", floats in {identity['float precision']}" if "float precision" in identity else ""
        check_labels(settings, model.classes)
        default = " (the default)" if path.is_file() and weights is None else ""
        note(
            f"{model.name}: {model.precision}, {model.weights} weights{default}, "
            f"on {identity['runtime']}{floats}"
        )
        if model.classes is not None:
            note(f"labels: {model.classes.describe(label)}; guidance {guidance:g}")
        pixels = flatq.sample(model, n, settings, first=first, batch_size=batch_size, progress=bar).pixels
    if out is not None:
        write_npz(out, {"arr_0": pixels.transpose(0, 2, 3, 1)})
        typer.echo(str(out))
    if grid is not None:
        save_grid(grid, pixels, columns=max(1, round(n**0.5)), scale=max(1, 64 // pixels.shape[-1]))
        typer.echo(str(grid))
