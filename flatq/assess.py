"""One evaluation from end to end: sample every model on the same noise, compare, judge, write the report."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ArtifactError, DataError, UsageError
from flatq.evaluate.compare import Comparison, Referee, compare, open_referee
from flatq.evaluate.features import open_features
from flatq.evaluate.gate import decide
from flatq.images import load_images, to_uint8
from flatq.models import Model, kind_of, open_model
from flatq.report.grids import save_pair_grid
from flatq.report.model import (
    Baseline,
    Environment,
    Extractor,
    ModelEntry,
    ReferenceEntry,
    Report,
    write_report,
)
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime
from flatq.sampler import SamplePlan, sample

__all__ = ["Assessment", "assess", "environment"]

Progress = Callable[[str, int, int], None]
"""Called with (what is sampled, images times steps done, total)."""

_GRID_IMAGES = 32


@dataclass(frozen=True)
class Assessment:
    """What to evaluate and how.

    Attributes:
        models: artifacts, deployments or checkpoints.
        baseline: the float checkpoint they are compared with.
        data: images that the distances are taken to, as `flatq.images.load_images` names them.
        out: folder of the report.
        plan: how images are drawn.
        images: how many, from index `first`.
        features: an ONNX feature network, or None for the bundled one.
        runtime: of the models; None takes each kind's default.
        device, precision, hint: of the models, as `flatq.backends.Settings`.
        baseline_runtime: of the baseline, torch by default.
        average: weights of the baseline; None takes those that the models were made from.
        max_drift: the gate's tolerance; None leaves out the verdict.
    """

    models: tuple[Path, ...]
    baseline: Path
    data: str
    out: Path
    plan: SamplePlan = field(default_factory=SamplePlan)
    images: int = 1000
    first: int = 0
    batch_size: int = 64
    features: str | None = None
    runtime: str | None = None
    device: str | None = None
    precision: str | None = None
    hint: str | None = None
    baseline_runtime: str | None = None
    average: str | None = None
    threads: int | None = None
    rounding: Literal["round", "truncate"] = "round"
    confidence: float = 0.95
    max_drift: float | None = None


class _Timed:
    """A runtime that notes how long each call of a full batch takes."""

    def __init__(self, runtime: Runtime, batch_size: int) -> None:
        self._runtime, self._batch_size = runtime, batch_size
        self.seconds: list[float] = []

    @property
    def identity(self) -> dict[str, Any]:
        return self._runtime.identity

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        start = time.perf_counter()
        output = self._runtime(x, t, cond)
        if len(x) == self._batch_size:
            self.seconds.append(time.perf_counter() - start)
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runtime.__exit__(kind, error, trace)


@dataclass(frozen=True)
class _Sampled:
    model: Model
    images: NDArray[np.float32]
    identity: dict[str, Any]
    latency_ms: float | None


def assess(task: Assessment, progress: Progress | None = None) -> Report:
    """Sample, compare and write `report.json`, `report.md`, the grids and the sidecars.

    Raises:
        InputError: whatever of the paths, data, features and options does not fit together.
        MissingRuntimeError: a runtime is not installed.
    """
    if task.images < 2:
        raise UsageError("too few images", expected="at least 2", got=str(task.images), next_step="raise -n")
    if not task.models:
        raise UsageError("no model to evaluate", expected="at least one artifact", got="none")
    average = _baseline_average(task)
    float_side = _sample(task, task.baseline, average, progress, baseline=True)
    shape = float_side.model.image_shape
    reference = load_images(
        task.data, size=None if task.data.startswith("digits") else shape[1], channels=shape[0]
    )
    if reference.shape != shape:
        raise DataError(
            f"the images of {task.data} do not have the model's shape",
            expected=str(list(shape)),
            got=str(list(reference.shape)),
            next_step="name the data that the model was trained on with --data",
        )
    net = open_features(task.features, image_shape=shape)
    referee = open_referee(reference, net, threads=task.threads or 1)
    if not np.isfinite(float_side.images).all():
        raise DataError(
            f"the baseline {task.baseline} samples values that are not finite",
            expected="finite images",
            got="NaN or infinity",
            next_step="check the checkpoint with `flatq sample`",
        )
    features_float = referee.extract(float_side.images, rounding=task.rounding)
    task.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, path in enumerate(task.models):
        own = average if kind_of(path) == "checkpoint" else None
        sampled = _sample(task, path, own, progress, baseline=False)
        comparison = compare(
            referee,
            float_side.images,
            sampled.images,
            indices=np.arange(task.first, task.first + task.images),
            confidence=task.confidence,
            rounding=task.rounding,
            features_float=features_float,
        )
        entries.append(_entry(task, number, sampled, float_side, comparison))
    report = _report(task, float_side, referee, entries)
    write_report(report, task.out)
    return report


def _baseline_average(task: Assessment) -> str | None:
    """The weights that all models were made from, checked against the baseline."""
    from flatq.checkpoint import file_digest
    from flatq.deployment import read_deployment
    from flatq.quantize.artifact import read_manifest

    found: dict[str, str] = {}
    for path in task.models:
        kind = kind_of(path)
        if kind == "checkpoint":
            continue
        parent = (
            read_manifest(path).parent
            if kind == "artifact"
            else read_deployment(path)[0].provenance["parent"]
        )
        found[str(path)] = str(parent["weights"])
        if kind_of(task.baseline) == "checkpoint" and parent["sha256"] != file_digest(task.baseline):
            raise ArtifactError(
                f"{path} was not made from {task.baseline}",
                expected=f"a checkpoint with sha256 {str(parent['sha256'])[:16]}...",
                got=f"sha256 {file_digest(task.baseline)[:16]}...",
                next_step="name the checkpoint it was made from with --baseline",
            )
    if len(set(found.values())) > 1:
        raise UsageError(
            "the models were made from different weights of the checkpoint",
            expected="models of one kind of weights in one evaluation",
            got=", ".join(f"{path}: {weights}" for path, weights in found.items()),
            next_step="evaluate them in two runs",
        )
    inherited = next(iter(found.values()), None)
    if task.average is not None and inherited not in (None, task.average):
        raise UsageError(
            "the baseline's weights are not those that the models were made from",
            expected=f"--weights {inherited}",
            got=f"--weights {task.average}",
            next_step="leave --weights out",
        )
    return task.average or inherited


def _sample(
    task: Assessment, path: Path, average: str | None, progress: Progress | None, *, baseline: bool
) -> _Sampled:
    done, total = 0, task.images * task.plan.steps

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(path.name, done, total)

    if baseline:
        model = open_model(path, runtime=task.baseline_runtime, average=average, threads=task.threads)
    else:
        model = open_model(
            path,
            runtime=task.runtime,
            average=average,
            threads=task.threads,
            device=task.device,
            precision=task.precision,
            hint=task.hint,
        )
    with _Timed(model.runtime, min(task.batch_size, task.images)) as timed:
        images = sample(
            timed,
            model.process,
            task.plan,
            range(task.first, task.first + task.images),
            model.image_shape,
            classes=model.classes,
            batch_size=task.batch_size,
            progress=advance,
        )
        latency_ms = statistics.median(timed.seconds) * 1e3 if timed.seconds else None
        return _Sampled(model, images, timed.identity, latency_ms)


def _entry(
    task: Assessment, number: int, sampled: _Sampled, float_side: _Sampled, comparison: Comparison
) -> ModelEntry:
    model = sampled.model
    stem = f"{number:02d}-{model.name}"
    sidecar = f"{stem}.npz"
    np.savez(task.out / sidecar, allow_pickle=False, **comparison.sidecar)
    grid = None
    if comparison.finite:
        grid = f"{stem}.png"
        shown = slice(0, _GRID_IMAGES)
        save_pair_grid(
            task.out / grid,
            to_uint8(float_side.images[shown], task.rounding),
            to_uint8(sampled.images[shown], task.rounding),
            labels=("float", model.precision),
        )
    verdict = None
    if task.max_drift is not None:
        verdict = decide(comparison.drift, comparison.kid, task.max_drift, finite=comparison.finite)
    return ModelEntry(
        name=model.name,
        label=f"{model.weights} {model.precision}",
        precision=model.precision,
        digest=model.digest,
        runtime=sampled.identity,
        size_bytes=model.size_bytes,
        latency_ms=sampled.latency_ms,
        drift=comparison.drift,
        kid=comparison.kid,
        finite=comparison.finite,
        rms_distance_mean=comparison.rms_distance_mean,
        rms_distance_max=comparison.rms_distance_max,
        verdict=verdict,
        grid=grid,
        sidecar=sidecar,
        audit=model.audit,
    )


def _report(
    task: Assessment, float_side: _Sampled, referee: Referee, entries: Sequence[ModelEntry]
) -> Report:
    model = float_side.model
    return Report(
        plan=task.plan.model_dump(),
        n=task.images,
        first_index=task.first,
        last_index=task.first + task.images - 1,
        extractor=Extractor(name=referee.net.name, digest=referee.net.digest, dim=referee.net.dim),
        reference=ReferenceEntry(
            name=referee.images.name, digest=referee.images.digest, n=len(referee.images.pixels)
        ),
        rounding=task.rounding,
        baseline=Baseline(
            name=f"{model.name} ({model.weights})",
            digest=model.digest,
            precision=model.precision,
            runtime=float_side.identity,
            size_bytes=model.size_bytes,
            latency_ms=float_side.latency_ms,
        ),
        models=list(entries),
        environment=environment(),
    )


def environment() -> Environment:
    """Python, platform, processor and the versions of the packages that move the numbers."""
    versions = {}
    for name in ("flatq", "torch", "torchao", "diffusers", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
        cpu=cpu,
    )
