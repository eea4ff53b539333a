"""What tuning the graph is worth on ONNX Runtime: latencies of one network's exports, side by side.

Six models from the same weights: the float export plain and tuned (`flatq.export.rewrites`), the w8a8 export
plain and tuned, and ONNX Runtime's own `quantize_static` on either float export. They run interleaved, round
by round, so that a busy machine slows all of them alike. Wall time and the process's CPU time are both kept;
the goals are judged by the medians of the first.

    python benchmarks/graph.py [--checkpoint ckpt.pt] [--rounds 20] [-o graph.json]

Without a checkpoint: a UNet of 7.3 million parameters, 3 x 32 x 32, with random weights. Where a goal is
missed, the operators that the time goes to are printed; the JSON holds them always.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

__all__ = ["main"]

GOALS = {"fp32": 2.0, "fp32 tuned": 1.5}
"""How many times as fast tuned int8 is to be, at batch 8."""

PLAIN, TUNED, QPLAIN, QTUNED = "fp32", "fp32 tuned", "int8", "int8 tuned"
UNET = {
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
}


def _checkpoint(folder: Path) -> Any:
    import torch

    from flatq.checkpoint import Checkpoint, ModelConfig, save_checkpoint
    from flatq.network import build_network
    from flatq.process import ProcessConfig

    config = ModelConfig(image_size=32, image_channels=3, out_channels=3, unet=UNET)
    torch.manual_seed(0)
    state = build_network(config).unet.state_dict()
    for name, value in state.items():
        if "norm" in name:  # else all are 1 and 0, which an optimizer might use
            value += 0.1 * torch.randn_like(value)
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": state}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "ckpt.pt")


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
        _quantize_static(paths[name], paths[key])
    return paths, done


def _quantize_static(source: Path, out: Path) -> None:
    """With the settings nearest to w8a8: Q/DQ, weights int8 by channel, activations uint8.

    Its own preparation comes first: without it, it does not know the types behind a GroupNormalization.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            model = onnx.load(source)
            self._left = [_feeds(model, 2, seed) for seed in range(4)]

        def get_next(self) -> Any:
            return self._left.pop() if self._left else None

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


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
    """ms per call: median, p90 and minimum of the wall time, minimum of the CPU time."""
    sessions = {name: _session(path, threads) for name, path in paths.items()}
    wall: dict[str, list[float]] = {name: [] for name in paths}
    cpu: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds + 2):
        for name, session in sessions.items():
            before = time.perf_counter(), time.process_time()
            session.run(None, feeds)
            if turn >= 2:  # the first two warm up
                wall[name].append(1e3 * (time.perf_counter() - before[0]))
                cpu[name].append(1e3 * (time.process_time() - before[1]))
    return {
        name: {
            "median_ms": float(np.median(wall[name])),
            "p90_ms": float(np.quantile(wall[name], 0.9)),
            "min_ms": min(wall[name]),
            "cpu_min_ms": min(cpu[name]),
        }
        for name in paths
    }


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


def _environment() -> dict[str, Any]:
    import onnxruntime as ort
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "machine": platform.machine(),
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "int8_dot_products": sorted(flag for flag in flags if "vnni" in flag or "amx_int8" in flag),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
            "onnx": onnx.__version__,
            "torch": torch.__version__,
        },
    }


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
        if options.checkpoint is None:
            checkpoint = _checkpoint(folder)
        else:
            from flatq.checkpoint import load_checkpoint

            checkpoint = load_checkpoint(options.checkpoint)
        paths, done = _models(checkpoint, folder)
        report: dict[str, Any] = {
            "environment": _environment(),
            "parameters": sum(value.numel() for value in checkpoint.network().parameters()),
            "rewrites": done,
            "size_bytes": {key: path.stat().st_size for key, path in paths.items()},
            "latencies": [],
        }
        model = onnx.load(paths[PLAIN])
        for threads in options.threads:
            for batch in options.batches:
                found = _race(paths, _feeds(model, batch), threads, options.rounds)
                ratios = {key: row["median_ms"] / found[QTUNED]["median_ms"] for key, row in found.items()}
                report["latencies"].append(
                    {"batch": batch, "threads": threads, "models": found, "times_int8_tuned": ratios}
                )
                print(
                    f"\nbatch {batch}, {threads} threads     median     p90     min  CPU min   x int8 tuned"
                )
                for key, row in found.items():
                    print(
                        f"{key:22s} {row['median_ms']:10.1f} {row['p90_ms']:7.1f} {row['min_ms']:7.1f} "
                        f"{row['cpu_min_ms']:8.1f} {ratios[key]:10.2f}"
                    )
        feeds = _feeds(model, 8)
        report["profiles"] = {key: _profile(path, feeds, folder) for key, path in paths.items()}
    missed = []
    for entry in report["latencies"]:
        for key, goal in GOALS.items():
            if entry["batch"] == 8 and entry["times_int8_tuned"][key] < goal:
                missed.append(f"{key}, {entry['threads']} threads: {entry['times_int8_tuned'][key]:.2f}")
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
