"""Run the cells of a study: train, quantize, measure; one JSON for each cell.

A cell works in `DIR/work/RUN-SEED`. What is finished there survives a kill: the state of the training,
artifacts, and the result of each measurement. The weights are deleted with it when the cell is done.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

import flatq
from flatq.calib import CalibrationPlan
from flatq.checkpoint import Checkpoint, load_checkpoint
from flatq.errors import DataError, UsageError
from flatq.files import replacing
from flatq.progress import Note, Progress
from flatq.report.environment import environment, source_commit
from flatq.runtime.cpu import instruction_set
from flatq.study.config import FLOAT, Cell, StudyConfig
from flatq.study.measure import Subject
from flatq.study.results import (
    CellResult,
    ExposureResult,
    FlatnessResult,
    ImagesResult,
    TrainedModel,
    digest_of,
    read_result,
    write_result,
)

__all__ = ["cell_file", "cell_settings", "existing_result", "place_config", "run_cell"]

_R = TypeVar("_R", bound=BaseModel)


def cell_file(folder: Path, cell: Cell) -> Path:
    """Where a cell's result lies."""
    return folder / "cells" / f"{cell.name}.json"


def place_config(source: Path, folder: Path) -> None:
    """Copy the study into the folder of its results, as `study.toml`.

    Raises:
        UsageError: the folder holds another study.
    """
    copy = folder / "study.toml"
    if copy.exists():
        if copy.read_bytes() != source.read_bytes():
            raise UsageError(
                f"{folder} holds another study",
                expected=f"a study.toml equal to {source}",
                got="one that differs",
                next_step="choose another folder with -o",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(copy) as partial:
        partial.write_bytes(source.read_bytes())


def cell_settings(cell: Cell) -> dict[str, Any]:
    """All that decides a cell's numbers, as plain values: the training and what is measured, in full."""
    study = cell.study
    train = study.train_config(cell.run, cell.seed)
    used = {name for spec, _, _ in cell.chosen(study.measured) for name in spec.quantizers}
    quantizers = {}
    for name in sorted(used - {FLOAT}):
        settings = study.quantizers[name].settings("raw", study.threads)
        quantizers[name] = {
            "recipe": settings.recipe.model_dump(mode="json"),
            "rounding": settings.rounding.model_dump(mode="json"),
            "calibration": settings.calibration.model_dump(mode="json"),
        }
    measured = {
        kind: [
            {**spec.model_dump(mode="json", exclude={"models", "weights", "seeds"}), "model": m, "weights": w}
            for spec, m, w in cell.chosen(specs)
        ]
        for kind, specs in (
            ("images", study.images),
            ("flatness", study.flatness),
            ("exposure", study.exposure),
        )
    }
    return {
        "train": None if train is None else train.model_dump(mode="json"),
        "checkpoint": None if train is not None else Path(study.runs[cell.run].checkpoint or "").name,
        "models": cell.models,
        "quantizers": quantizers,
        "calibration": CalibrationPlan().model_dump(mode="json"),
        "measured": measured,
        "flatness_settings": study.flatness_settings.model_dump(mode="json"),
        "data": [Path(study.data).name, study.size, study.resize],
        "features": None if study.features is None else Path(study.features).name,
        "n": study.n,
        "threads": study.threads,
        # options that came later stand here only where they are not at their default
        **({} if study.device == "cpu" else {"device": study.device}),
    }


def existing_result(folder: Path, cell: Cell) -> CellResult | None:
    """A cell's result where it is there.

    Raises:
        DataError: it is damaged, or of another configuration.
    """
    path = cell_file(folder, cell)
    if not path.exists():
        return None
    found = read_result(path, CellResult)
    wanted = (cell.study.name, cell.run, cell.seed, digest_of(cell_settings(cell)))
    if (found.study, found.run, found.seed, found.digest) != wanted:
        raise DataError(
            f"{path} is not the result of this cell",
            expected="study {}, run {}, seed {}, settings {:.12}...".format(*wanted),
            got=f"study {found.study}, run {found.run}, seed {found.seed}, settings {found.digest:.12}...",
            next_step="move it away, or run this study in another folder with -o",
        )
    return found


def run_cell(
    cell: Cell, folder: Path, *, keep: bool = False, progress: Progress, note: Note
) -> CellResult | None:
    """Run one cell, or go on with it, and write its result.

    Args:
        keep: leave the folder with the weights, artifacts and single results.

    Returns:
        The result; None where another process is at work on this cell.

    Raises:
        FlatqError: whatever training and measuring raise; what is finished stays.
    """
    settings = cell_settings(cell)
    digest = digest_of(settings)
    work = folder / "work" / cell.name
    work.mkdir(parents=True, exist_ok=True)
    with _only_process(work) as alone:
        if not alone:
            note(f"{cell.name}: another process is at work on it")
            return None
        commit = source_commit()
        _check_unchanged(work, digest, commit)
        result = _Work(cell, work, progress, note).result(settings, digest, commit)
        write_result(result, cell_file(folder, cell))
        if not keep:
            shutil.rmtree(work)
    return result


@contextmanager
def _only_process(work: Path) -> Iterator[bool]:
    with (work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _check_unchanged(work: Path, digest: str, commit: str | None) -> None:
    """Refuse to go on with a cell that was begun with other settings or another state of the code."""
    begun, now = work / "begun", f"{digest} {commit}"
    if not begun.exists():
        begun.write_text(now, encoding="utf-8")
    elif begun.read_text(encoding="utf-8") != now:
        raise UsageError(
            f"{work} was begun with other settings, or with another commit of flatq",
            expected=begun.read_text(encoding="utf-8"),
            got=now,
            next_step="go on with that commit and study, or delete the folder to begin again",
        )


class _Work:
    """One cell in its folder: each step is done once, and its seconds are noted."""

    def __init__(self, cell: Cell, folder: Path, progress: Progress, note: Note) -> None:
        self.cell, self.study, self.folder = cell, cell.study, folder
        self.note = note
        self.progress: Progress = lambda what, done, total: progress(f"{cell.name}: {what}", done, total)
        self.seconds: dict[str, float] = {}

    def result(self, settings: dict[str, Any], digest: str, commit: str | None) -> CellResult:
        cell, study = self.cell, self.study
        checkpoints, missing = self._checkpoints()
        images, flatness, exposure = [], [], []
        for (model, weights, runtime, steps, n), quantizers in _grouped(study, cell).items():
            if model in checkpoints:
                subject = self._subject(model, checkpoints[model], weights)
                measure = partial(subject.images, quantizers, runtime, steps, n)
                name = f"images-{model}-{weights}-{runtime}-{steps}-{n}"
                images.append(self._once(name, ImagesResult, measure))
        for flat, model, weights in cell.chosen(study.flatness):
            if model in checkpoints:
                subject = self._subject(model, checkpoints[model], weights)
                name = f"flatness-{model}-{weights}"
                flatness.append(self._once(name, FlatnessResult, partial(subject.flatness, flat.damage)))
        for place, (exposed, model, weights) in enumerate(cell.chosen(study.exposure)):
            if model in checkpoints:
                subject = self._subject(model, checkpoints[model], weights)
                settled = (exposed.quantizers, exposed.runtime, exposed.steps, exposed.n)
                name = f"exposure-{place}-{model}-{weights}"
                exposure.append(self._once(name, ExposureResult, partial(subject.exposure, *settled)))
        return CellResult(
            study=study.name,
            run=cell.run,
            seed=cell.seed,
            digest=digest,
            settings=settings,
            commit=commit,
            environment=environment().model_dump(mode="json"),
            instructions=instruction_set(),
            models={name: _trained(checkpoint) for name, checkpoint in checkpoints.items()},
            missing=missing,
            images=tuple(images),
            flatness=tuple(flatness),
            exposure=tuple(exposure),
            seconds=self.seconds,
        )

    def _checkpoints(self) -> tuple[dict[str, Checkpoint], dict[str, str]]:
        """The models that there are, and why others are missing."""
        cell, study = self.cell, self.study
        config = study.train_config(cell.run, cell.seed)
        if config is None:
            path = Path(str(study.runs[cell.run].checkpoint).format(seed=cell.seed))
            return {name: load_checkpoint(path) for name in cell.models}, {}
        run = self.folder / "train"
        started = time.monotonic()
        if not (self.folder / "trained").exists():
            flatq.train(
                config, run, resume=True, progress=lambda done, _: self.progress("train", done, config.steps)
            )
            seconds = time.monotonic() - started
            (self.folder / "trained").write_text(f"{seconds:.3f}", encoding="utf-8")
        self.seconds["train"] = float((self.folder / "trained").read_text(encoding="utf-8"))
        found, missing = {}, {}
        for name, moment in cell.models.items():
            word = "" if moment == "end" else f"-{moment}"
            if moment.startswith("step"):
                word = f"-step-{int(moment.split()[1]):07}"
            path = run / f"ckpt{word}.pt"
            if path.exists():
                found[name] = load_checkpoint(path)
            else:
                missing[name] = f"the held-out loss never fell to {config.snapshot_loss}"
                self.note(f"{cell.name}: no model {name}: {missing[name]}")
        return found, missing

    def _subject(self, model: str, checkpoint: Checkpoint, weights: str) -> Subject:
        run, spec = next(iter(self.study.runs.items()))
        first = (run, spec.seeds[0], next(iter(self.cell.models)), "raw")
        return Subject(
            self.study,
            model,
            checkpoint,
            weights,
            self.folder / "artifacts" / f"{model}-{weights}",
            self.folder / "cache",
            verify=(self.cell.run, self.cell.seed, model, weights) == first,
            pictures=self.study.pictures if self.cell.place == 0 else 0,
            progress=self.progress,
        )

    def _once(self, name: str, kind: type[_R], measure: Callable[[], _R]) -> _R:
        """The result of a step, measured unless it is there."""
        path = self.folder / "results" / f"{name}.json"
        clock = path.with_suffix(".seconds")
        if not path.exists():
            started = time.monotonic()
            result = measure()
            clock.parent.mkdir(exist_ok=True)
            clock.write_text(f"{time.monotonic() - started:.3f}", encoding="utf-8")
            write_result(result, path)
        self.seconds[name] = float(clock.read_text(encoding="utf-8"))
        return read_result(path, kind)


def _grouped(study: StudyConfig, cell: Cell) -> dict[tuple[str, str, str, int, int], list[str]]:
    """(model, weights, runtime, steps, n) -> quantizers: each group shares one float model's samples."""
    groups: dict[tuple[str, str, str, int, int], list[str]] = {}
    for spec, model, weights in cell.chosen(study.images):
        key = (model, weights, spec.runtime, spec.steps, spec.n or study.n)
        quantizers = groups.setdefault(key, [])
        quantizers += [name for name in spec.quantizers if name not in quantizers]
    return groups


def _trained(checkpoint: Checkpoint) -> TrainedModel:
    about = checkpoint.provenance
    return TrainedModel(
        digest=checkpoint.digest or "",
        steps=about.get("steps_done"),
        passes=about.get("gradient_passes"),
        heldout_loss=about.get("heldout_loss"),
    )
