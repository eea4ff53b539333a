"""One evaluation from end to end: sample every model on the same noise, compare, judge, write the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.assessment import EvaluateSettings
from flatq.checkpoint import file_digest
from flatq.errors import ArtifactError, DataError, UsageError
from flatq.evaluate.cache import Cache, cache_folder, open_cache
from flatq.evaluate.compare import Comparison, compare
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.features import open_extractor
from flatq.evaluate.gate import Tolerances, Verdict, judge
from flatq.evaluate.ladder import MiddleStages, check_ladder
from flatq.evaluate.looks import Looks, plan_looks, until_decided
from flatq.evaluate.moments import F64
from flatq.evaluate.reference import MeasuredReference, from_statistics, measure_reference
from flatq.evaluate.samples import SampleSet, Sampling
from flatq.evaluate.statistics_file import load_reference
from flatq.images import load_images, to_float
from flatq.launch import Processes
from flatq.models import kind_of, open_model, parent_weights
from flatq.noise import NOISE_VERSION
from flatq.progress import Note, Progress
from flatq.report.environment import environment
from flatq.report.grids import save_pair_grid
from flatq.report.model import Baseline, ExtractorEntry, ModelEntry, Options, ReferenceEntry, Report
from flatq.report.sidecar import kept_rows
from flatq.report.write import write_report
from flatq.runtime.base import default_threads
from flatq.sampler import check_labels

__all__ = ["EvaluateSettings", "assess"]

_GRID_IMAGES = 32
_ALONE = Processes()


def assess(
    task: EvaluateSettings,
    progress: Progress | None = None,
    note: Note = lambda _: None,
    processes: Processes = _ALONE,
) -> Report:
    """Sample, compare and write `report.json`, `report.md`, `report.html`, the grids and the sidecars.

    Args:
        note: told what a user should know of the reference, in a line each.
        processes: of a launch, all of which call this; the first one compares and writes.

    Raises:
        InputError: whatever of the paths, data, features and options does not fit together.
        MissingRuntimeError: a runtime is not installed.
    """
    if not task.models:
        raise UsageError("no model to evaluate", expected="at least one artifact", got="none")
    checkpoint = task.baseline
    if checkpoint is None:
        raise UsageError("no baseline", expected="the float checkpoint", got="none")
    tolerances = Tolerances(task.max_drift, task.max_drift_rel, task.min_samples)
    gated = task.max_drift is not None or task.max_drift_rel is not None
    looks = Looks((task.images,), task.confidence)
    if task.max_samples is not None:
        tolerances.check()
        looks = plan_looks(task.images, task.max_samples, task.looks, task.confidence)
    floats = task.baseline_runtime
    if floats.threads is None:
        floats = replace(floats, threads=task.runtime.threads)
    if task.ladder:
        check_ladder(checkpoint, floats, task.models, task.runtime)
    weights = parent_weights(task.models, checkpoint, task.weights)
    with ExitStack() as stack:
        baseline = stack.enter_context(open_model(checkpoint, floats, weights=weights))
        check_labels(task.sampling, baseline.classes)
        why = "" if task.weights else " (the default)" if weights is None else " (those of the models)"
        note(f"weights of the baseline: {baseline.weights}{why}")
        cache = _open_cache(task, stack, note)
        extractor, measure = _prepare_reference(task, baseline.image_shape, cache, progress, note)
        # before anything is sampled, so that a reference that does not fit is found at once
        reference = processes.each(lambda: measure() if processes.main else None)
        sampling = Sampling(
            settings=task.sampling,
            first=task.first,
            batch_size=task.batch_size,
            rounding=task.rounding,
            extractor=extractor,
            cache=cache,
            processes=processes,
            progress=progress or (lambda *_: None),
        )
        run = _Run(task, looks, tolerances if gated else None, processes, reference)
        float_set = SampleSet(baseline, sampling)
        float_set.grow(looks.planned[0])
        middle = MiddleStages(checkpoint, float_set, sampling, task.runtime, stack)
        entries = []
        for number, path in enumerate(task.models):
            model_weights = weights if kind_of(path) == "checkpoint" else None
            with open_model(path, task.runtime, weights=model_weights) as model:
                if model.classes != baseline.classes:
                    raise ArtifactError(
                        f"{path} does not take the labels of {task.baseline}",
                        expected=baseline.classes.model_dump_json() if baseline.classes else "no labels",
                        got=model.classes.model_dump_json() if model.classes else "no labels",
                        next_step="name the checkpoint it was made from with --baseline",
                    )
                quantized = SampleSet(model, sampling)
                comparison, verdict, taken = run.compare(float_set, quantized)
            ladder = None
            if task.ladder:
                ladder = middle.ladder(path, quantized, reference, looks.each)
            if comparison is not None:
                entry = run.entry(number, quantized, float_set, comparison)
                update = {"verdict": verdict, "looks": taken, "ladder": ladder}
                entries.append(entry.model_copy(update=update))
        report = processes.each(lambda: run.report(float_set, entries) if processes.main else None)
        return processes.agree(report)  # type: ignore[no-any-return]


def _open_cache(task: EvaluateSettings, stack: ExitStack, note: Note) -> Cache:
    """The cache that is asked for, or one for the time of the evaluation."""
    wanted = task.cache if isinstance(task.cache, Path) else cache_folder() if task.cache else None
    cache = None if wanted is None else open_cache(wanted, note)
    if cache is None:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="flatq-eval-"))
        cache = Cache(Path(scratch), note)
    return cache


def _prepare_reference(
    task: EvaluateSettings,
    shape: tuple[int, int, int],
    cache: Cache,
    progress: Progress | None,
    note: Note,
) -> tuple[Extractor, Callable[[], MeasuredReference]]:
    """The extractor, and what measures images at hand or reads a file of statistics."""
    if (task.data is None) == (task.reference is None):
        raise UsageError(
            "the distances need one reference",
            expected="data (--data) or statistics (--reference)",
            got="none" if task.data is None else f"both {task.data} and {task.reference}",
        )
    stored = load_reference(task.reference) if task.reference is not None else None
    extractor = open_extractor(
        task.features,
        image_shape=shape,
        inception_weights=task.inception_weights,
        device=task.features_device,
        threads=task.runtime.threads or default_threads(),
    )

    def measure() -> MeasuredReference:
        if stored is not None:
            if stored.extractor_digest is None:
                note(
                    f"{task.reference} names neither its extractor nor its images: "
                    f"that {extractor.name} made it cannot be checked"
                )
            return from_statistics(stored, extractor)
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

        return measure_reference(images, extractor, cache=cache, progress=advance)

    return extractor, measure


@dataclass(frozen=True, eq=False)
class _Run:
    """What all comparisons of an evaluation share. tolerances: None where nothing is judged. reference: in
    the first process alone, which compares."""

    task: EvaluateSettings
    looks: Looks
    tolerances: Tolerances | None
    processes: Processes
    reference: MeasuredReference | None

    def compare(
        self, float_set: SampleSet, quantized: SampleSet
    ) -> tuple[Comparison | None, Verdict | None, Looks | None]:
        """The comparison at the look that decided, or at the last one; it is the first process's alone."""
        found: Comparison | None = None

        def measure(n: int, confidence: float) -> Verdict | None:
            nonlocal found
            if self.reference is None:
                return None
            q = quantized.features(n, self.reference)
            found = compare(float_set.features(n, self.reference), q, confidence)
            if self.tolerances is None:
                return None
            influences = found.influence_float, found.influence_quantized
            lost = quantized.not_finite
            return judge(found.drift, found.kid, self.tolerances, *influences, not_finite=lost)

        def look(n: int, confidence: float) -> Any:
            float_set.grow(n)
            if float_set.not_finite:
                raise DataError(
                    f"the baseline {self.task.baseline} samples values that are not finite",
                    expected="finite images",
                    got=f"NaN or infinity in {float_set.not_finite} of {float_set.n} images",
                    next_step="check the checkpoint with `flatq sample`",
                )
            quantized.grow(n)
            return self.processes.agree(self.processes.each(lambda: measure(n, confidence)))

        if self.tolerances is None:
            look(self.looks.planned[0], self.looks.each)
            return found, None, None
        verdict, taken = until_decided(self.looks, look)
        return found, verdict, taken if self.task.max_samples is not None else None

    def entry(
        self, number: int, quantized: SampleSet, float_set: SampleSet, comparison: Comparison
    ) -> ModelEntry:
        """The model's entry, without a verdict; its sidecar and grid are written."""
        task, model, n = self.task, quantized.model, quantized.n
        assert self.reference is not None
        q = quantized.features(n, self.reference)
        distance = _image_distance(float_set, quantized)
        task.out.mkdir(parents=True, exist_ok=True)
        stem = f"{number:02d}-{model.name}"
        sidecar = f"{stem}.npz"
        rows = kept_rows(distance, model.image_shape)
        arrays: dict[str, NDArray[Any] | None] = {
            "indices": np.arange(task.first, task.first + n),
            "image_distance": distance,
            "features_float": float_set.features(n, self.reference).features,
            "influence_float": comparison.influence_float,
            "features_quantized": q.features,
            "influence_quantized": comparison.influence_quantized,
            "kept": rows + task.first,
            "kept_float": float_set.images(rows),
            "kept_quantized": quantized.images(rows),
        }
        grid = f"{stem}.png"
        shown = np.arange(min(_GRID_IMAGES, n))
        pairs = float_set.images(shown), quantized.images(shown)
        save_pair_grid(task.out / grid, *pairs, labels=("float", model.precision))
        kept = {name: array for name, array in arrays.items() if array is not None}
        np.savez(task.out / sidecar, allow_pickle=False, **kept)
        return ModelEntry(
            name=model.name,
            label=f"{model.weights} {model.precision}",
            precision=model.precision,
            digest=model.digest,
            runtime=quantized.identity,
            size_bytes=model.size_bytes,
            latency_ms=quantized.latency_ms,
            seconds_per_image=quantized.seconds / n,
            drift=comparison.drift,
            kid=comparison.kid,
            not_finite=quantized.not_finite,
            rms_distance_mean=float(distance.mean()),
            rms_distance_max=float(distance.max()),
            prc=q.precision_recall,
            grid=grid,
            grid_sha256=file_digest(task.out / grid),
            sidecar=sidecar,
            sidecar_sha256=file_digest(task.out / sidecar),
            audit=model.audit,
        )

    def report(self, float_set: SampleSet, entries: Sequence[ModelEntry]) -> Report:
        """The whole report, which is written."""
        task, n, model = self.task, float_set.n, float_set.model
        assert self.reference is not None
        source, extractor = self.reference.source, self.reference.extractor
        report = Report(
            plan=task.sampling.model_dump(),
            noise_version=NOISE_VERSION,
            labels=None if model.classes is None else model.classes.describe(task.sampling.label),
            n=n,
            first_index=task.first,
            last_index=task.first + n - 1,
            extractor=ExtractorEntry.model_validate(extractor, from_attributes=True),
            reference=ReferenceEntry.model_validate(source, from_attributes=True),
            rounding=task.rounding,
            baseline=Baseline(
                name=f"{model.name} ({model.weights})",
                digest=model.digest,
                precision=model.precision,
                runtime=float_set.identity,
                size_bytes=model.size_bytes,
                latency_ms=float_set.latency_ms,
                seconds_per_image=float_set.seconds / n,
                prc=float_set.features(n, self.reference).precision_recall,
                weights=model.weights,
            ),
            gate=self.tolerances,
            models=list(entries),
            environment=environment(),
            options=_options(task),
        )
        write_report(report, task.out)
        return report


def _image_distance(float_set: SampleSet, quantized: SampleSet) -> F64:
    """Root mean square difference of the two images of each pair, f64 [n], in units of [-1, 1]."""
    distance = np.empty(quantized.n, np.float64)
    for start in range(0, quantized.n, 64):
        rows = np.arange(start, min(start + 64, quantized.n))
        difference = to_float(float_set.images(rows)).astype(np.float64) - to_float(quantized.images(rows))
        distance[rows] = np.sqrt(np.mean(difference**2, axis=(1, 2, 3)))
    return distance


def _options(task: EvaluateSettings) -> Options:
    runtime = task.runtime
    given: dict[str, Any] = {
        "runtime": runtime.runtime,
        "device": runtime.device,
        "precision": runtime.precision,
        "hint": runtime.hint,
        "baseline_runtime": task.baseline_runtime.runtime,
    }
    given |= {name: getattr(task, name) for name in Options.model_fields if name not in given}
    for name in ("data", "reference", "features"):
        if given[name] is not None:
            given[name] = Path(given[name]).name
    return Options(**given)
