"""`flatq sensitivity`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flatq.calib import CalibrationPlan
from flatq.cli.common import note, print_table, progress_bar
from flatq.cli.options import Eta, Guidance, PrintJson, Sampler, Steps, Threads, Weights, sampling_settings
from flatq.quantize.methods import Method, WeightRounding
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import recipe_for_bits
from flatq.sensitivity.settings import SensitivitySettings

__all__ = ["command"]

_DEFAULTS = SensitivitySettings()
_calibration = partial(typer.Option, rich_help_panel="Calibration")
_measure = partial(typer.Option, rich_help_panel="Measurement")
_WORST = 10


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, a .pt file.")],
    bits: Annotated[int, typer.Option(help="Weight bit width, 2 to 8.")] = 4,
    act_bits: Annotated[
        int, typer.Option(help="Activation bit width, 4 to 8; 32 keeps activations in float.")
    ] = 8,
    method: Annotated[
        Method, typer.Option(help="Weight rounding: to nearest, GPTQ, or AdaRound.")
    ] = _DEFAULTS.quantize.rounding.method,
    weights: Weights = None,
    images: Annotated[
        int, _measure("-n", help="Number of images sampled with each layer quantized; 2 to 64.")
    ] = _DEFAULTS.images,
    checks: Annotated[
        int, _measure(min=2, help="Number of random plans that the forecast is compared with.")
    ] = _DEFAULTS.checks,
    calib_images: Annotated[
        int, _calibration(min=1, help="Number of images sampled for calibration.")
    ] = _DEFAULTS.quantize.calibration.images,
    steps: Steps = str(_DEFAULTS.quantize.calibration.steps),
    sampler: Sampler = _DEFAULTS.quantize.calibration.sampler,
    eta: Eta = _DEFAULTS.quantize.calibration.eta,
    seed: Annotated[
        int, _calibration(help="Random seed of the calibration noise; the images take the next one.")
    ] = _DEFAULTS.quantize.calibration.seed,
    guidance: Guidance = _DEFAULTS.quantize.calibration.guidance,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder for JSON, Markdown and the bar plot; CKPT.sensitivity by default."
        ),
    ] = None,
    as_json: PrintJson = False,
) -> None:
    """Rank the layers of a checkpoint by the harm of quantizing each alone."""
    import flatq
    from flatq.sensitivity.tables import forecast_quality, layer_rows

    sampling = sampling_settings(steps, sampler, eta, seed, None, guidance)
    quantize = QuantizeSettings(
        recipe_for_bits(bits, act_bits),
        WeightRounding(method=method),
        CalibrationPlan(images=calib_images, **sampling.model_dump()),
        weights,
        threads,
    )
    folder = out or checkpoint.with_name(f"{checkpoint.stem}.sensitivity")
    with progress_bar() as bar:
        found = flatq.sensitivity(
            checkpoint, SensitivitySettings(quantize, images, checks), folder, progress=bar, note=note
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    head, *rows = layer_rows(found)
    print_table(head, rows[:_WORST], numbers=head[2:])
    if len(rows) > _WORST:
        typer.echo(f"... and {len(rows) - _WORST} more")
    for measure in ("image", "prediction"):
        typer.echo(f"forecast of a plan, {forecast_quality(found, measure)}")
    note(f"all layers, blocks and a plot: {folder}")
