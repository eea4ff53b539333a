"""The whole story on embedded data: train, quantize, export, sample on ONNX Runtime, compare, show.

It reports what it finds. A toy of this size (8x8 digits, one training run for each method) proves nothing.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import flatq
from flatq.assessment import EvaluateSettings
from flatq.backends import RuntimeSettings
from flatq.calib import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.export.settings import ExportSettings
from flatq.images import load_images
from flatq.progress import Progress
from flatq.quantize.methods import WeightRounding
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import recipe_for_bits
from flatq.report.findings import MethodResult, findings
from flatq.report.html.demo import DemoMethod, write_demo_page
from flatq.report.html.page_models import PageSource
from flatq.report.model import Report
from flatq.report.wording import cautions, scale
from flatq.runtime.base import default_threads
from flatq.sampling_settings import SamplingSettings
from flatq.train.config import TrainConfig

__all__ = ["Demo", "run_demo"]

"""Called with (stage, done, total)."""

_METHODS = {
    "adm": "ADM is plain training by noise prediction.",
    "sam": "SAM (sharpness-aware minimization) takes each gradient at the worst nearby weights, to end in a "
    "flatter minimum.",
}
_NETWORK = {"channels": (16, 32), "lr": 3e-3}
"""Measured FID of ADM: 4.4 after 200 steps, 2.8 after 400, 2.1 after 550. Patches of 2 pixels and a rate of
1e-3 give 8.5 after 300 steps and 3.8 after 1,000, at 0.7 times the time for a step."""
_CALIBRATION = CalibrationPlan(images=16, steps=10)
_SCHEMES = {
    "W8A8": QuantizeSettings(recipe_for_bits(8)),
    "W4A8": QuantizeSettings(recipe_for_bits(4)),
    "W4A4 plain": QuantizeSettings(
        recipe_for_bits(4, 4, activation_range="minmax", edges="8"), WeightRounding(method="rtn")
    ),
}
_SHOWN = 24


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


def run_demo(out: Path, progress: Progress, *, steps: int, images: int, threads: int | None = None) -> Demo:
    """Run the demo in a new folder; runs, artifacts, reports and the page `index.html` stay there.

    The methods run side by side in processes of their own: most of quantizing and exporting a network of this
    size uses one core only.

    Args:
        steps: of the training, for each method.
        images: sampled for each model.
        threads: CPU threads in all, all cores by default.

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
    threads = default_threads() if threads is None else threads
    workers = min(threads, len(_METHODS))
    training = {"data": "digits:train", "steps": steps, "threads": threads // workers, **_NETWORK}
    configs = [TrainConfig.model_validate({"method": method, **training}) for method in _METHODS]
    tasks = [_Task(config, _CALIBRATION, images, out / config.method) for config in configs]
    methods = _run_all(tasks, workers, progress)
    results = tuple(result for method in methods for result in method.results)
    sentences = tuple(findings(results, "SAM", "ADM"))
    notes = _notes(methods[0].source.report)
    page = out / "index.html"
    write_demo_page(page, methods, sentences, notes, load_images("digits:train").pixels[:_SHOWN])
    return Demo(results, sentences, notes, page)


@dataclass(frozen=True)
class _Task:
    """One method of training, from its first step to its report."""

    config: TrainConfig
    calibration: CalibrationPlan
    images: int
    folder: Path


def _run_all(tasks: list[_Task], workers: int, progress: Progress) -> list[DemoMethod]:
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, _send_progress_to, (messages,)) as pool:
        running = [pool.submit(_run_method, task) for task in tasks]
        waiting = set(running)
        while waiting:
            waiting = wait(waiting, timeout=0.2).not_done
            while not messages.empty():
                progress(*messages.get())
        return [done.result() for done in running]


_messages: SimpleQueue[tuple[str, int, int]]
"""Of a worker: progress for the process that shows it."""


def _send_progress_to(messages: SimpleQueue[tuple[str, int, int]]) -> None:
    global _messages
    _messages = messages


def _run_method(task: _Task) -> DemoMethod:
    method, steps, threads = task.config.method, task.config.steps, task.config.threads
    name = method.upper()

    def progress(stage: str, done: int, total: int) -> None:
        _messages.put((f"{name}: {stage}", done, total))

    checkpoint = flatq.train(
        task.config, task.folder, progress=lambda step, _: progress("train", step, steps)
    )
    stage, artifacts = "quantize and export", []
    for number, (bits, scheme) in enumerate(_SCHEMES.items()):
        progress(stage, number, len(_SCHEMES))
        artifact = task.folder / bits.lower().replace(" ", "-")
        settings = replace(scheme, calibration=task.calibration, weights="ema", threads=threads)
        quantized = flatq.quantize(checkpoint, settings, artifact)
        flatq.export(quantized, ExportSettings(verify=False, threads=threads))
        artifacts.append(artifact)
    progress(stage, len(_SCHEMES), len(_SCHEMES))
    evaluation = EvaluateSettings(
        models=tuple(artifacts),
        baseline=checkpoint.source,
        data="digits",
        out=task.folder / "eval",
        sampling=SamplingSettings(steps=20),
        images=task.images,
        runtime=RuntimeSettings(threads=threads),
    )
    report = flatq.evaluate(
        evaluation, progress=lambda what, done, total: progress(f"evaluate ({what})", done, total)
    )
    results = [
        MethodResult(name, "EMA", bits, entry) for bits, entry in zip(_SCHEMES, report.models, strict=True)
    ]
    return DemoMethod(
        name, _METHODS[method], _training(checkpoint), PageSource(report, evaluation.out), results
    )


def _training(checkpoint: Checkpoint) -> str:
    about = checkpoint.provenance
    parameters = sum(value.numel() for value in checkpoint.weights["ema"].values())
    return (
        f"{parameters:,} parameters, {about['steps_done']:,} steps, {about['gradient_passes']:,} gradient "
        "passes. The moving average (EMA) of the weights is quantized."
    )


def _notes(report: Report) -> tuple[str, ...]:
    return (
        "W4A8 means 4-bit weights and 8-bit activations: weights are rounded by GPTQ, ranges of activations "
        "have the least squared error. Plain rounds both to nearest over the full range, the first and last "
        "layer to 8 bits.",
        "One training run for each method: the intervals cover the sampling noise only, and training seeds "
        "differ by more. Nothing about SAM is confirmed or refuted here.",
        "Both methods took the same number of steps, but a step of SAM takes two gradient passes.",
        f"FIDs are in the features of {report.extractor.name}. {scale(report)}",
        *cautions(report),
        "Milliseconds per step are a by-product of sampling, with both methods at work; flatq bench measures "
        "speed.",
        "To save time, the layers of the exports were not compared with PyTorch; flatq export does that.",
    )
