"""What quantizing costs: wall and CPU time and peak memory of each method, each in a process of its own.

The network is a UNet of 6.8 million parameters, 3 x 32 x 32, with random weights: the time depends on shapes
alone. Recipe w4a8, two threads, the calibration that `flatq quantize` has by default.

    python benchmarks/quantize.py [rtn gptq adaround] [--fraction 0.05] [-o FILE]

`--fraction` runs AdaRound with that fraction of its iterations and extrapolates: the learning's seconds are
divided by it, the rest stays. Such a number is marked as extrapolated, and no goal counts as met by it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import UNET, mark, open_checkpoint, write_json

import flatq

__all__ = ["main"]

GOALS_S = {"rtn": 60.0, "gptq": 300.0, "adaround": 1800.0}
GOAL_BYTES = 4 * 2**30

UNET_6_8M = {name: value for name, value in UNET.items() if name != "resnet_time_scale_shift"}


class _Clock:
    """Wall and CPU seconds of each stage, told by the progress of `flatq.quantize`."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self._last = (time.perf_counter(), time.process_time())

    def __call__(self, what: str, done: int, total: int) -> None:
        now = (time.perf_counter(), time.process_time())
        spent = self.stages.setdefault(what, [0.0, 0.0])
        for i in range(2):
            spent[i] += now[i] - self._last[i]
        self._last = now


def _measure(method: str, threads: int, fraction: float) -> dict[str, Any]:
    """One method in this process."""
    from flatq.quantize.methods import AdaRound, WeightRounding

    options = AdaRound()
    few = options.model_copy(update={"iterations": max(round(options.iterations * fraction), 1)})
    rounding = WeightRounding.model_validate({"method": method, "adaround": few})
    settings = flatq.QuantizeSettings(flatq.recipe_for_bits(4), rounding, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(None, Path(folder), UNET_6_8M)
        parameters = sum(value.numel() for value in checkpoint.weights["raw"].values())
        clock = _Clock()
        wall, cpu = time.perf_counter(), time.process_time()
        quantized = flatq.quantize(checkpoint, settings, Path(folder) / "w4a8", progress=clock)
        found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    result: dict[str, Any] = {
        **found,
        "stages_s": {name: {"wall": spent[0], "cpu": spent[1]} for name, spent in clock.stages.items()},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": parameters,
        "calibration": quantized.manifest.calibration.model_dump(mode="json"),
        "rounding": rounding.model_dump(mode="json"),
    }
    if method == "adaround" and few.iterations < options.iterations:
        factor = options.iterations / few.iterations - 1
        learning = clock.stages["learning to round"]
        result["extrapolated"] = {
            "iterations": options.iterations,
            "wall_s": found["wall_s"] + factor * learning[0],
            "cpu_s": found["cpu_s"] + factor * learning[1],
        }
    return result


def _verdict(method: str, result: dict[str, Any]) -> str:
    """What the numbers say about the goals."""
    seconds = result.get("extrapolated", result)
    memory = f"{result['peak_rss_bytes'] / 2**30:.2f} GiB"
    text = f"{method:9} wall {seconds['wall_s']:.0f} s, CPU {seconds['cpu_s']:.0f} s, peak {memory}"
    goal = f"goal {GOALS_S[method]:.0f} s"
    if "extrapolated" in result:
        return f"{text}; extrapolated, so not seen ({goal})"
    met = seconds["wall_s"] < GOALS_S[method] and result["peak_rss_bytes"] < GOAL_BYTES
    return f"{text}; {'met' if met else 'missed'} ({goal})"


def main() -> None:
    """Measure the methods one after the other, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(GOALS_S), metavar="METHOD")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "-o", "--out", type=Path, help="a JSON file; methods not measured now keep their entry"
    )
    options = parser.parse_args()
    if not set(options.methods) <= set(GOALS_S) or not 0 < options.fraction <= 1:
        parser.error(f"methods: {', '.join(GOALS_S)}; --fraction: above 0, at most 1")
    if options.in_this_process:
        print(json.dumps(_measure(options.methods[0], options.threads, options.fraction)))
        return
    old = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else {}
    results: dict[str, Any] = dict(old.get("methods", {}))
    for method in options.methods:
        marked = {**mark(), "threads": options.threads}
        rest = ("--in-this-process", "--threads", str(options.threads), "--fraction", str(options.fraction))
        child = subprocess.run(
            [sys.executable, __file__, method, *rest], stdout=subprocess.PIPE, text=True, check=True
        )
        result = json.loads(child.stdout.splitlines()[-1])
        results[method] = {**result, **marked, "load_average_after": os.getloadavg()}
        print(_verdict(method, result), flush=True)
    content = {"goals": {"wall_s": GOALS_S, "peak_rss_bytes": GOAL_BYTES}, "methods": results}
    write_json(options.out, content)


if __name__ == "__main__":
    main()
