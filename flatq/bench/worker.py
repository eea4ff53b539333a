"""A model that is open in a process of its own, so that its memory is its own and no runtime's thread pool
stands in another's way."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from flatq.bench.timing import Timing, settle, timed
from flatq.errors import FlatqError, ModelError

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
        wanted: `path`, `runtime` and `seed`, and further arguments of `flatq.models.open_model`.

    Raises:
        FlatqError: whatever opening the model raised there; `ModelError` where the process died.
    """

    def __init__(self, label: str, wanted: dict[str, Any]) -> None:
        self._label = label
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the process)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._output.name, wanted), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.opened: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, batch: int) -> Timing:
        """Run it once; at its first call with a batch size it runs once more before, unmeasured."""
        self._pipe.send(batch)
        timing: Timing = self._receive()
        return timing

    def memory(self) -> tuple[int, int] | None:
        """As `Watermark.read`, from before the model was opened."""
        self._pipe.send(None)
        found: tuple[int, int] | None = self._receive()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            words = Path(self._output.name).read_text("utf-8", "replace").split()
            raise ModelError(
                f"the process that ran {self._label} exited without reporting an error",
                expected="answers until it is closed",
                got=f"exit code {self._process.exitcode}" + (f": {' '.join(words)[-300:]}" if words else ""),
                next_step="leave that runtime out with --runtime, and check the memory of the machine",
            ) from error
        if isinstance(answer, FlatqError):
            raise answer
        return answer


def _serve(pipe: Connection, output: str, wanted: dict[str, Any]) -> None:
    """The process: sends what it opened, then for each batch size a timing, and for None the memory."""
    with open(output, "wb") as file:  # noqa: PTH123  (a descriptor is what is wanted)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        _answer(pipe, **wanted)
    except FlatqError as error:
        pipe.send(error)
    except EOFError:
        pass  # closed


def _answer(pipe: Connection, *, path: str, runtime: dict[str, Any], seed: int, **options: Any) -> None:
    from flatq.backends import RuntimeSettings
    from flatq.models import open_model

    settings = RuntimeSettings(**runtime)
    for name in _LIBRARIES[settings.runtime or ""]:
        with contextlib.suppress(ImportError):  # opening reports it
            importlib.import_module(name)
    mark = Watermark()
    model = open_model(Path(path), settings, **options)
    inputs: dict[int, Any] = {}
    with model.runtime as opened:
        pipe.send(
            {
                "identity": opened.identity,
                "precision": model.precision,
                "weights": model.weights,
                "digest": model.digest,
                "size_bytes": model.size_bytes,
            }
        )
        while True:
            batch = pipe.recv()
            if batch is None:
                pipe.send(mark.read())
                continue
            if batch not in inputs:
                inputs[batch] = _inputs(model, batch, seed)
                if not np.isfinite(opened(*inputs[batch])).all():
                    raise ModelError(
                        f"{model.name} yields values that are not finite on {settings.runtime}",
                        expected="finite outputs for noise",
                        got="NaN or infinity",
                        next_step="check the model with `flatq sample`; its latency means nothing",
                    )
            timing = timed(lambda given=inputs[batch]: opened(*given))  # type: ignore[misc]
            settle()
            pipe.send(timing)


def _inputs(model: Any, batch: int, seed: int) -> tuple[Any, ...]:
    """Noise, timesteps all over the process and, with classes, labels round-robin."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *model.image_shape)).astype(np.float32)
    t = rng.integers(0, model.process.train_steps, batch).astype(np.int64)
    cond = {} if model.classes is None else model.classes.condition(range(batch))
    return x, t, cond
