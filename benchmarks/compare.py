"""flatq's int8 exports beside those of the runtimes' own quantizers: latency and error, in one run.

From one float network, calibrated on the same inputs:

- ONNX Runtime: flatq's w8a8, also without its graph rewrites, and `onnxruntime.quantization.quantize_static`
  (Q/DQ, weights by channel, its own preparation first) on the float export, with and without
  those rewrites;
- OpenVINO: flatq's w8a8, and `nncf.quantize` of the float export, with its default preset and with `mixed`.

All run interleaved, round by round, in one process; ratios are taken within a round, of wall time and of CPU
time. The error is the SQNR against the float export on inputs that calibration has not seen: those of other
sampling trajectories. What OpenVINO computes its floats in is in the result (bf16 on some CPUs), and so are
the operators that its time goes to.

    python benchmarks/compare.py [--checkpoint ckpt.pt] [--batch 8] [--threads 1] [--rounds 20] [-o FILE]
    python benchmarks/compare.py --ours --attention-bits 8     flatq alone, attention in float and in integers

Without a checkpoint: a UNet of 7.3 million parameters with random weights. `make .venv/peers/.installed` puts
nncf into a folder of its own; without it, that part is left out and said so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import mark, open_checkpoint, write_json
from numpy.typing import NDArray
from peers import Feed, draw, feeds, quantize_nncf, quantize_static, without_nncf

from flatq.bench.timing import latency, paired, race, timed
from flatq.calib.inputs import CalibrationPlan
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.quantize.artifact import write_artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS, recipe_for_bits
from flatq.runtime.onnxruntime import OnnxRuntime
from flatq.runtime.openvino import OpenVinoRuntime
from flatq.verify.parity import sqnr_db

__all__ = ["main"]

OURS = "flatq w8a8"
REFERENCE = "fp32 plain"
"""Of ONNX Runtime: what every error is taken against."""
_HELD_OUT_SEED = 1


def _files(
    checkpoint: Any,
    plan: CalibrationPlan,
    folder: Path,
    threads: int,
    *,
    attention_bits: list[int],
    peers: bool,
) -> tuple[dict[str, dict[str, Path]], dict[str, Any]]:
    """runtime -> contender -> model file; and what is to be known of the making."""
    drawn = draw(checkpoint, plan, threads)
    calibration = feeds(drawn)
    recipes = {OURS: PRESETS["w8a8"]}
    for bits in attention_bits:
        recipe = recipe_for_bits(8, attention_bits=bits)
        recipes[f"flatq {recipe.name}"] = recipe
    for name, recipe in recipes.items():
        artifact = quantize_checkpoint(checkpoint, recipe, calibration=plan, threads=threads)
        # Decomposed attention rounds otherwise in float, which moves the inputs' last bits.
        if name == OURS and artifact.manifest.calibration_digest != drawn.digest:
            raise AssertionError("the peers would be calibrated on other inputs than flatq")
        write_artifact(artifact, folder / "artifacts" / name)
    files: dict[str, dict[str, Path]] = {"onnxruntime": {}, "openvino": {}}
    for name, target, plain in (
        (REFERENCE, "onnxruntime", True),
        ("fp32", "onnxruntime", False),
        ("fp32", "openvino", False),
    ):
        out = folder / f"{target} {name}"
        files[target][name] = out / export_checkpoint(checkpoint, target, out, plain=plain).file
    for target in ("onnxruntime", "openvino"):
        for name in recipes:
            out = folder / target / name
            files[target][name] = out / export_artifact(folder / "artifacts" / name, target, out).file
    out = folder / "plain"
    plain = export_artifact(folder / "artifacts" / OURS, "onnxruntime", out, plain=True)
    files["onnxruntime"][f"{OURS}, without rewrites"] = out / plain.file
    for name in (REFERENCE, "fp32") if peers else ():
        out = folder / f"static {name}.onnx"
        quantize_static(files["onnxruntime"][name], out, calibration)
        files["onnxruntime"][f"quantize_static of {name}"] = out
    missing = without_nncf() if peers else "flatq's own exports alone were asked for"
    for preset in () if missing else ("performance", "mixed"):
        out = folder / f"nncf {preset}.xml"
        quantize_nncf(files["openvino"]["fp32"], out, calibration, preset)
        files["openvino"][f"nncf, {preset}"] = out
    making = {
        "calibration": {**plan.model_dump(mode="json"), "digest": drawn.digest},
        "left_out": {"nncf": missing} if missing else {},
        "nncf": None if missing else importlib.metadata.version("nncf"),
    }
    return files, making


def _size(file: Path) -> int:
    """Of a model file, with the .bin beside an .xml."""
    parts = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(part.stat().st_size for part in parts)


def _measure(
    files: dict[str, dict[str, Path]], held_out: list[Feed], timing: Feed, threads: int, rounds: int
) -> dict[str, Any]:
    """runtime -> contender -> what was found."""
    with ExitStack() as stack:
        opened: dict[tuple[str, str], Any] = {}
        for name, file in files["onnxruntime"].items():
            opened["onnxruntime", name] = stack.enter_context(OnnxRuntime(file, threads=threads))
        for name, file in files["openvino"].items():
            opened["openvino", name] = stack.enter_context(OpenVinoRuntime(file, threads=threads))
        outputs = {key: np.stack([_run(runtime, f) for f in held_out]) for key, runtime in opened.items()}
        runners = {key: partial(timed, partial(_run, runtime, timing)) for key, runtime in opened.items()}
        found = race(runners, rounds, warmup=3)
        identities = {key: runtime.identity for key, runtime in opened.items()}
    exact = outputs["onnxruntime", REFERENCE]
    result: dict[str, Any] = {}
    for (runtime, name), times in found.items():
        ours = found[runtime, OURS]
        row = {
            "runtime": identities[runtime, name],
            "size_bytes": _size(files[runtime][name]),
            "sqnr_db": None if name == REFERENCE else sqnr_db(exact, outputs[runtime, name]),
        }
        for clock in ("wall", "cpu"):
            mine, its = ([getattr(t, f"{clock}_ms") for t in each] for each in (ours, times))
            ratio = paired(its, mine)
            row[clock] = latency(its).model_dump()
            row[f"flatq_times_as_fast_{clock}"] = None if ratio is None else ratio.model_dump()
            row[f"{clock}_ms"] = its
        result.setdefault(runtime, {})[name] = row
    return result


def _openvino_profile(file: Path, feed: Feed, threads: int, calls: int = 10) -> list[dict[str, Any]]:
    """OpenVINO's own counters: operators by time, each node at its fastest of some calls."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    nodes: dict[tuple[str, str], list[float]] = {}
    for _ in range(calls):
        request.infer(feed)
        for info in request.profiling_info:
            if str(info.status).endswith("EXECUTED"):
                key = info.node_name, f"{info.node_type} ({info.exec_type})"
                nodes.setdefault(key, []).append(info.real_time.total_seconds() * 1e3)
    kinds: dict[str, list[float]] = {}
    for (_, kind), times in nodes.items():
        kinds.setdefault(kind, []).append(min(times))
    total = sum(map(sum, kinds.values()))
    rows = [
        {"operator": kind, "nodes": len(times), "ms": sum(times), "fraction": sum(times) / total}
        for kind, times in kinds.items()
    ]
    return sorted(rows, key=lambda row: -float(row["ms"]))


def _run(runtime: Any, feed: Feed) -> NDArray[np.float32]:
    x, t, *conditions = feed
    output: NDArray[np.float32] = runtime(feed[x], feed[t], {name: feed[name] for name in conditions})
    return output


def _print(found: dict[str, Any]) -> None:
    for runtime, rows in found.items():
        version = next(iter(rows.values()))["runtime"]
        floats = f", floats in {version['float precision']}" if "float precision" in version else ""
        print(f"\n{runtime} {version['version']}{floats}")
        print(f"{'':30s} {'median':>8s} {'p90':>8s} {'CPU':>8s}   flatq x (wall, CPU)   SQNR dB     size")
        for name, row in rows.items():
            ratios = [row[f"flatq_times_as_fast_{clock}"] for clock in ("wall", "cpu")]
            times = "  ".join("   -" if ratio is None else f"{ratio['median']:6.2f}" for ratio in ratios)
            error = "       -" if row["sqnr_db"] is None else f"{row['sqnr_db']:8.2f}"
            print(
                f"{name:30s} {row['wall']['median_ms']:8.1f} {row['wall']['p90_ms']:8.1f} "
                f"{row['cpu']['median_ms']:8.1f}   {times:>19s}  {error} {row['size_bytes'] / 1e6:7.2f} MB"
            )


def main() -> None:
    """Make the files, run them, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a flatq checkpoint instead of the random UNet")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=4, help="sampling trajectories of the calibration")
    parser.add_argument("--steps", type=int, default=8, help="timesteps of each")
    parser.add_argument(
        "--attention-bits", type=int, nargs="+", default=[], help="also with attention's products quantized"
    )
    parser.add_argument("--ours", action="store_true", help="leave the runtimes' own quantizers out")
    parser.add_argument("-o", "--out", type=Path, default=Path("compare.json"))
    options = parser.parse_args()
    marked = mark()
    plan = CalibrationPlan(images=options.images, steps=options.steps)
    with tempfile.TemporaryDirectory(prefix="flatq-") as name:
        checkpoint = open_checkpoint(options.checkpoint, Path(name))
        files, making = _files(
            checkpoint,
            plan,
            Path(name),
            options.threads,
            attention_bits=options.attention_bits,
            peers=not options.ours,
        )
        unseen = plan.model_copy(update={"seed": plan.seed + _HELD_OUT_SEED, "images": options.batch})
        held_out = feeds(draw(checkpoint, unseen, options.threads))
        middle = held_out[len(held_out) // 2]
        found = _measure(files, held_out, middle, options.threads, options.rounds)
        profiles = {
            model: _openvino_profile(file, middle, options.threads)
            for model, file in files["openvino"].items()
            if model == "fp32" or model.startswith("flatq")
        }
    _print(found)
    for model, rows in profiles.items():
        print(f"\nOpenVINO, {model}: where the time goes")
        for row in rows[:12]:
            print(f"  {row['operator']:52s} x{row['nodes']:4d} {row['ms']:8.2f} ms {row['fraction']:6.1%}")
    for what, reason in making["left_out"].items():
        print(f"\nleft out: {what}: {reason}")
    report = {
        **marked,
        "network": "random weights" if options.checkpoint is None else checkpoint.digest,
        "parameters": sum(value.numel() for value in checkpoint.network().parameters()),
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        "held_out": {"trajectories": options.batch, "timesteps": len(held_out), "seed": unseen.seed},
        **making,
        "found": found,
        "openvino_profiles": profiles,
    }
    write_json(options.out, report)


if __name__ == "__main__":
    main()
