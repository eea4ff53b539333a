"""A whole benchmark: open every model in a process of its own, let them run in turns, sum up."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flatq.backends import RUNTIMES, RuntimeSettings, check_settings
from flatq.bench.machine import this_machine
from flatq.bench.result import BenchResult, Entry, LeftOut, Measured, Memory, Speedup
from flatq.bench.subjects import Subject, find_subjects
from flatq.bench.timing import Timing, latency, paired, race
from flatq.bench.worker import Worker
from flatq.errors import MissingRuntimeError, UsageError
from flatq.progress import Note, Progress

__all__ = ["BenchTask", "bench", "sum_up"]


@dataclass(frozen=True)
class BenchTask:
    """What to measure.

    Attributes:
        paths: artifacts, checkpoints, deployment folders.
        runtimes: those to take; None for all that are installed.
        batches: sizes, each at least 1.
        baseline: float checkpoint of the artifacts; by default the one beside each.
        average: weights of the checkpoints among the paths.
        runtime: device, precision, threads and hint of every runtime; precision and hint apply to OpenVINO.
        rounds, warmup: as `flatq.bench.timing.race`.
        seed: of the inputs, which are noise.
    """

    paths: tuple[Path, ...]
    runtimes: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 8)
    baseline: Path | None = None
    average: str | None = None
    runtime: RuntimeSettings = RuntimeSettings()
    rounds: int = 30
    warmup: int = 3
    seed: int = 0


def bench(task: BenchTask, progress: Progress = lambda *_: None, note: Note = lambda _: None) -> BenchResult:
    """Measure every model of a task on every runtime that is there, interleaved.

    Args:
        note: told what is exported for the run, and what is not taken.

    Raises:
        UsageError: a number below 1, an unknown runtime, nothing to measure.
        MissingRuntimeError: a runtime that the task names is not there.
        InputError: a path or a model that cannot be run.
    """
    _check(task)
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="flatq-bench-") as scratch, ExitStack() as stack:
        subjects = find_subjects(
            task.paths,
            Path(scratch),
            runtimes=task.runtimes,
            baseline=task.baseline,
            average=task.average,
            batches=task.batches,
            note=note,
        )
        left_out = [LeftOut(label=label, reason=reason) for label, reason in subjects.left_out]
        workers: dict[Subject, Worker] = {}
        for number, subject in enumerate(subjects.found):
            progress("opening", number, len(subjects.found))
            try:
                workers[subject] = stack.enter_context(_open(subject, task))
            except MissingRuntimeError as error:
                if task.runtimes is not None:
                    raise
                left_out.append(LeftOut(label=subject.label, reason=error.what))
        if not workers:
            raise UsageError(
                "there is nothing to measure",
                expected="a model and a runtime that runs it",
                got="; ".join(f"{each.label}: {each.reason}" for each in left_out) or "no path",
                next_step="flatq doctor says what is installed",
            )
        timings: dict[Subject, dict[int, list[Timing]]] = {subject: {} for subject in workers}
        calls = task.rounds + task.warmup
        for batch in task.batches:
            runners = {subject: partial(worker.call, batch) for subject, worker in workers.items()}
            report = partial(lambda batch, done: progress(f"batch {batch}", done, calls), batch)
            for subject, found in race(runners, task.rounds, task.warmup, report).items():
                timings[subject][batch] = found
        opened = {subject: worker.opened for subject, worker in workers.items()}
        memory = {subject: worker.memory() for subject, worker in workers.items()}
    return BenchResult(
        machine=machine,
        batches=task.batches,
        threads=task.runtime.threads,
        rounds=task.rounds,
        warmup=task.warmup,
        seed=task.seed,
        entries=sum_up(opened, timings, memory),
        left_out=tuple(left_out),
    )


def _check(task: BenchTask) -> None:
    numbers = [("--batch", n) for n in task.batches or (0,)]
    for option, number in (*numbers, ("--rounds", task.rounds)):
        if number < 1:
            raise UsageError(f"{option} is not valid", expected="at least 1", got=str(number))
    if task.warmup < 0:
        raise UsageError("--warmup is not valid", expected="at least 0", got=str(task.warmup))
    runtimes = RUNTIMES if task.runtimes is None else task.runtimes
    for runtime in runtimes:
        # OpenVINO's own settings are refused where it is not among the runtimes
        offered = "openvino" in runtimes
        check_settings(task.runtime.on(runtime) if offered else replace(task.runtime, runtime=runtime))


def _open(subject: Subject, task: BenchTask) -> Worker:
    wanted: dict[str, Any] = {
        "path": str(subject.path),
        "runtime": asdict(task.runtime.on(subject.runtime)),
        "weights": subject.average,
        "seed": task.seed,
    }
    return Worker(subject.label, wanted)


def sum_up(
    opened: dict[Subject, dict[str, Any]],
    timings: dict[Subject, dict[int, list[Timing]]],
    memory: dict[Subject, tuple[int, int] | None],
) -> tuple[Entry, ...]:
    """The entries of a result; a quantized model is compared with its family's float one on its runtime.

    Args:
        opened: what the worker said: identity, precision, weights, digest, size_bytes.
        timings: by batch size, in the order of the rounds.
        memory: as `Worker.memory`.
    """
    entries = []
    for subject, said in opened.items():
        place = (subject.family, subject.runtime)
        floats = (s for s in opened if not s.quantized and (s.family, s.runtime) == place)
        reference = next(floats, None) if subject.quantized else None
        measured = tuple(
            _measured(batch, found, reference, timings[reference][batch] if reference else None)
            for batch, found in timings[subject].items()
        )
        held = memory[subject]
        entries.append(
            Entry(
                label=subject.label,
                model=subject.name,
                precision=said["precision"],
                weights=said["weights"],
                digest=said["digest"],
                runtime=said["identity"],
                source=subject.source,
                size_bytes=said["size_bytes"],
                memory=None
                if held is None
                else Memory(before_bytes=held[0], peak_bytes=held[1], model_bytes=max(0, held[1] - held[0])),
                measured=measured,
            )
        )
    return tuple(entries)


def _measured(
    batch: int, found: list[Timing], reference: Subject | None, against: list[Timing] | None
) -> Measured:
    wall, cpu = [each.wall_ms for each in found], [each.cpu_ms for each in found]
    speedup = None
    if reference is not None and against is not None:
        speedup = Speedup(
            against=reference.label,
            wall=paired([each.wall_ms for each in against], wall),
            cpu=paired([each.cpu_ms for each in against], cpu),
        )
    whole = latency(wall)
    return Measured(
        batch=batch,
        per_image_ms=whole.median_ms / batch,
        wall=whole,
        cpu=latency(cpu),
        speedup=speedup,
        wall_ms=tuple(wall),
        cpu_ms=tuple(cpu),
    )
