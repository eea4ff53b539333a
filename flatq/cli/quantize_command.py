"""`flatq quantize`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic import ValidationError

from flatq.calib import CalibrationPlan
from flatq.cli.common import (
    Eta,
    Guidance,
    Sampler,
    Steps,
    Threads,
    Weights,
    make_plan,
    note,
    progress_bar,
)
from flatq.errors import UsageError
from flatq.quantize.methods import WeightRounding
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import branch_of, half_name, recipe_for_bits

if TYPE_CHECKING:
    from flatq.quantize.artifact import Manifest
    from flatq.recipe import ActivationRange, Edges, Granularity, WeightRange

__all__ = ["command"]

_CALIBRATION, _ROUNDING = QuantizeSettings.calibration, QuantizeSettings.rounding
_RECIPE: dict[str, Any] = {
    name: option.default for name, option in inspect.signature(recipe_for_bits).parameters.items()
}
"""The defaults."""


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint, .pt.")],
    bits: Annotated[
        int,
        typer.Option(help="Weight bit width, 2 to 8; 7 for OpenVINO on CPUs without VNNI, where 8 saturate."),
    ] = _RECIPE["bits"],
    act_bits: Annotated[
        int,
        typer.Option(
            help="Width of the activations, 4 to 8; 32 leaves them in float, and what is said of their "
            "integers, --split-shortcuts and --equalize without effect."
        ),
    ] = _RECIPE["activation_bits"],
    attention_bits: Annotated[
        int,
        typer.Option(help="Width of the factors of attention's two products, 4 to 8, or 32 for float."),
    ] = _RECIPE["attention_bits"],
    granularity: Annotated[
        str, typer.Option(help="Of the weights' scales: per-channel or per-tensor.")
    ] = _RECIPE["granularity"].replace("_", "-"),
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--affine", help="Activations with zero point 0, or with their own.")
    ] = _RECIPE["symmetric"],
    edges: Annotated[
        str,
        typer.Option(
            help="First and last layer: float (8-bit weights; the image and the prediction stay in float), "
            "8 (8-bit weights and activations) or same (as the other layers)."
        ),
    ] = _RECIPE["edges"],
    act_range: Annotated[
        str, typer.Option(help="Which range activations' scales cover: minmax, percentile or mse.")
    ] = _RECIPE["activation_range"],
    percentile: Annotated[
        float,
        typer.Option(
            help="With --act-range percentile: how many of 100 values lie below the range's upper end, and "
            "above its lower."
        ),
    ] = _RECIPE["percentile"],
    weight_range: Annotated[
        str, typer.Option(help="Which range weights' scales cover: minmax or mse.")
    ] = _RECIPE["weight_range"],
    split_shortcuts: Annotated[
        bool,
        typer.Option(
            "--split-shortcuts/--no-split-shortcuts",
            help="A convolution that reads two joined tensors becomes one for each, with scales of its own.",
        ),
    ] = _RECIPE["split_shortcuts"],
    low_rank: Annotated[
        int,
        typer.Option(
            help="Rank of a float branch beside each layer whose weights and activations both have less than "
            "8 bits; 0 for none."
        ),
    ] = _RECIPE["low_rank"],
    equalize: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Even out outlying channels in front of attention, exactly; of their size the weights take "
            "ALPHA, 0 to 1, such as 0.5.",
        ),
    ] = _RECIPE["equalize"],
    weights: Weights = None,
    calib_images: Annotated[
        int, typer.Option(min=1, help="Images to sample for calibration.")
    ] = _CALIBRATION.images,
    steps: Steps = str(_CALIBRATION.steps),
    sampler: Sampler = _CALIBRATION.sampler,
    eta: Eta = _CALIBRATION.eta,
    seed: Annotated[
        int, typer.Option(help="Of the calibration noise, and of what a method draws.")
    ] = _CALIBRATION.seed,
    guidance: Guidance = _CALIBRATION.guidance,
    method: Annotated[
        str, typer.Option(help="How weights are rounded: rtn (to nearest), gptq or adaround (learned).")
    ] = _ROUNDING.method,
    bias_correction: Annotated[
        bool, typer.Option(help="Add each layer's mean output error on the calibration inputs to its bias.")
    ] = _ROUNDING.bias_correction,
    samples: Annotated[
        int,
        typer.Option(
            help="Calibration inputs that gptq, adaround and --bias-correction look at; adaround holds an "
            "eighth of them out to judge what it learned."
        ),
    ] = _ROUNDING.samples,
    damping: Annotated[
        float,
        typer.Option(
            help="GPTQ damping, as a fraction of the mean Hessian diagonal; AdaRound starts from GPTQ, too."
        ),
    ] = _ROUNDING.gptq.damping,
    act_order: Annotated[
        bool, typer.Option(help="Of gptq: columns that read the largest inputs first.")
    ] = _ROUNDING.gptq.act_order,
    iterations: Annotated[
        int, typer.Option(help="Of adaround, for each block.")
    ] = _ROUNDING.adaround.iterations,
    learning_batch: Annotated[
        int, typer.Option(help="Of adaround: inputs in an iteration.")
    ] = _ROUNDING.adaround.batch,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the artifact.")] = None,
) -> None:
    """Quantize a checkpoint into a target-neutral artifact (CKPT.w4a8, CKPT.w4a8-adaround).

    Calibration samples as `flatq sample` does, with --steps, --sampler, --eta, --seed and --guidance: choose
    those that the quantized model will be sampled with. Settings of a method or a range that is not asked for
    have no effect.
    """
    recipe = recipe_for_bits(
        bits,
        act_bits,
        granularity=cast("Granularity", granularity.replace("-", "_")),
        symmetric=symmetric,
        edges=cast("Edges", edges),
        activation_range=cast("ActivationRange", act_range),
        percentile=percentile,
        weight_range=cast("WeightRange", weight_range),
        split_shortcuts=split_shortcuts,
        low_rank=low_rank,
        equalize=equalize,
        attention_bits=attention_bits,
    )

    import flatq

    plan = make_plan(steps, sampler, eta, seed, None, guidance)
    calibration = CalibrationPlan(images=calib_images, **plan.model_dump())
    rounding = _rounding(
        {"method": method, "bias_correction": bias_correction, "samples": samples},
        {"damping": damping, "act_order": act_order},
        {"iterations": iterations, "batch": learning_batch},
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


def _rounding(general: dict[str, Any], gptq: dict[str, Any], adaround: dict[str, Any]) -> WeightRounding:
    """The options as settings; a `UsageError` names the one that is wrong."""
    try:
        return WeightRounding.model_validate({**general, "gptq": gptq, "adaround": adaround})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-")
        option = {"batch": "learning-batch"}.get(name, name)
        raise UsageError(
            f"--{option} is not valid", expected=first["msg"], got=str(first["input"])
        ) from error
