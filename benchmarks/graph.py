"""What tuning the graph is worth on ONNX Runtime: latencies of one network's exports, side by side.

Six models from the same weights: the float export plain and tuned (`flatq.export.rewrites`), the w8a8 export
plain and tuned, and ONNX Runtime's own `quantize_static` on either float export. They run interleaved, round
by round, so that a busy machine slows all of them alike. Wall time and the process's CPU time are both kept;
the goals are judged by the first: the median of its ratios within rounds.

    python benchmarks/graph.py [--checkpoint ckpt.pt] [--rounds 20] [-o graph.json]

Without a checkpoint: a UNet of 7.3 million parameters, 3 x 32 x 32, with random weights. Where a goal is
missed, the operators that the time goes to are printed; the JSON holds them always.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import open_checkpoint
from peers import quantize_static

from flatq.bench.machine import this_machine
from flatq.bench.timing import Ratio, latency, paired, race, timed

__all__ = ["main"]

GOALS = {"fp32": 2.0, "fp32 tuned": 1.5}
"""How many times as fast tuned int8 is to be, at batch 8."""

PLAIN, TUNED, QPLAIN, QTUNED = "fp32", "fp32 tuned", "int8", "int8 tuned"


def _models(checkpoint: Any, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """The six files, and what tuning did."""
    from flatq.calib.inputs import CalibrationPlan
    from flatq.export.onnx import to_onnx
    from flatq.export.rewrites import summary, tune
    from flatq.quantize.lowering import lower
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.quantize.trace import trace
    from flatq.recipe import PRESETS

    config = checkpoint.model
    artifact = quantize_checkpoint(
        checkpoint, PRESETS["w8a8"], calibration=CalibrationPlan(images=2, steps=4)
    )
    graphs = {PLAIN: trace(checkpoint.network(), config), QPLAIN: lower(artifact, "onnxruntime").graph}
    paths, done = {}, {}
    for name, graph in graphs.items():
        model = to_onnx(graph, config)
        tuned = f"{name} tuned"
        for key in (name, tuned):
            if key == tuned:
                done[name] = summary(tune(model, "onnxruntime"))
            paths[key] = folder / f"{key.replace(' ', '_')}.onnx"
            onnx.save(model, paths[key])
    for name in (PLAIN, TUNED):
        key = f"quantize_static, {name}"
        paths[key] = folder / f"{paths[name].stem}_static.onnx"
        model = onnx.load(paths[name])
        quantize_static(paths[name], paths[key], [_feeds(model, 2, seed) for seed in range(4)])
    return paths, done


def _feeds(model: onnx.ModelProto, n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    feeds = {
        "x": rng.standard_normal((n, *sizes)).astype(np.float32),
        "t": rng.integers(0, 1000, n),
        "label": np.zeros(n, np.int64),
    }
    return {value.name: feeds[value.name] for value in model.graph.input}


def _session(path: Path, threads: int, profile: Path | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _race(paths: dict[str, Path], feeds: dict[str, Any], threads: int, rounds: int) -> dict[str, Any]:
    """ms per call: of the wall time and of the CPU time, and the times by which int8 tuned is faster."""
    sessions = {name: _session(path, threads) for name, path in paths.items()}
    runners = {name: partial(timed, partial(session.run, None, feeds)) for name, session in sessions.items()}
    found = race(runners, rounds, warmup=2)
    wall = {name: [each.wall_ms for each in times] for name, times in found.items()}
    return {
        name: {
            "wall": latency(wall[name]).model_dump(),
            "cpu": latency([each.cpu_ms for each in found[name]]).model_dump(),
            "times_int8_tuned": _dump(paired(wall[name], wall[QTUNED])),
        }
        for name in paths
    }


def _dump(ratio: Ratio | None) -> dict[str, float]:
    assert ratio is not None, "the clock saw no time pass"
    return ratio.model_dump()


def _profile(path: Path, feeds: dict[str, Any], folder: Path, runs: int = 5) -> list[dict[str, Any]]:
    """Operators by time, each node at its fastest of some runs, one thread."""
    session = _session(path, 1, folder / "profile")
    for _ in range(runs):
        session.run(None, feeds)
    file = Path(session.end_profiling())
    nodes: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in json.loads(file.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    file.unlink()
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for (kind, _), times in nodes.items():
        kinds[kind].append(min(times))
    total = sum(map(sum, kinds.values()))
    rows = [
        {"operator": kind, "nodes": len(times), "ms": sum(times), "share": sum(times) / total}
        for kind, times in kinds.items()
    ]
    return sorted(rows, key=lambda row: -float(row["ms"]))


def main() -> None:
    """Build, race, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a flatq checkpoint instead of the random UNet")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("-o", "--out", type=Path, default=Path("graph.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flatq-") as name:
        folder = Path(name)
        checkpoint = open_checkpoint(options.checkpoint, folder)
        paths, done = _models(checkpoint, folder)
        report: dict[str, Any] = {
            "machine": this_machine().model_dump(mode="json"),
            "parameters": sum(value.numel() for value in checkpoint.network().parameters()),
            "rewrites": done,
            "size_bytes": {key: path.stat().st_size for key, path in paths.items()},
            "latencies": [],
        }
        model = onnx.load(paths[PLAIN])
        for threads in options.threads:
            for batch in options.batches:
                found = _race(paths, _feeds(model, batch), threads, options.rounds)
                report["latencies"].append({"batch": batch, "threads": threads, "models": found})
                print(
                    f"\nbatch {batch}, {threads} threads     median     p90     min  CPU min   x int8 tuned"
                )
                for key, row in found.items():
                    wall, cpu = row["wall"], row["cpu"]
                    print(
                        f"{key:22s} {wall['median_ms']:10.1f} {wall['p90_ms']:7.1f} {wall['min_ms']:7.1f} "
                        f"{cpu['min_ms']:8.1f} {row['times_int8_tuned']['median']:10.2f}"
                    )
        feeds = _feeds(model, 8)
        report["profiles"] = {key: _profile(path, feeds, folder) for key, path in paths.items()}
    missed = []
    for entry in report["latencies"]:
        for key, goal in GOALS.items():
            reached = entry["models"][key]["times_int8_tuned"]["median"]
            if entry["batch"] == 8 and reached < goal:
                missed.append(f"{key}, {entry['threads']} threads: {reached:.2f}")
    report["goals"] = {"at_batch_8": GOALS, "missed": missed}
    print("\ngoals at batch 8: " + ("all reached" if not missed else "missed: " + "; ".join(missed)))
    for key in (QTUNED, TUNED) if missed else ():
        print(f"\n{key}, batch 8, one thread: where the time goes")
        for row in report["profiles"][key][:12]:
            print(f"  {row['operator']:24s} x{row['nodes']:4d} {row['ms']:8.2f} ms {row['share']:6.1%}")
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    main()
