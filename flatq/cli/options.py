"""Options that several commands have, with their help texts, choices and panels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from flatq.errors import UsageError
from flatq.images import Resize
from flatq.sampling_settings import SamplingSettings

__all__ = [
    "SAMPLING",
    "BatchSize",
    "Cache",
    "Confidence",
    "Device",
    "Eta",
    "Features",
    "FeaturesDevice",
    "First",
    "Guidance",
    "Hint",
    "InceptionWeights",
    "Junit",
    "Label",
    "MaxDrift",
    "MaxDriftRel",
    "MinSamples",
    "OnInconclusive",
    "Precision",
    "PrintJson",
    "ResizeChoice",
    "Runtime",
    "RuntimeName",
    "Sampler",
    "Seed",
    "Steps",
    "Threads",
    "Weights",
    "gate_option",
    "images_option",
    "naming_options",
    "output_option",
    "parse_list",
    "runtime_option",
    "sampling_settings",
]

_Number = TypeVar("_Number", int, float)

SAMPLING = SamplingSettings()
"""The defaults of the sampling options."""

sampling_option = partial(typer.Option, rich_help_panel="Sampling")
runtime_option = partial(typer.Option, rich_help_panel="Runtime")
features_option = partial(typer.Option, rich_help_panel="Feature network")
images_option = partial(typer.Option, rich_help_panel="Images")
gate_option = partial(typer.Option, rich_help_panel="Gate")
output_option = partial(typer.Option, rich_help_panel="Output")

RuntimeName = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
_Device = Literal["cpu", "cuda", "tensorrt"]
_Precision = Literal["fp32", "bf16", "fp16"]
_Hint = Literal["latency", "throughput"]
_OnInconclusive = Literal["pass", "fail", "error"]

Steps = Annotated[
    str,
    sampling_option(
        help="Number of sampling steps, or guided-diffusion's ddimN or section counts such as 10,15,20."
    ),
]
Sampler = Annotated[Literal["ancestral", "ddim"], sampling_option(help="Sampler.")]
Eta = Annotated[float, sampling_option(help="DDIM eta; 0 is deterministic.")]
Seed = Annotated[int, sampling_option(help="Random seed of the sampling noise.")]
First = Annotated[int, sampling_option(min=0, help="Index of the first image.")]
Label = Annotated[
    int | None,
    sampling_option(help="Class of all images; by default classes are assigned round-robin by image index."),
]
Guidance = Annotated[
    float, sampling_option(help="Classifier-free guidance scale; 1 is the plain conditional model.")
]
BatchSize = Annotated[int, sampling_option(min=1, help="Number of images sampled at a time.")]
Weights = Annotated[
    Literal["raw", "ema", "swa"] | None,
    typer.Option(
        help="Weights variant of a checkpoint; by default ema if the checkpoint has it, else raw.",
        rich_help_panel="Model",
    ),
]
Threads = Annotated[int | None, runtime_option(min=1, help="Number of CPU threads; all cores by default.")]
Runtime = Annotated[
    RuntimeName | None, runtime_option(help="Runtime; by default the one that each model is made for.")
]
Device = Annotated[
    _Device | None, runtime_option(help="Device; tensorrt selects ONNX Runtime's TensorRT provider.")
]
Precision = Annotated[
    _Precision | None, runtime_option(help="Float precision on OpenVINO; by default OpenVINO chooses it.")
]
Hint = Annotated[_Hint | None, runtime_option(help="OpenVINO performance hint; latency by default.")]
Features = Annotated[
    str | None,
    features_option(
        help="Feature network: inception (the standard FID), or an ONNX file that maps uint8 "
        "NCHW to N x d. Grey 8 x 8 images use the bundled digits48 by default."
    ),
]
InceptionWeights = Annotated[
    Path | None,
    features_option(
        help="Inception weights of torch-fidelity, a .pth file; by default from torch's cache, or downloaded."
    ),
]
FeaturesDevice = Annotated[Literal["cpu", "cuda"], features_option(help="Device of the Inception network.")]
ResizeChoice = Annotated[
    Resize | None,
    images_option("--resize", help="How images of another size are resized; refused by default."),
]
Cache = Annotated[
    bool,
    features_option(
        "--cache/--no-cache",
        help="Keep samples and features in the folder FLATQ_CACHE (~/.cache/flatq) and reuse them.",
    ),
]
Confidence = Annotated[float | None, gate_option(help="Confidence level of the intervals.")]
MaxDrift = Annotated[float | None, gate_option(help="Largest FID drift that passes.")]
MaxDriftRel = Annotated[
    float | None, gate_option(help="Largest FID drift that passes, as a fraction of the float model's FID.")
]
MinSamples = Annotated[
    int | None, gate_option(help="Number of images below which the verdict is inconclusive.")
]
OnInconclusive = Annotated[
    _OnInconclusive, gate_option(help="Exit code when inconclusive: pass = 0, fail = 1, error = 4.")
]
Junit = Annotated[Path | None, output_option(help="File to write the verdicts to, as JUnit XML.")]
PrintJson = Annotated[bool, output_option("--json", help="Print JSON.")]


def sampling_settings(
    steps: str, sampler: str, eta: float, seed: int, label: int | None, guidance: float
) -> SamplingSettings:
    """Sampling settings from options; a `UsageError` names the one that is wrong."""
    given = {"steps": steps, "sampler": sampler, "eta": eta, "seed": seed, "label": label}
    with naming_options():
        return SamplingSettings.model_validate({**given, "guidance": guidance})


@contextmanager
def naming_options(**options: str) -> Iterator[None]:
    """A context in which a setting that pydantic refuses is a `UsageError` that names its option.

    Args:
        options: the option's name where it is not the setting's.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        raise UsageError(
            f"--{options.get(name, name).replace('_', '-')} is not valid",
            expected=first["msg"],
            got=str(first["input"]),
        ) from error


def parse_list(text: str, option: str, kind: type[_Number]) -> list[_Number]:
    """Positive numbers separated by commas.

    Raises:
        UsageError: something else.
    """
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [kind(0)]
    if not all(number > 0 for number in numbers):
        raise UsageError(
            f"{option} is not valid",
            expected="positive numbers separated by commas, such as "
            + ("1,8" if kind is int else "0.999,0.9999"),
            got=text,
        )
    return numbers
