"""The ladder: a drift as export, quantization and kernel error, each with its interval.

Stage A is the float model in torch, B its float export on the runtime, C the target's lowered graph in torch,
D that graph on the runtime; all sampled from the same noise. A and D are what every evaluation samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flatq.backends import RuntimeSettings, target_of
from flatq.deployment import FloatPrecision, read_deployment
from flatq.errors import UsageError
from flatq.evaluate.drift import Contrast, fid_contrast
from flatq.evaluate.frechet import FrechetSide
from flatq.evaluate.moments import Reference
from flatq.evaluate.reference import MeasuredReference
from flatq.evaluate.samples import SampleSet, Sampling
from flatq.models import deployment_folder, kind_of, open_model

__all__ = ["ERRORS", "Ladder", "MiddleStages", "Stage", "check_ladder", "climb"]

Stage = Literal["A", "B", "C", "D"]

ERRORS: dict[str, dict[str, float]] = {
    "export": {"B": 1.0, "A": -1.0},
    "quantization": {"C": 1.0, "A": -1.0},
    "kernel": {"D": 1.0, "C": -1.0, "B": -1.0, "A": 1.0},
    "total": {"D": 1.0, "A": -1.0},
}
"""Weights of the stages' FIDs; the first three add up to the total."""


@dataclass(frozen=True)
class Ladder:
    """fids: the plug-in FID of each stage. runtimes: what each ran on. The errors: contrasts of `ERRORS`.
    not_finite: the stages of which some images were not finite, and count as mid-grey."""

    fids: dict[Stage, float]
    runtimes: dict[Stage, dict[str, Any]]
    export: Contrast
    quantization: Contrast
    kernel: Contrast
    total: Contrast
    not_finite: tuple[Stage, ...] = ()


def climb(
    sides: Mapping[Stage, FrechetSide],
    runtimes: Mapping[Stage, dict[str, Any]],
    reference: Reference,
    confidence: float = 0.95,
    not_finite: tuple[Stage, ...] = (),
) -> Ladder:
    """The ladder of all four stages' samples, row i of each from the same noise.

    Raises:
        DataError: a stage is missing, or has another number of samples.
    """
    named = {str(stage): side for stage, side in sides.items()}
    return Ladder(
        fids={stage: side.distance for stage, side in sorted(sides.items())},
        runtimes=dict(runtimes),
        not_finite=not_finite,
        **{name: fid_contrast(named, weights, reference, confidence) for name, weights in ERRORS.items()},
    )


def check_ladder(
    baseline: Path, baseline_runtime: RuntimeSettings, models: tuple[Path, ...], runtime: RuntimeSettings
) -> None:
    """Refuse what has no ladder, before anything is sampled.

    Raises:
        UsageError: a baseline that is no checkpoint in torch, a model that is no artifact, or runs in torch.
    """
    if kind_of(baseline) != "checkpoint" or baseline_runtime.runtime not in (None, "torch"):
        raise UsageError(
            "the ladder starts at the float model in torch",
            expected="a checkpoint as the baseline, in torch",
            got=f"{baseline}, on {baseline_runtime.runtime or 'its default'}",
        )
    for path in models:
        if kind_of(path) != "artifact" or runtime.runtime == "torch":
            raise UsageError(
                f"{path} has no ladder",
                expected="an artifact on a deployment runtime: its graph runs in torch too",
                got=f"a {kind_of(path)}" + (" in torch" if runtime.runtime == "torch" else ""),
                next_step="name the artifact that `flatq quantize` wrote, or leave --ladder out",
            )


class MiddleStages:
    """Samples of stages B and C of several artifacts over one float model."""

    def __init__(
        self, checkpoint: Path, a: SampleSet, sampling: Sampling, runtime: RuntimeSettings, stack: ExitStack
    ) -> None:
        """Args:
        checkpoint, a: the float model, and its samples.
        sampling: how the stages are sampled.
        runtime: how the artifacts' stage D runs.
        stack: closes the float exports.
        """
        self._checkpoint, self._a, self._sampling, self._runtime = checkpoint, a, sampling, runtime
        self._target, self._stack = target_of(runtime), stack
        self._exports: dict[FloatPrecision, SampleSet] = {}

    def ladder(
        self, artifact: Path, d: SampleSet, reference: MeasuredReference | None, confidence: float
    ) -> Ladder | None:
        """Of the images of d; None without a reference, in all processes but the first.

        Raises:
            ModelError, MissingRuntimeError: the float model cannot be exported for the target.
        """
        b = self._exported(read_deployment(deployment_folder(artifact, self._target))[0].float_precision)
        b.grow(d.n)
        in_torch = RuntimeSettings("torch", threads=self._runtime.threads)
        with open_model(artifact, in_torch, lowered_for=self._target) as model:
            c = SampleSet(model, self._sampling)
            c.grow(d.n)
        stages: dict[Stage, SampleSet] = {"A": self._a, "B": b, "C": c, "D": d}
        if reference is None:
            return None
        sides = {name: stage.features(d.n, reference).frechet for name, stage in stages.items()}
        identities = {name: stage.identity for name, stage in stages.items()}
        not_finite = tuple(name for name, stage in stages.items() if stage.not_finite)
        return climb(sides, identities, reference.statistics, confidence, not_finite)

    def _exported(self, precision: FloatPrecision) -> SampleSet:
        if precision not in self._exports:
            from flatq.checkpoint import load_checkpoint
            from flatq.export.deploy import export_checkpoint

            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "float"
            export_checkpoint(
                load_checkpoint(self._checkpoint),
                self._target,
                folder,
                average=self._a.model.weights,
                float_precision=precision,
            )
            model = self._stack.enter_context(open_model(folder, self._runtime))
            self._exports[precision] = SampleSet(model, self._sampling)
        return self._exports[precision]
