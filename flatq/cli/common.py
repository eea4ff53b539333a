"""What the commands share: options of sampling, progress on stderr, the artifact of the working folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from flatq.errors import UsageError
from flatq.sampler import SamplePlan

if TYPE_CHECKING:
    from flatq.images import Resize

__all__ = [
    "PLAN",
    "BatchSize",
    "Cache",
    "Device",
    "Eta",
    "Features",
    "FeaturesDevice",
    "Guidance",
    "Hint",
    "InceptionWeights",
    "Label",
    "Precision",
    "Report",
    "ResizeChoice",
    "Runtime",
    "Sampler",
    "Seed",
    "Steps",
    "Threads",
    "Weights",
    "make_plan",
    "note",
    "one_artifact",
    "parse_resize",
    "progress_bar",
]

Steps = Annotated[
    str,
    typer.Option(
        help="Number of sampling steps, or guided-diffusion's ddimN (DDIM's stride) or section counts such "
        "as 10,15,20."
    ),
]
Sampler = Annotated[str, typer.Option(help="ancestral or ddim.")]
Eta = Annotated[float, typer.Option(help="Of ddim.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Label = Annotated[
    int | None, typer.Option(help="Class of all images; by default the classes take turns by image index.")
]
Guidance = Annotated[
    float, typer.Option(help="Classifier-free guidance: null + GUIDANCE x (labelled - null).")
]
Weights = Annotated[
    str | None, typer.Option(help="Of a checkpoint: raw, ema or swa; ema if there, else raw.")
]
Features = Annotated[
    str | None,
    typer.Option(
        help="inception (the standard FID), or an ONNX feature network: uint8 NCHW in, N x d out. "
        "Grey 8 x 8 images have a network of their own, digits48."
    ),
]
InceptionWeights = Annotated[
    Path | None,
    typer.Option(
        help="torch-fidelity's .pth file; by default torch's cache is looked in, else it is downloaded."
    ),
]
FeaturesDevice = Annotated[str, typer.Option(help="Of the Inception network: cpu or cuda.")]
ResizeChoice = Annotated[
    str | None,
    typer.Option(
        "--resize", help="How images of another size get to it: center-crop-adm, center-crop or stretch."
    ),
]
Cache = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Keep the reference's features in FLATQ_CACHE (~/.cache/flatq)."),
]
BatchSize = Annotated[int, typer.Option(help="Images at a time.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")]
Runtime = Annotated[
    str | None,
    typer.Option(help="torch, onnxruntime, openvino or tensorrt; each model has a default."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, or tensorrt for ONNX Runtime's TensorRT provider.")
]
Precision = Annotated[
    str | None, typer.Option(help="Of OpenVINO's floats: fp32, bf16 or fp16; its own choice by default.")
]
Hint = Annotated[str | None, typer.Option(help="Of OpenVINO: latency (the default) or throughput.")]


PLAN = SamplePlan()
"""The defaults of the sampling options."""


class Report(Protocol):
    """Called with (what, done, total)."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress bar for each named stage; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield report


def parse_resize(choice: str | None) -> Resize | None:
    """The named resize; a `UsageError` where there is none of that name."""
    from flatq.images import RESIZES

    found = next((name for name in RESIZES if name == choice), None)
    if choice is not None and found is None:
        raise UsageError("--resize is not valid", expected="; ".join(RESIZES), got=choice)
    return found


def one_artifact(path: Path | None) -> Path:
    """The path given, or the one artifact of the working folder.

    Raises:
        UsageError: there is none, or there are several (they are listed).
    """
    if path is not None:
        return path
    from flatq.deployment import MANIFEST
    from flatq.models import kind_of

    found = [
        folder.parent
        for folder in sorted(Path().glob(f"*/{MANIFEST}"))
        if kind_of(folder.parent) == "artifact"
    ]
    if len(found) != 1:
        raise UsageError(
            "which artifact?",
            expected="exactly one artifact in the working folder, or its path as the argument",
            got=", ".join(map(str, found)) or "none",
            next_step="name one" if found else "make one with `flatq quantize`",
        )
    return found[0]


def make_plan(
    steps: str, sampler: str, eta: float, seed: int, label: int | None, guidance: float
) -> SamplePlan:
    """A sampling plan from options; a `UsageError` names the one that is wrong."""
    from pydantic import ValidationError

    try:
        return SamplePlan.model_validate(
            {
                "steps": steps,
                "sampler": sampler,
                "eta": eta,
                "seed": seed,
                "label": label,
                "guidance": guidance,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--{first['loc'][0]} is not valid", expected=first["msg"], got=str(first["input"])
        ) from error
