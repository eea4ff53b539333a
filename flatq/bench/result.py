"""What bench.json holds, and reading and writing it. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flatq.bench.timing import Latency, Ratio
from flatq.deployment import is_float
from flatq.errors import DataError, one_line
from flatq.files import writing
from flatq.report.html.latency import Speed
from flatq.report.html.plots import TimeBar, save_time_bars
from flatq.report.model import Environment
from flatq.version import __version__

__all__ = [
    "BENCH_FILE",
    "PLOT_FILE",
    "BenchResult",
    "Entry",
    "LeftOut",
    "Machine",
    "Measured",
    "Memory",
    "Speedup",
    "read_result",
    "save_plot",
    "speeds_of",
    "write_result",
]

BENCH_FILE, PLOT_FILE = "bench.json", "bench.png"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Part):
    """The machine that a measurement was made on.

    Attributes:
        int8_instructions: of the processor, as the system names them; empty where it names none.
        cores: that this process may use.
        load_average: over 1, 5 and 15 minutes when the measurement began; None where the system has none.
    """

    environment: Environment
    int8_instructions: tuple[str, ...]
    cores: int
    load_average: tuple[float, float, float] | None


class Memory(_Part):
    """Resident memory of the process that ran one model and nothing else.

    Attributes:
        before_bytes: with Python and the runtime's libraries loaded, the model not yet opened.
        peak_bytes: the high-water mark from there to the end: opening, and running every batch size.
        model_bytes: what lies between. In torch, lowering an artifact is part of opening it. Memory of a GPU
            is not in it.
    """

    before_bytes: int = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    model_bytes: int = Field(ge=0)


class Speedup(_Part):
    """How many times as fast as the float model on the same runtime, paired by rounds.

    Attributes:
        against: the float entry's label.
        wall, cpu: by time on the wall, and by the process's CPU time, which other work on the machine moves
            less; None where a clock saw no time pass.
    """

    against: str
    wall: Ratio | None
    cpu: Ratio | None


class Measured(_Part):
    """One model at one batch size.

    Attributes:
        per_image_ms: the median by image.
        wall, cpu: of one call.
        speedup: None for a float model, and where there is no float model on that runtime.
        wall_ms, cpu_ms: every call that counts, in the order of the rounds.
    """

    batch: int = Field(gt=0)
    per_image_ms: float
    wall: Latency
    cpu: Latency
    speedup: Speedup | None
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]


class Entry(_Part):
    """One model on one runtime.

    Attributes:
        label: model and runtime.
        precision: fp32, fp16, bf16 or the recipe's name.
        runtime: its identity: version, device, threads, precision of the floats.
        source: the folder or file that ran, or that it was exported for this run.
        size_bytes: of the model files; of a checkpoint, of its chosen weights.
        memory: None where the system does not tell.
    """

    label: str
    model: str
    precision: str
    weights: str
    digest: str
    runtime: dict[str, Any]
    source: str
    size_bytes: int = Field(ge=0)
    memory: Memory | None
    measured: tuple[Measured, ...]

    @property
    def is_float(self) -> bool:
        """Whether it is not quantized."""
        return is_float(self.precision)


class LeftOut(_Part):
    """What was not measured, and why."""

    label: str
    reason: str


class BenchResult(_Part):
    """All of bench.json. threads: asked for, None for all cores. rounds, warmup: calls that count, and calls
    before them, of every model at every batch size. seed: of the inputs."""

    format: Literal["flatq-bench"] = "flatq-bench"
    version: Literal[1] = 1
    created_with: str = __version__
    machine: Machine
    batches: tuple[int, ...]
    threads: int | None
    rounds: int = Field(gt=0)
    warmup: int = Field(ge=0)
    seed: int
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]


def write_result(result: BenchResult, folder: Path) -> Path:
    """Write bench.json into a folder (made where absent), atomically.

    Raises:
        DataError: the folder cannot be written.
    """
    path = folder / BENCH_FILE
    with writing(path) as temporary:
        temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def speeds_of(result: BenchResult) -> list[Speed]:
    """Of each entry, for a report's plot of latency against drift."""
    return [
        Speed(
            entry.digest,
            str(entry.runtime.get("runtime")),
            entry.is_float,
            {measured.batch: measured.per_image_ms for measured in entry.measured},
        )
        for entry in result.entries
    ]


def save_plot(result: BenchResult, path: Path) -> None:
    """Write a PNG, atomically: the latencies as bars, and how many times as fast as float each model is."""
    bars: dict[int, list[TimeBar]] = {}
    for entry in result.entries:
        for found in entry.measured:
            ratio = None if found.speedup is None else found.speedup.wall
            text = f"{found.per_image_ms:.2f}" + ("" if ratio is None else f"   x {ratio.median:.2f}")
            bar = TimeBar(
                entry.label, found.per_image_ms, found.wall.p90_ms / found.batch, text, entry.is_float
            )
            bars.setdefault(found.batch, []).append(bar)
    save_time_bars(bars, path)


def read_result(path: Path) -> BenchResult:
    """Read a bench.json, or the one in a folder.

    Raises:
        DataError: there is none, or it is not one of this version.
    """
    file = path / BENCH_FILE if path.is_dir() else path
    try:
        return BenchResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(
            f"{file} is not the result of a benchmark",
            expected="format flatq-bench, version 1",
            got=one_line(error),
            next_step="run `flatq bench` again",
        ) from error
