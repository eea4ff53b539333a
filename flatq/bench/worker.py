"""A model that is open in a process of its own, so that its memory is its own and no runtime's thread pool
stands in another's way."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from flatq.backends import RuntimeSettings
from flatq.bench.timing import Timing, settle, timed
from flatq.errors import ModelError
from flatq.models import Model, open_model

__all__ = ["Watermark", "Worker"]

_LIBRARIES = {
    "torch": ("torch", "flatq.checkpoint", "flatq.network", "flatq.quantize.lowering", "flatq.runtime.torch"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""Imported before the memory is looked at: what is measured is the model's, not the library's."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watermark:
    """How far the resident memory of this process rises above what it is now, on Linux.

    The system's own high-water mark is set back first, so that what came before does not hide it; where that
    is not allowed, it includes the imports. (The maximum of `getrusage` would even include the process that
    started this one.)
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        self._before = _read("VmRSS")

    def read(self) -> tuple[int, int] | None:
        """(bytes at the start, high-water mark since), or None where the system does not tell."""
        peak = _read("VmHWM")
        return None if self._before is None or peak is None else (self._before, peak)


def _read(key: str) -> int | None:
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else []
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((1024 * int(number) for number in found), None)


class Worker:
    """Opens a model in a process of its own and calls it there.

    Args:
        label: for messages.
        path, runtime, weights: as `flatq.models.open_model`.
        seed: of the inputs.

    Raises:
        FlatqError: whatever opening the model raised there; `ModelError` where the process died.
    """

    def __init__(
        self, label: str, path: Path, runtime: RuntimeSettings, weights: str | None = None, seed: int = 0
    ) -> None:
        self._label = label
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the process)
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _redirect, (self._output.name,))
        try:
            self.opened: dict[str, Any] = self._run(_open, path, runtime, weights, seed)
        except BaseException:
            self.close()
            raise

    def call(self, batch: int) -> Timing:
        """Run it once; at its first call with a batch size it runs once more before, unmeasured."""
        timing: Timing = self._run(_call, batch)
        return timing

    def memory(self) -> tuple[int, int] | None:
        """As `Watermark.read`, from before the model was opened."""
        found: tuple[int, int] | None = self._run(_memory)
        return found

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()
        self._output.close()

    def _run(self, function: Any, *arguments: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            words = Path(self._output.name).read_text("utf-8", "replace").split()
            raise ModelError(
                f"the process that ran {self._label} exited without reporting an error",
                expected="answers until it is closed",
                got=" ".join(words)[-300:] or "no output",
                next_step="leave that runtime out with --runtime, and check the memory of the machine",
            ) from error


# what follows runs in the worker's process


@dataclass
class _Opened:
    model: Model
    seed: int
    mark: Watermark
    inputs: dict[int, Any] = field(default_factory=dict)


_opened: _Opened


def _redirect(output: str) -> None:
    with open(output, "wb") as file:  # noqa: PTH123  (a descriptor is what is wanted)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _open(path: Path, runtime: RuntimeSettings, weights: str | None, seed: int) -> dict[str, Any]:
    global _opened
    for name in _LIBRARIES[runtime.runtime or ""]:
        with contextlib.suppress(ImportError):  # opening reports it
            importlib.import_module(name)
    mark = Watermark()
    model = open_model(path, runtime, weights=weights).__enter__()
    _opened = _Opened(model, seed, mark)
    about = {name: getattr(model, name) for name in ("precision", "weights", "digest", "size_bytes")}
    return {"identity": model.runtime.identity, **about}


def _call(batch: int) -> Timing:
    model, inputs = _opened.model, _opened.inputs
    if batch not in inputs:
        inputs[batch] = _inputs(model, batch, _opened.seed)
        if not np.isfinite(model.runtime(*inputs[batch])).all():
            raise ModelError(
                f"{model.name} yields values that are not finite on {model.runtime.identity['runtime']}",
                expected="finite outputs for noise",
                got="NaN or infinity",
                next_step="check the model with `flatq sample`; its latency means nothing",
            )
    timing = timed(lambda: model.runtime(*inputs[batch]))
    settle()
    return timing


def _memory() -> tuple[int, int] | None:
    return _opened.mark.read()


def _inputs(model: Model, batch: int, seed: int) -> tuple[Any, ...]:
    """Noise, timesteps all over the process and, with classes, labels round-robin."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *model.image_shape)).astype(np.float32)
    t = rng.integers(0, model.process.train_steps, batch).astype(np.int64)
    cond = {} if model.classes is None else model.classes.condition(range(batch))
    return x, t, cond
