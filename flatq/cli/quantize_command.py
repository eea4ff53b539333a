"""`flatq quantize`."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flatq.calib import CalibrationPlan
from flatq.cli.common import note, progress_bar
from flatq.cli.options import (
    Eta,
    Guidance,
    Sampler,
    Steps,
    Threads,
    Weights,
    naming_options,
    sampling_settings,
)
from flatq.quantize.methods import Method, WeightRounding
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import ActivationRange, WeightRange, branch_of, half_name, recipe_for_bits

if TYPE_CHECKING:
    from flatq.quantize.artifact import Manifest

__all__ = ["command"]

_CALIBRATION, _ROUNDING = QuantizeSettings.calibration, QuantizeSettings.rounding
_RECIPE: dict[str, Any] = {
    name: option.default for name, option in inspect.signature(recipe_for_bits).parameters.items()
}
"""The defaults."""


_width = partial(typer.Option, rich_help_panel="Bit widths")
_range = partial(typer.Option, rich_help_panel="Scales and ranges")
_graph = partial(typer.Option, rich_help_panel="Graph changes")
_calibration = partial(typer.Option, rich_help_panel="Calibration")
_rounding_option = partial(typer.Option, rich_help_panel="Weight rounding")


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint, a .pt file.")],
    bits: Annotated[
        int,
        _width(help="Weight bit width, 2 to 8; use 7 for OpenVINO on CPUs without VNNI, where 8 saturates."),
    ] = _RECIPE["bits"],
    act_bits: Annotated[
        int, _width(help="Activation bit width, 4 to 8; 32 keeps activations in float.")
    ] = _RECIPE["activation_bits"],
    attention_bits: Annotated[
        int,
        _width(help="Bit width of the inputs of attention's two products, 4 to 8; 32 keeps them in float."),
    ] = _RECIPE["attention_bits"],
    first_last: Annotated[
        Literal["weights-only", "8", "same"],
        _width(
            help="First and last layer: 8-bit weights only, 8-bit weights and activations, or the "
            "same as the other layers."
        ),
    ] = "weights-only",
    granularity: Annotated[
        Literal["per-channel", "per-tensor"], _range(help="Granularity of the weight scales.")
    ] = "per-channel",
    symmetric: Annotated[
        bool, _range("--symmetric/--affine", help="Symmetric or affine activation grids.")
    ] = _RECIPE["symmetric"],
    act_range: Annotated[ActivationRange, _range(help="How activation ranges are chosen.")] = _RECIPE[
        "activation_range"
    ],
    percentile: Annotated[
        float,
        _range(help="Upper clipping percentile of --act-range percentile (the lower one is symmetric)."),
    ] = _RECIPE["percentile"],
    weight_range: Annotated[WeightRange, _range(help="How weight ranges are chosen.")] = _RECIPE[
        "weight_range"
    ],
    split_skips: Annotated[
        bool,
        _graph(
            "--split-skips/--no-split-skips",
            help="Split convolutions over a concatenated skip connection in two, each with its own scales.",
        ),
    ] = _RECIPE["split_shortcuts"],
    low_rank: Annotated[
        int,
        _graph(
            help="Rank of a float branch beside each layer with weights and activations below 8 "
            "bits; 0 for none."
        ),
    ] = _RECIPE["low_rank"],
    equalize: Annotated[
        float | None,
        _graph(
            metavar="ALPHA",
            help="SmoothQuant migration strength, 0 to 1, of the layers before attention; off by default.",
        ),
    ] = _RECIPE["equalize"],
    weights: Weights = None,
    calib_images: Annotated[
        int, _calibration(min=1, help="Number of images sampled for calibration.")
    ] = _CALIBRATION.images,
    steps: Steps = str(_CALIBRATION.steps),
    sampler: Sampler = _CALIBRATION.sampler,
    eta: Eta = _CALIBRATION.eta,
    seed: Annotated[
        int, _calibration(help="Random seed of the calibration noise and of the rounding method.")
    ] = _CALIBRATION.seed,
    guidance: Guidance = _CALIBRATION.guidance,
    method: Annotated[
        Method, _rounding_option(help="Weight rounding: to nearest, GPTQ, or AdaRound.")
    ] = _ROUNDING.method,
    bias_correction: Annotated[
        bool,
        _rounding_option(
            help="Correct each layer's bias by its mean output error on the calibration inputs."
        ),
    ] = _ROUNDING.bias_correction,
    samples: Annotated[
        int,
        _rounding_option(
            help="Number of calibration inputs for GPTQ, AdaRound and bias correction; AdaRound "
            "holds out an eighth of them."
        ),
    ] = _ROUNDING.samples,
    damping: Annotated[
        float,
        _rounding_option(help="GPTQ damping, as a fraction of the mean Hessian diagonal."),
    ] = _ROUNDING.gptq.damping,
    act_order: Annotated[
        bool, _rounding_option(help="GPTQ: quantize columns in order of decreasing Hessian diagonal.")
    ] = _ROUNDING.gptq.act_order,
    iterations: Annotated[
        int, _rounding_option(help="Number of AdaRound iterations per block.")
    ] = _ROUNDING.adaround.iterations,
    learning_batch: Annotated[int, _rounding_option(help="AdaRound batch size.")] = _ROUNDING.adaround.batch,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the artifact; CKPT.RECIPE by default.")
    ] = None,
) -> None:
    """Quantize a checkpoint into a target-neutral artifact, such as CKPT.w4a8 or CKPT.w4a8-adaround.

    Calibration samples as `flatq sample` does: choose the sampling options that the quantized model will be
    used with. Options of a method or range that is not selected have no effect.
    """
    recipe = recipe_for_bits(
        bits,
        act_bits,
        granularity="per_channel" if granularity == "per-channel" else "per_tensor",
        symmetric=symmetric,
        edges="float" if first_last == "weights-only" else first_last,
        activation_range=act_range,
        percentile=percentile,
        weight_range=weight_range,
        split_shortcuts=split_skips,
        low_rank=low_rank,
        equalize=equalize,
        attention_bits=attention_bits,
    )

    import flatq

    sampling = sampling_settings(steps, sampler, eta, seed, None, guidance)
    calibration = CalibrationPlan(images=calib_images, **sampling.model_dump())
    with naming_options(batch="learning-batch"):
        rounding = WeightRounding.model_validate(
            {
                "method": method,
                "bias_correction": bias_correction,
                "samples": samples,
                "gptq": {"damping": damping, "act_order": act_order},
                "adaround": {"iterations": iterations, "batch": learning_batch},
            }
        )
    activations = "float" if act_bits == 32 else f"{act_bits}-bit"
    attends = "" if attention_bits == 32 else f", attention's products {attention_bits}-bit"
    note(f"weights at {bits} bits, activations {activations}{attends} (recipe {recipe.name})")
    settings = QuantizeSettings(recipe, rounding, calibration, weights, threads)
    with progress_bar() as bar:
        quantized = flatq.quantize(checkpoint, settings, out, progress=bar, note=note)
    folder = quantized.folder
    note(f"{_done(quantized.manifest)}; `flatq inspect {folder}` shows every decision")
    typer.echo(str(folder))


def _done(manifest: Manifest) -> str:
    """How many layers were quantized, and how many each further option that was asked for has touched."""
    recipe, inputs = manifest.recipe, [d for d in manifest.decisions if d.port == "input"]
    words = [f"{len(manifest.planned)} layers quantized"]
    if recipe.split_shortcuts:
        words.append(f"{sum(d.node.endswith(half_name('', 0)) for d in inputs)} convolutions split")
    if recipe.low_rank:
        words.append(f"{len({branch_of(d.node) for d in inputs} - {None})} float branches")
    if recipe.equalize is not None:
        words.append(f"{sum('; channels equalized' in d.reason for d in inputs)} with channels equalized")
    return ", ".join(words)
