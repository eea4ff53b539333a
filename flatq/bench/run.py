"""A whole benchmark: open every model in a process of its own, call them in turns, sum up."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flatq.backends import RUNTIMES, check_settings
from flatq.bench.models_on_runtimes import BenchTask, ModelOnRuntime, models_on_runtimes
from flatq.bench.result import BenchResult, Entry, LeftOut, Machine, Measured, Memory, Speedup
from flatq.bench.timing import Timing, latency, paired, race
from flatq.bench.worker import Worker
from flatq.deployment import is_float
from flatq.errors import MissingRuntimeError, UsageError
from flatq.progress import Note, Progress
from flatq.report.environment import environment
from flatq.runtime.base import default_threads

__all__ = ["bench", "sum_up", "this_machine"]


def bench(task: BenchTask, progress: Progress = lambda *_: None, note: Note = lambda _: None) -> BenchResult:
    """Measure every model of a task on every runtime that is there, interleaved.

    Args:
        note: called with what is exported for the run, and what is not taken.

    Raises:
        UsageError: an unknown runtime or option of it, nothing to measure.
        MissingRuntimeError: a runtime that the task names is not there.
        InputError: a path or a model that cannot be run.
    """
    runtimes = task.runtimes or RUNTIMES
    for runtime in runtimes:
        # OpenVINO's own settings are refused where it is not among the runtimes
        offered = "openvino" in runtimes
        check_settings(task.runtime.on(runtime) if offered else replace(task.runtime, runtime=runtime))
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="flatq-bench-") as scratch, ExitStack() as stack:
        models, left_out = models_on_runtimes(task, Path(scratch), note)
        workers: dict[ModelOnRuntime, Worker] = {}
        for number, model in enumerate(models):
            progress("opening", number, len(models))
            settings = task.runtime.on(model.runtime)
            try:
                worker = Worker(model.label, model.path, settings, model.weights, task.seed)
            except MissingRuntimeError as error:
                if task.runtimes is not None:
                    raise
                left_out.append(LeftOut(label=model.label, reason=error.what))
            else:
                workers[model] = stack.enter_context(closing(worker))
        if not workers or not task.batches:
            raise UsageError(
                "there is nothing to measure",
                expected="a model, a runtime that runs it, and a batch size",
                got="; ".join(f"{each.label}: {each.reason}" for each in left_out) or "no path",
                next_step="flatq doctor says what is installed",
            )
        timings: dict[ModelOnRuntime, dict[int, list[Timing]]] = {model: {} for model in workers}
        calls = task.rounds + task.warmup
        for batch in task.batches:
            runners = {model: partial(worker.call, batch) for model, worker in workers.items()}
            report = partial(lambda batch, done: progress(f"batch {batch}", done, calls), batch)
            for model, found in race(runners, task.rounds, task.warmup, report).items():
                timings[model][batch] = found
        opened = {model: worker.opened for model, worker in workers.items()}
        memory = {model: worker.memory() for model, worker in workers.items()}
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


def this_machine() -> Machine:
    """The machine as it is now."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return Machine(
        environment=environment(),
        int8_instructions=tuple(sorted(f for f in flags if "vnni" in f or "amx_int8" in f)),
        cores=default_threads(),
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
    )


def sum_up(
    opened: dict[ModelOnRuntime, dict[str, Any]],
    timings: dict[ModelOnRuntime, dict[int, list[Timing]]],
    memory: dict[ModelOnRuntime, tuple[int, int] | None],
) -> tuple[Entry, ...]:
    """The entries of a result; a quantized model is compared with its family's float one on its runtime.

    Args:
        opened: `Worker.opened`: identity, precision, weights, digest, size_bytes.
        timings: by batch size, in the order of the rounds.
        memory: as `Worker.memory`.
    """
    floats = {(m.family, m.runtime): m for m in reversed(opened) if is_float(m.precision)}
    entries = []
    for model, about in opened.items():
        reference = None if is_float(model.precision) else floats.get((model.family, model.runtime))
        held = memory[model]
        entries.append(
            Entry(
                label=model.label,
                model=model.name,
                precision=about["precision"],
                weights=about["weights"],
                digest=about["digest"],
                runtime=about["identity"],
                source=model.source,
                size_bytes=about["size_bytes"],
                memory=None
                if held is None
                else Memory(before_bytes=held[0], peak_bytes=held[1], model_bytes=max(0, held[1] - held[0])),
                measured=tuple(
                    _measured(
                        batch, found, (reference.label, timings[reference][batch]) if reference else None
                    )
                    for batch, found in timings[model].items()
                ),
            )
        )
    return tuple(entries)


def _measured(batch: int, found: list[Timing], against: tuple[str, list[Timing]] | None) -> Measured:
    wall, cpu = [each.wall_ms for each in found], [each.cpu_ms for each in found]
    speedup = None
    if against is not None:
        label, floats = against
        speedup = Speedup(
            against=label,
            wall=paired([each.wall_ms for each in floats], wall),
            cpu=paired([each.cpu_ms for each in floats], cpu),
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
