"""One evaluation from end to end: sample every model on the same noise, compare, judge, write the report."""

from __future__ import annotations

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
from flatq.evaluate.cache import Note, ReferenceCache, cache_folder
from flatq.evaluate.compare import Comparison, Referee, compare, open_referee, stored_referee
from flatq.evaluate.extractor import open_extractor
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.gate import decide
from flatq.evaluate.prc import PrecisionRecall
from flatq.evaluate.reference import load_reference
from flatq.images import Resize, load_images, to_uint8
from flatq.models import Model, kind_of, open_model
from flatq.report.environment import environment
from flatq.report.grids import save_pair_grid
from flatq.report.model import (
    Baseline,
    Extractor,
    ModelEntry,
    ReferenceEntry,
    Report,
    write_report,
)
from flatq.runtime.base import UNCONDITIONED, Condition, Runtime, default_threads
from flatq.sampler import SamplePlan, check_labels, sample

__all__ = ["Assessment", "assess"]

Progress = Callable[[str, int, int], None]
"""Called with (what is sampled, images times steps done, total)."""

_GRID_IMAGES = 32


@dataclass(frozen=True)
class Assessment:
    """What to evaluate and how.

    Attributes:
        models: artifacts, deployments or checkpoints.
        baseline: the float checkpoint they are compared with.
        data: images that the distances are taken to, as `flatq.images.load_images` names them; None with
            `reference`.
        out: folder of the report.
        plan: how images are drawn.
        images: how many, from index `first`.
        features: an ONNX feature network, "inception", or None for the bundled one.
        runtime: of the models; None takes each kind's default.
        device, precision, hint: of the models, as `flatq.backends.Settings`.
        baseline_runtime: of the baseline, torch by default.
        average: weights of the baseline; None takes those that the models were made from.
        max_drift: the gate's tolerance; None leaves out the verdict.
        reference: a file of statistics that the distances are taken to, in place of `data`.
        inception_weights, features_device: of the Inception network, as `open_extractor`.
        cache: whether the features of `data` are kept for the next time.
        resize: how images of `data` get to the model's size; without it, others are refused.
    """

    models: tuple[Path, ...]
    baseline: Path
    data: str | None
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
    reference: Path | None = None
    inception_weights: Path | None = None
    features_device: str = "cpu"
    cache: bool = True
    resize: Resize | None = None


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
        """Nothing: who opened the runtime closes it."""


@dataclass(frozen=True)
class _Sampled:
    model: Model
    images: NDArray[np.float32]
    identity: dict[str, Any]
    latency_ms: float | None


def assess(task: Assessment, progress: Progress | None = None, note: Note = lambda _: None) -> Report:
    """Sample, compare and write `report.json`, `report.md`, the grids and the sidecars.

    Args:
        note: told what a user should know of the reference, in a line each.

    Raises:
        InputError: whatever of the paths, data, features and options does not fit together.
        MissingRuntimeError: a runtime is not installed.
    """
    if task.images < 2:
        raise UsageError("too few images", expected="at least 2", got=str(task.images), next_step="raise -n")
    if not task.models:
        raise UsageError("no model to evaluate", expected="at least one artifact", got="none")
    average = _baseline_average(task)
    baseline = open_model(task.baseline, runtime=task.baseline_runtime, average=average, threads=task.threads)
    with baseline.runtime:
        check_labels(task.plan, baseline.classes)
        why = "" if task.average else " (the default)" if average is None else " (those of the models)"
        note(f"weights of the baseline: {baseline.weights}{why}")
        # before anything is sampled, so that a reference that does not fit is found at once
        referee = _referee(task, baseline.image_shape, progress, note)
        float_side = _sample(task, baseline, progress)
    if not np.isfinite(float_side.images).all():
        raise DataError(
            f"the baseline {task.baseline} samples values that are not finite",
            expected="finite images",
            got="NaN or infinity",
            next_step="check the checkpoint with `flatq sample`",
        )
    features_float = referee.extract(float_side.images, rounding=task.rounding)
    frechet_float = frechet_side(features_float, referee.reference)
    task.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, path in enumerate(task.models):
        model = open_model(
            path,
            runtime=task.runtime,
            average=average if kind_of(path) == "checkpoint" else None,
            threads=task.threads,
            device=task.device,
            precision=task.precision,
            hint=task.hint,
        )
        with model.runtime:
            if model.classes != baseline.classes:
                raise ArtifactError(
                    f"{path} does not take the labels of {task.baseline}",
                    expected=baseline.classes.model_dump_json() if baseline.classes else "no labels",
                    got=model.classes.model_dump_json() if model.classes else "no labels",
                    next_step="name the checkpoint it was made from with --baseline",
                )
            sampled = _sample(task, model, progress)
        comparison = compare(
            referee,
            float_side.images,
            sampled.images,
            indices=np.arange(task.first, task.first + task.images),
            confidence=task.confidence,
            rounding=task.rounding,
            features_float=features_float,
            side_float=frechet_float,
        )
        entries.append(_entry(task, number, sampled, float_side, comparison))
    prc = referee.precision_recall(features_float)
    report = _report(task, float_side, referee, prc, entries)
    write_report(report, task.out)
    return report


def _referee(task: Assessment, shape: tuple[int, int, int], progress: Progress | None, note: Note) -> Referee:
    """The reference: images at hand, or a file of statistics."""
    if (task.data is None) == (task.reference is None):
        raise UsageError(
            "the distances need one reference",
            expected="data (--data) or statistics (--reference)",
            got="none" if task.data is None else f"both {task.data} and {task.reference}",
        )
    stored = load_reference(task.reference) if task.reference is not None else None
    net = open_extractor(
        task.features,
        image_shape=shape,
        inception_weights=task.inception_weights,
        device=task.features_device,
    )
    threads = task.threads or default_threads()
    if stored is not None:
        if stored.extractor_digest is None:
            note(
                f"{task.reference} names neither its extractor nor its images: "
                f"that {net.name} made it cannot be checked"
            )
        return stored_referee(stored, net, threads=threads)
    assert task.data is not None
    images = load_images(task.data, size=shape[1], resize=task.resize, channels=shape[0])
    if images.shape != shape:
        raise DataError(
            f"the images of {task.data} do not have the model's shape",
            expected=str(list(shape)),
            got=str(list(images.shape)),
            next_step="name the data that the model was trained on with --data",
        )

    def advance(done: int, total: int) -> None:
        if progress is not None:
            progress(f"features of {images.name}", done, total)

    cache = ReferenceCache(cache_folder(), note) if task.cache else None
    return open_referee(images, net, threads=threads, cache=cache, progress=advance)


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


def _sample(task: Assessment, model: Model, progress: Progress | None) -> _Sampled:
    done, total = 0, task.images * task.plan.steps

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(model.name, done, total)

    timed = _Timed(model.runtime, min(task.batch_size, task.images))
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
        prc=comparison.prc,
        verdict=verdict,
        grid=grid,
        sidecar=sidecar,
        audit=model.audit,
    )


def _report(
    task: Assessment,
    float_side: _Sampled,
    referee: Referee,
    prc: PrecisionRecall | None,
    entries: Sequence[ModelEntry],
) -> Report:
    model, net, source = float_side.model, referee.net, referee.source
    return Report(
        plan=task.plan.model_dump(),
        labels=None if model.classes is None else model.classes.describe(task.plan.label),
        n=task.images,
        first_index=task.first,
        last_index=task.first + task.images - 1,
        extractor=Extractor(
            name=net.name,
            digest=net.digest,
            dim=net.dim,
            kind=net.kind,
            preprocessing=net.preprocessing,
            published=net.published,
        ),
        reference=ReferenceEntry(
            name=source.name,
            digest=source.digest,
            n=source.n,
            kind=source.kind,
            preprocessing=source.preprocessing,
        ),
        rounding=task.rounding,
        baseline=Baseline(
            name=f"{model.name} ({model.weights})",
            digest=model.digest,
            precision=model.precision,
            runtime=float_side.identity,
            size_bytes=model.size_bytes,
            latency_ms=float_side.latency_ms,
            prc=prc,
        ),
        models=list(entries),
        environment=environment(),
    )
