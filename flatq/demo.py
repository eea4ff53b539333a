"""The whole story on embedded data: train, quantize, export, sample on ONNX Runtime, compare, show.

It reports what it finds. A toy of this size (8x8 digits, one training run for each method) proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flatq.assess import Assessment, assess
from flatq.calib import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.export import export_artifact
from flatq.images import load_images
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import Lowered
from flatq.quantize.methods import USUAL, WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS, QuantRecipe, recipe_for_bits
from flatq.report.findings import MethodResult, findings
from flatq.report.html.demo import DemoMethod, write_demo_page
from flatq.report.html.shown import Source
from flatq.report.model import Report
from flatq.report.wording import cautions, scale
from flatq.sampler import SamplePlan
from flatq.train import TrainConfig, train
from flatq.verify.recorded import verify_deployment

__all__ = ["PAGE", "Demo", "run_demo"]

Progress = Callable[[str, int, int], None]

PAGE = "index.html"
_DATA = "digits:train"
_WEIGHTS = "ema"
_METHODS = {
    "adm": "ADM is plain training by noise prediction.",
    "sam": "SAM (sharpness-aware minimization) takes each gradient at the worst nearby weights, to end in a flatter minimum.",
}
_SETTINGS = {"channels": (16, 32), "lr": 3e-3, "rho": 0.1}
_PLAN = SamplePlan(steps=20)
_SHOWN = 24


@dataclass(frozen=True)
class _Scheme:
    """bits: its name on the page. folder: of the artifact."""

    bits: str
    folder: str
    recipe: QuantRecipe
    rounding: WeightRounding


_SCHEMES = (
    _Scheme("W8A8", "w8a8", PRESETS["w8a8"], WeightRounding(method=USUAL)),
    _Scheme("W4A8", "w4a8", PRESETS["w4a8"], WeightRounding(method=USUAL)),
    _Scheme(
        "W4A4 plain",
        "w4a4-plain",
        recipe_for_bits(4, 4, activation_range="minmax", edges="8"),
        WeightRounding(method="rtn"),
    ),
)


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        results: the rows of the table.
        sentences: the findings, from the rows alone.
        notes: what the names in the table mean, what the findings rest on, and what was left out.
        page: the file that shows all of it.
    """

    results: tuple[MethodResult, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    page: Path


def run_demo(
    out: Path,
    progress: Progress,
    *,
    steps: int = 400,
    images: int = 1000,
    threads: int | None = None,
    extractor: str | None = None,
) -> Demo:
    """Run the demo in a new folder; runs, artifacts, reports and the page `index.html` stay there.

    Args:
        steps: of the training, for each method.
        images: sampled for each model.
        extractor: an ONNX feature network in place of the bundled one.

    Raises:
        UsageError: the folder exists.
    """
    if out.exists():
        raise UsageError(
            f"{out} already exists",
            expected="a new folder for the demo",
            got="something that would be overwritten",
            next_step="remove it, or choose another with -o",
        )
    methods = [_run_method(method, out, steps, images, threads, extractor, progress) for method in _METHODS]
    results = tuple(result for method in methods for result in method.results)
    sentences = tuple(findings(results, "SAM", "ADM"))
    notes = _notes(methods[0].source.report)
    write_demo_page(out / PAGE, methods, sentences, notes, load_images(_DATA).pixels[:_SHOWN])
    return Demo(results, sentences, notes, out / PAGE)


def _notes(report: Report) -> tuple[str, ...]:
    return (
        "W4A8 means 4-bit weights and 8-bit activations. Weights are rounded by GPTQ, activations to the range "
        "of least error. Plain rounds both to the nearest value of the full range, the first and last layer "
        "included.",
        "One training run for each method: the intervals cover the sampling noise only, and training seeds "
        "differ by more. Nothing about SAM is confirmed or refuted here.",
        "Both methods took the same number of steps, but a step of SAM takes two gradient passes: it had twice "
        "the compute.",
        f"FIDs are in the features of {report.extractor.name}. {scale(report)}",
        *cautions(report),
        "To save time, the exports were not compared with torch layer by layer; `flatq export` does that.",
    )


def _run_method(
    method: str,
    out: Path,
    steps: int,
    images: int,
    threads: int | None,
    extractor: str | None,
    progress: Progress,
) -> DemoMethod:
    name = method.upper()
    config = TrainConfig.model_validate(
        {"data": _DATA, "method": method, "steps": steps, "threads": threads, **_SETTINGS}
    )
    checkpoint = train(
        config, out / method, progress=lambda step, _: progress(f"{name}: training", step, steps)
    )
    paths = []
    for number, scheme in enumerate(_SCHEMES):
        progress(f"{name}: quantizing and exporting", number, len(_SCHEMES))
        paths.append(_deploy(checkpoint, scheme, out / method / scheme.folder, threads))
    progress(f"{name}: quantizing and exporting", len(_SCHEMES), len(_SCHEMES))
    assert checkpoint.source is not None
    task = Assessment(
        models=tuple(paths),
        baseline=checkpoint.source,
        data="digits",
        out=out / method / "eval",
        plan=_PLAN,
        images=images,
        features=extractor,
        threads=threads,
    )
    report = assess(task, lambda what, done, total: progress(f"{name}: {what}", done, total))
    results = [
        MethodResult(name, _WEIGHTS.upper(), scheme.bits, entry)
        for scheme, entry in zip(_SCHEMES, report.models, strict=True)
    ]
    return DemoMethod(name, _METHODS[method], _training(checkpoint), Source(report, task.out), results)


def _deploy(checkpoint: Checkpoint, scheme: _Scheme, folder: Path, threads: int | None) -> Path:
    artifact = quantize_checkpoint(
        checkpoint,
        scheme.recipe,
        average=_WEIGHTS,
        calibration=CalibrationPlan(images=16, steps=10),
        threads=threads,
        rounding=scheme.rounding,
    )
    write_artifact(artifact, folder)

    def audit(written: Path, artifact: Artifact, lowered: Lowered) -> None:
        verify_deployment(artifact, written, lowered, parity=False, threads=threads)

    export_artifact(folder, "onnxruntime", folder / "onnxruntime", check=audit)
    return folder


def _training(checkpoint: Checkpoint) -> str:
    about = checkpoint.provenance
    parameters = sum(value.numel() for value in checkpoint.weights[_WEIGHTS].values())
    return (
        f"{parameters:,} parameters, {about['steps_done']:,} steps, {about['gradient_passes']:,} gradient "
        f"passes; the moving average (EMA) of the weights is what is quantized."
    )
