"""What bench.json holds, and reading and writing it. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flatq.bench.machine import Machine
from flatq.bench.timing import Latency, Ratio
from flatq.errors import DataError
from flatq.files import replacing
from flatq.version import __version__

__all__ = [
    "BENCH_FILE",
    "BenchResult",
    "Entry",
    "LeftOut",
    "Measured",
    "Memory",
    "Speedup",
    "read_result",
    "write_result",
]

BENCH_FILE = "bench.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write {path}",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            next_step="choose another with -o",
        ) from error
    return path


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
            got=" ".join(str(error).split())[:200],
            next_step="run `flatq bench` again",
        ) from error
