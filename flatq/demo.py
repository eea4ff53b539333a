"""The whole story on embedded data: train, quantize, export, sample on ONNX Runtime, compare.

It prints what it finds. A toy of this size (8x8 digits, two training runs) confirms or refutes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import flatq
from flatq.assessment import EvaluateSettings
from flatq.backends import RuntimeSettings
from flatq.calib import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.evaluate.drift import Drift
from flatq.export.settings import ExportSettings
from flatq.quantize.settings import QuantizeSettings
from flatq.recipe import PRESETS
from flatq.report.grids import save_labelled_rows
from flatq.report.model import ModelEntry
from flatq.sampler import SamplePlan
from flatq.train.config import TrainConfig

__all__ = ["DemoRow", "conclusion", "run_demo"]

Progress = Callable[[str, int, int], None]

_METHODS = ("adm", "sam")
_AVERAGES = ("raw", "ema")
_RECIPES = ("w8a8", "w4a8")
_PLAN = SamplePlan(steps=20)
_SHOWN = 16


@dataclass(frozen=True)
class DemoRow:
    """One row of the table: a method, an average, and what the evaluation said of one precision."""

    method: str
    average: str
    entry: ModelEntry


def run_demo(
    out: Path,
    progress: Progress,
    *,
    steps: int = 1000,
    images: int = 1000,
    threads: int | None = None,
    extractor: str | None = None,
) -> list[DemoRow]:
    """Run the demo in a new folder; the reports, models and the picture `demo.png` stay there.

    Args:
        steps: of the training, for each method.
        images: sampled for each model.

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
    rows = []
    pictures: list[tuple[str, NDArray[np.uint8]]] = []
    for method in _METHODS:
        label = method.upper()

        def trained(step: int, loss: float | None, label: str = label) -> None:
            progress(f"{label}: training", step, steps)

        config = TrainConfig.model_validate(
            {
                "data": "digits:train",
                "method": method,
                "rho": 0.1,
                "steps": steps,
                "channels": (16, 32),
                "patch_size": 2,
                "threads": threads,
            }
        )
        checkpoint = flatq.train(config, out / method, progress=trained)
        for average in _AVERAGES:
            folder = out / method / average
            paths = [
                _deploy(checkpoint, average, recipe, folder / f"digits.{recipe}", threads, progress)
                for recipe in _RECIPES
            ]
            assert checkpoint.source is not None
            task = EvaluateSettings(
                models=tuple(paths),
                baseline=checkpoint.source,
                data="digits",
                out=folder / "eval",
                plan=_PLAN,
                images=images,
                features=extractor,
                runtime=RuntimeSettings(threads=threads),
            )
            prefix = f"{label} {average}"
            report = flatq.evaluate(
                task,
                progress=lambda what, done, total, p=prefix: progress(f"{p}: {what}", done, total),  # type: ignore[misc]
            )
            rows += [DemoRow(method, average, entry) for entry in report.models]
            for name, path, weights in (
                ("float", checkpoint.source, average),
                *((p.suffix[1:], p, None) for p in paths),
            ):
                pictures.append((f"{prefix} {name}", _few(path, weights, threads)))
    save_labelled_rows(out / "demo.png", pictures)
    return rows


def _deploy(
    checkpoint: Checkpoint, average: str, recipe: str, folder: Path, threads: int | None, progress: Progress
) -> Path:
    what = f"{str(checkpoint.provenance['method']).upper()} {average}: {recipe}, quantize and export"
    progress(what, 0, 2)
    settings = QuantizeSettings(
        PRESETS[recipe], calibration=CalibrationPlan(images=16), weights=average, threads=threads
    )
    quantized = flatq.quantize(checkpoint, settings, folder)
    progress(what, 1, 2)
    flatq.export(quantized, ExportSettings(verify=False, threads=threads))
    progress(what, 2, 2)
    return folder


def _few(path: Path, average: str | None, threads: int | None) -> NDArray[np.uint8]:
    with flatq.load(path, weights=average, runtime=RuntimeSettings(threads=threads)) as model:
        return flatq.sample(model, _SHOWN, _PLAN).pixels


def conclusion(rows: list[DemoRow]) -> list[str]:
    """What the table says of SAM against ADM, in plain sentences."""
    lines = []
    for average in _AVERAGES:
        for recipe in _RECIPES:
            found = {
                row.method: row.entry.drift
                for row in rows
                if (row.average, row.entry.precision) == (average, recipe)
            }
            adm, sam = found.get("adm"), found.get("sam")
            head = f"{recipe} {average}:"
            if adm is None or sam is None or adm.corrected is None or sam.corrected is None:
                lines.append(f"{head} no comparison, a drift has no interval")
                continue
            both = f"drift {adm.corrected:+.3f} (ADM) and {sam.corrected:+.3f} (SAM)"
            if _above(adm, sam):
                lines.append(f"{head} {both}: SAM drifts less")
            elif _above(sam, adm):
                lines.append(f"{head} {both}: SAM drifts more")
            else:
                lines.append(f"{head} {both}: the intervals overlap, SAM is not ahead")
    lines.append(
        "One training seed for each method: the intervals cover sampling noise only, and the spread between "
        "training seeds is larger. Nothing is confirmed or refuted here."
    )
    return lines


def _above(one: Drift, other: Drift) -> bool:
    """Whether the interval of one lies wholly above the other's."""
    return one.low is not None and other.high is not None and one.low > other.high
