"""The process that runs one model: `python -m flatq.bench.worker`, told what to do by lines of JSON.

The first line names the model, each further one a batch size to run once, or asks for the memory. Each gets
one line as the answer. Apart from the others, so that its memory is its own and no runtime's thread pool
stands in another's way.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from flatq.bench.memory import Watermark
from flatq.bench.timing import settle, timed
from flatq.errors import FlatqError, ModelError

__all__ = ["main"]

_LIBRARIES = {
    "torch": ("torch", "flatq.checkpoint", "flatq.network", "flatq.quantize.lowering", "flatq.runtime.torch"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""Imported before the memory is looked at: what is measured is the model's, not the library's."""


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    with answers:
        try:
            _serve(sys.stdin, answers)
        except FlatqError as error:
            _answer(
                answers,
                {
                    "error": type(error).__name__,
                    "what": error.what,
                    "expected": error.expected,
                    "got": error.got,
                    "next_step": error.next_step,
                },
            )


def _answer(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _serve(questions: IO[str], answers: IO[str]) -> None:
    from flatq.backends import RuntimeSettings
    from flatq.models import open_model

    wanted = json.loads(next(questions))
    settings = RuntimeSettings(**wanted.pop("runtime"))
    for name in _LIBRARIES[settings.runtime or ""]:
        try:
            importlib.import_module(name)
        except ImportError:  # opening says it better
            break
    mark = Watermark()
    seed = wanted.pop("seed")
    model = open_model(Path(wanted.pop("path")), settings, **wanted)
    inputs: dict[int, Any] = {}
    with model.runtime as runtime:
        _answer(
            answers,
            {
                "identity": runtime.identity,
                "precision": model.precision,
                "weights": model.weights,
                "digest": model.digest,
                "size_bytes": model.size_bytes,
            },
        )
        for line in questions:
            question = json.loads(line)
            if "batch" not in question:
                _answer(answers, {"memory": mark.read()})
                continue
            batch = question["batch"]
            if batch not in inputs:
                inputs[batch] = _inputs(model, batch, seed)
                if not np.isfinite(runtime(*inputs[batch])).all():
                    raise ModelError(
                        f"{model.name} yields values that are not finite on {settings.runtime}",
                        expected="finite outputs for noise",
                        got="NaN or infinity",
                        next_step="a time of such a run says nothing: check the model with `flatq sample`",
                    )
            timing = timed(lambda given=inputs[batch]: runtime(*given))  # type: ignore[misc]
            settle()
            _answer(answers, {"wall_ms": timing.wall_ms, "cpu_ms": timing.cpu_ms})


def _inputs(model: Any, batch: int, seed: int) -> tuple[Any, ...]:
    """Noise, timesteps all over the process and, with classes, labels in turn."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *model.image_shape)).astype(np.float32)
    t = rng.integers(0, model.process.train_steps, batch).astype(np.int64)
    cond = {} if model.classes is None else model.classes.condition(range(batch))
    return x, t, cond


if __name__ == "__main__":
    main()
