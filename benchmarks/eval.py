"""How much of `flatq eval`'s wall time is spent inside the runtimes' calls.

    python benchmarks/eval.py [-n 64] [--batch-size 32] [--threads 1] [--baseline-runtime torch] [-o out.json]

A UNet of 7.3 million parameters, 3 x 32 x 32, with random weights: float in torch (or on ONNX Runtime)
against int8 on ONNX Runtime, 20 steps, features by a small network of random weights. The goal is 90 %, from
the start of the process to the report, imports and opening the models counted in; what the rest goes to is
kept by name. A small -n is the hard case: what does not grow with it weighs more. Then a second command
judges the same samples by another gate.
"""

from __future__ import annotations

import time

_BEGIN = time.perf_counter()  # before the imports, which are counted

import argparse  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

import flatq.assess  # noqa: E402
import flatq.sampler  # noqa: E402
from flatq.evaluate import samples  # noqa: E402
from flatq.evaluate.cache import Cache  # noqa: E402
from flatq.evaluate.extractor import Extractor  # noqa: E402
from flatq.process import Process  # noqa: E402

_IMPORTS_S = time.perf_counter() - _BEGIN

__all__ = ["GOAL", "main"]

GOAL = 0.9
STEPS = 20
DIM = 16


class Clock:
    """Wall seconds by the name of what they were spent in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.seconds[name] = 0.0

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed

    def patch(self, name: str, owner: Any, attribute: str) -> None:
        setattr(owner, attribute, self.wrap(name, getattr(owner, attribute)))


def prepare(folder: Path) -> None:
    """ckpt.pt, ckpt.w8a8 with its export, the reference images and the feature network."""
    import onnx.parser
    from common import open_checkpoint

    settings = flatq.QuantizeSettings(
        rounding=flatq.WeightRounding(), calibration=flatq.CalibrationPlan(images=2, steps=4), threads=1
    )
    quantized = flatq.quantize(open_checkpoint(None, folder), settings, folder / "ckpt.w8a8")
    flatq.export(quantized, flatq.ExportSettings(verify=False, threads=1))

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", pixels)
    graph = onnx.parser.parse_graph(
        """net (uint8[N, 3, 32, 32] images) => (float[N, d] features) {
            x = Cast <to = 1> (images)
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, first)
            b = Relu (a)
            c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (b, second)
            e = Relu (c)
            f = GlobalAveragePool (e)
            features = Flatten (f)
        }"""
    )
    for name, shape, scale in (("first", (32, 3, 3, 3), 0.001), ("second", (DIM, 32, 3, 3), 0.06)):
        weights = (scale * rng.standard_normal(shape)).astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "features.onnx")


def first(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """An evaluation of which nothing is cached, in this process, which is to be a new one."""
    clock = Clock()
    opened = clock.wrap("opening", flatq.assess.open_model)

    def open_timed(*args: Any, **kwargs: Any) -> Any:
        model = opened(*args, **kwargs)
        kind = type(model.runtime)
        if not hasattr(kind.__call__, "__wrapped__"):
            kind.__call__ = clock.wrap(f"{kind.__name__}'s calls", kind.__call__)
        return model

    flatq.assess.open_model = open_timed
    clock.patch("reference", flatq.assess, "measure_reference")
    clock.patch("noise", flatq.sampler, "normal")
    clock.patch("updates", Process, "predict")
    clock.patch("updates", Process, "posterior_mean")
    clock.patch("uint8", samples, "to_uint8")
    clock.patch("features", Extractor, "extract")
    clock.patch("cache", Cache, "store")
    clock.patch("statistics", flatq.assess, "compare")
    clock.patch("report", flatq.assess, "write_report")
    task = flatq.EvaluateSettings(
        models=(folder / "ckpt.w8a8",),
        baseline=folder / "ckpt.pt",
        data=str(folder / "data.npz"),
        out=folder / "out",
        sampling=flatq.SamplingSettings(steps=STEPS),
        images=options.n,
        batch_size=options.batch_size,
        features=str(folder / "features.onnx"),
        runtime=flatq.RuntimeSettings(threads=options.threads),
        baseline_runtime=flatq.RuntimeSettings(options.baseline_runtime),
        max_drift=100.0,
    )
    report = flatq.evaluate(task)
    wall = time.perf_counter() - _BEGIN
    inside = sum(spent for name, spent in clock.seconds.items() if name.endswith("calls"))
    clock.seconds["imports"] = _IMPORTS_S
    return {
        "wall_s": wall,
        "runtime_s": inside,
        "fraction": inside / wall,
        "goal": GOAL,
        "ok": inside / wall >= GOAL,
        "seconds": clock.seconds,
        "elsewhere_s": wall - sum(clock.seconds.values()),
        "latency_ms": {"float": report.baseline.latency_ms, "int8": report.models[0].latency_ms},
    }


def second(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Another gate: `flatq eval` from its start to its end."""
    place = ["--baseline", "ckpt.pt", "--data", "data.npz", "--features", "features.onnx", "-o", "again"]
    sizes = ["-n", str(options.n), "--batch-size", str(options.batch_size), "--steps", str(STEPS)]
    if options.baseline_runtime != "torch":
        place += ["--baseline-runtime", options.baseline_runtime]
    start = time.perf_counter()
    gate = ["--threads", str(options.threads), "--max-drift", "0.001"]
    done = subprocess.run(
        [sys.executable, "-m", "flatq", "eval", "ckpt.w8a8", "--fid", *place, *sizes, *gate],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    if done.returncode not in (0, 1, 4):
        sys.exit(done.stderr)
    return {"wall_s": wall, "exit_code": done.returncode}


def main() -> None:
    """Measure, print and write what was found; exit 1 where the goal is missed."""
    from common import mark, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--baseline-runtime", default="torch")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first is not None:
        print(json.dumps(first(options.first, options)))
        return
    marked = mark()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FLATQ_CACHE"] = str(folder / "cache")
        prepare(folder)
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--first", name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = {"first": json.loads(child.stdout.splitlines()[-1]), "second": second(folder, options)}
    content = {
        **marked,
        "settings": {"n": options.n, "batch_size": options.batch_size, "steps": STEPS}
        | {"threads": options.threads, "baseline_runtime": options.baseline_runtime},
        **found,
    }
    print(json.dumps(found, indent=2))
    print(f"{found['first']['fraction']:.1%} inside the runtimes' calls (goal {GOAL:.0%})")
    write_json(options.out, content)
    sys.exit(not found["first"]["ok"])


if __name__ == "__main__":
    main()
