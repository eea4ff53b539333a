"""One evaluation from end to end: sample every model on the same noise, compare, judge, write the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flatq.assessment import EvaluateSettings
from flatq.checkpoint import file_digest
from flatq.errors import ArtifactError, DataError, UsageError
from flatq.evaluate.cache import Note, ReferenceCache, cache_folder
from flatq.evaluate.compare import Comparison, Referee, compare, open_referee, stored_referee
from flatq.evaluate.extractor import open_extractor
from flatq.evaluate.gate import Verdict
from flatq.evaluate.growing import Growing
from flatq.evaluate.judge import Influences, Tolerances, judge
from flatq.evaluate.looks import Looks, plan_looks, until_decided
from flatq.evaluate.prc import PrecisionRecall
from flatq.evaluate.reference import load_reference
from flatq.evaluate.samples import SampleCache
from flatq.evaluate.team import ExtractorChoice, Team
from flatq.images import load_images, to_uint8
from flatq.models import Model, kind_of, open_model, parent_weights
from flatq.noise import NOISE_VERSION
from flatq.report.environment import environment
from flatq.report.grids import save_pair_grid
from flatq.report.model import (
    Baseline,
    Extractor,
    ModelEntry,
    Options,
    ReferenceEntry,
    Report,
    write_report,
)
from flatq.report.pictures import kept_rows, pictures_at
from flatq.rungs import Rungs, check_ladder
from flatq.runtime.base import default_threads
from flatq.sampler import check_labels

__all__ = ["EvaluateSettings", "assess"]

Progress = Callable[[str, int, int], None]
"""Called with (what is sampled, images times steps done, total)."""

_GRID_IMAGES = 32


def assess(
    task: EvaluateSettings,
    progress: Progress | None = None,
    note: Note = lambda _: None,
    team: Team | None = None,
) -> Report:
    """Sample, compare and write `report.json`, `report.md`, `report.html`, the grids and the sidecars.

    Args:
        note: told what a user should know of the reference, in a line each.
        team: other processes that draw a part of the samples.

    Raises:
        InputError: whatever of the paths, data, features and options does not fit together.
        MissingRuntimeError: a runtime is not installed.
    """
    if task.images < 2:
        raise UsageError("too few images", expected="at least 2", got=str(task.images), next_step="raise -n")
    if not task.models:
        raise UsageError("no model to evaluate", expected="at least one artifact", got="none")
    float_path = task.baseline
    if float_path is None:
        raise UsageError("no baseline", expected="the float checkpoint", got="none")
    tolerances = Tolerances(task.max_drift, task.max_drift_rel, task.min_samples)
    gated = task.max_drift is not None or task.max_drift_rel is not None
    looks = Looks((task.images,), task.confidence)
    if task.max_samples is not None:
        tolerances.check()
        looks = plan_looks(task.images, task.max_samples, task.looks, task.confidence)
    if team is not None:
        threads = task.runtime.threads or team.threads
        task = replace(task, runtime=replace(task.runtime, threads=threads))
        team.extractor = ExtractorChoice(task.features, task.inception_weights, task.features_device)
    floats = task.baseline_runtime
    if floats.threads is None:
        floats = replace(floats, threads=task.runtime.threads)
    if task.ladder:
        check_ladder(float_path, floats, task.models, task.runtime)
    weights = parent_weights(task.models, float_path, task.weights)
    baseline = open_model(float_path, floats, weights=weights)
    with ExitStack() as stack:
        stack.enter_context(baseline.runtime)
        check_labels(task.plan, baseline.classes)
        why = "" if task.weights else " (the default)" if weights is None else " (those of the models)"
        note(f"weights of the baseline: {baseline.weights}{why}")
        # before anything is sampled, so that a reference that does not fit is found at once
        referee = _referee(task, baseline.image_shape, progress, note)
        float_side = _growing(task, baseline, referee, progress, note, team)
        float_side.grow(looks.planned[0])
        rungs = _rungs(task, baseline, float_side, referee, progress, note, team) if task.ladder else None
        if rungs is not None:
            stack.enter_context(rungs)
        entries = []
        for number, path in enumerate(task.models):
            model = open_model(path, task.runtime, weights=weights if kind_of(path) == "checkpoint" else None)
            with model.runtime:
                if model.classes != baseline.classes:
                    raise ArtifactError(
                        f"{path} does not take the labels of {task.baseline}",
                        expected=baseline.classes.model_dump_json() if baseline.classes else "no labels",
                        got=model.classes.model_dump_json() if model.classes else "no labels",
                        next_step="name the checkpoint it was made from with --baseline",
                    )
                side = _growing(task, model, referee, progress, note, team)
                comparison, verdict, taken = _compare(
                    task, referee, float_side, side, looks, tolerances if gated else None
                )
            entry = _entry(task, number, side, float_side, comparison, verdict, taken)
            if rungs is not None:
                climbed = rungs.ladder(path, side, len(side.images), referee.reference, looks.each)
                if climbed is None:
                    note(f"{path}: no ladder, as a rung samples values that are not finite")
                entry = entry.model_copy(update={"ladder": climbed})
            entries.append(entry)
    features = float_side.features(len(float_side.images))
    assert features is not None
    prc = referee.precision_recall(features)
    report = _report(task, float_side, referee, prc, entries, tolerances if gated else None)
    write_report(report, task.out)
    return report


def _referee(
    task: EvaluateSettings, shape: tuple[int, int, int], progress: Progress | None, note: Note
) -> Referee:
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
    threads = task.runtime.threads or default_threads()
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

    kept = _cache(task)
    cache = None if kept is None else ReferenceCache(kept, note)
    return open_referee(images, net, threads=threads, cache=cache, progress=advance)


def _cache(task: EvaluateSettings) -> Path | None:
    if isinstance(task.cache, Path):
        return task.cache
    return cache_folder() if task.cache else None


def _growing(
    task: EvaluateSettings,
    model: Model,
    referee: Referee,
    progress: Progress | None,
    note: Note,
    team: Team | None,
) -> Growing:
    kept = _cache(task) or (None if team is None else team.scratch)
    return Growing(
        model,
        referee,
        task.plan,
        first=task.first,
        batch_size=task.batch_size,
        rounding=task.rounding,
        cache=SampleCache(kept, note) if kept is not None else None,
        team=team,
        progress=progress,
    )


def _rungs(
    task: EvaluateSettings,
    baseline: Model,
    float_side: Growing,
    referee: Referee,
    progress: Progress | None,
    note: Note,
    team: Team | None,
) -> Rungs:
    assert task.baseline is not None
    return Rungs(
        task.baseline,
        baseline.weights,
        float_side,
        lambda model: _growing(task, model, referee, progress, note, team),
        task.runtime,
        scratch=None if team is None else team.scratch,
    )


def _compare(
    task: EvaluateSettings,
    referee: Referee,
    float_side: Growing,
    side: Growing,
    looks: Looks,
    tolerances: Tolerances | None,
) -> tuple[Comparison, Verdict | None, Looks | None]:
    """The comparison at the look that decided, or at the last one."""
    found: Comparison | None = None

    def look(n: int, confidence: float) -> Comparison:
        float_side.grow(n)
        if not float_side.finite:
            raise DataError(
                f"the baseline {task.baseline} samples values that are not finite",
                expected="finite images",
                got="NaN or infinity",
                next_step="check the checkpoint with `flatq sample`",
            )
        side.grow(n)
        return compare(
            referee,
            float_side.images[:n],
            side.images[:n],
            indices=np.arange(task.first, task.first + n),
            confidence=confidence,
            rounding=task.rounding,
            features_float=float_side.features(n),
            side_float=float_side.side(n),
            features_quantized=side.features(n),
        )

    def decide_at(n: int, confidence: float) -> Verdict:
        nonlocal found
        found = look(n, confidence)
        assert tolerances is not None
        kept = found.sidecar
        influences = Influences(kept.get("influence_float"), kept.get("influence_quantized"))
        return judge(found.drift, found.kid, tolerances, influences, finite=found.finite)

    if tolerances is None:
        return look(looks.planned[0], looks.each), None, None
    verdict, taken = until_decided(looks, decide_at)
    assert found is not None
    return found, verdict, taken if task.max_samples is not None else None


def _entry(
    task: EvaluateSettings,
    number: int,
    sampled: Growing,
    float_side: Growing,
    comparison: Comparison,
    verdict: Verdict | None,
    looks: Looks | None,
) -> ModelEntry:
    model = sampled.model
    task.out.mkdir(parents=True, exist_ok=True)
    stem = f"{number:02d}-{model.name}"
    sidecar = f"{stem}.npz"
    arrays = dict(comparison.sidecar)
    grid = None
    if comparison.finite:
        rows = kept_rows(arrays["image_distance"], model.image_shape)
        arrays |= pictures_at(
            arrays["indices"][rows],
            to_uint8(float_side.images[rows], task.rounding),
            to_uint8(sampled.images[rows], task.rounding),
        )
        grid = f"{stem}.png"
        shown = slice(0, _GRID_IMAGES)
        save_pair_grid(
            task.out / grid,
            to_uint8(float_side.images[shown], task.rounding),
            to_uint8(sampled.images[shown], task.rounding),
            labels=("float", model.precision),
        )
    np.savez(task.out / sidecar, allow_pickle=False, **arrays)
    return ModelEntry(
        name=model.name,
        label=f"{model.weights} {model.precision}",
        precision=model.precision,
        digest=model.digest,
        runtime=sampled.identity,
        size_bytes=model.size_bytes,
        latency_ms=sampled.latency_ms,
        seconds_per_image=sampled.seconds / len(sampled.images),
        drift=comparison.drift,
        kid=comparison.kid,
        finite=comparison.finite,
        rms_distance_mean=comparison.rms_distance_mean,
        rms_distance_max=comparison.rms_distance_max,
        prc=comparison.prc,
        verdict=verdict,
        grid=grid,
        grid_sha256=None if grid is None else file_digest(task.out / grid),
        sidecar=sidecar,
        sidecar_sha256=file_digest(task.out / sidecar),
        audit=model.audit,
        looks=looks,
    )


def _report(
    task: EvaluateSettings,
    float_side: Growing,
    referee: Referee,
    prc: PrecisionRecall | None,
    entries: Sequence[ModelEntry],
    tolerances: Tolerances | None,
) -> Report:
    n = len(float_side.images)
    model, net, source = float_side.model, referee.net, referee.source
    return Report(
        plan=task.plan.model_dump(),
        noise_version=NOISE_VERSION,
        labels=None if model.classes is None else model.classes.describe(task.plan.label),
        n=n,
        first_index=task.first,
        last_index=task.first + n - 1,
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
            seconds_per_image=float_side.seconds / n,
            prc=prc,
            weights=model.weights,
        ),
        gate=tolerances,
        models=list(entries),
        environment=environment(),
        options=_options(task),
    )


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
