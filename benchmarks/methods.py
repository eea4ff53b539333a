"""What each quantization method buys: held-out loss, SQNR and FID drift of one checkpoint's artifacts.

Every variant is a line of options of `flatq quantize`, from the same checkpoint and the same calibration.
Each artifact is exported and measured on the runtime that deploys it, ONNX Runtime by default:

- loss: the mean squared error of the noise prediction on held-out images, always on the same timesteps and
  noise, and how much larger it is than the float model's, with a 95 % interval over the images;
- SQNR: of the network's output on the same inputs, against the float model's;
- drift: of the FID, sampled on the same noise as the float model, with its interval.

`--peers` adds the runtime's own quantizer at 8 bits, on flatq's float exports and the same calibration
inputs: `quantize_static` for ONNX Runtime, `nncf.quantize` for OpenVINO.

    flatq train runs/digits --data digits:train --steps 3000
    python benchmarks/methods.py runs/digits/ckpt.pt --data digits:train --heldout digits:heldout
    python benchmarks/methods.py ckpt.pt --data train.zip --heldout test.zip --features net.onnx

Artifacts stay in --work, and what is there is not made again: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import flatq
from flatq.backends import EXPORT_FLAGS

__all__ = ["main"]

SCHEMES: dict[str, list[str]] = {
    "w8a8": ["--bits", "8"],
    "w4a8": ["--bits", "4"],
    "w4a4": ["--bits", "4", "--act-bits", "4"],
}

PLAIN = ["--method", "rtn", "--act-range", "minmax", "--first-last", "8"]
RTN, GPTQ, ADAROUND = (["--method", method] for method in ("rtn", "gptq", "adaround"))

METHODS: dict[str, list[str]] = {
    "plain min-max": PLAIN,
    "plain min-max, edges float": [*RTN, "--act-range", "minmax"],
    "rtn, edges 8": [*RTN, "--first-last", "8"],
    "rtn, edges same": [*RTN, "--first-last", "same"],
    "rtn": RTN,
    "rtn, act percentile": [*RTN, "--act-range", "percentile"],
    "rtn, weight mse": [*RTN, "--weight-range", "mse"],
    "rtn, bias": [*RTN, "--bias-correction"],
    "rtn, split": [*RTN, "--split-skips"],
    "gptq": GPTQ,
    "gptq, act minmax": [*GPTQ, "--act-range", "minmax"],
    "gptq, weight mse": [*GPTQ, "--weight-range", "mse"],
    "gptq, bias": [*GPTQ, "--bias-correction"],
    "gptq, split": [*GPTQ, "--split-skips"],
    "adaround": ADAROUND,
    "adaround, bias": [*ADAROUND, "--bias-correction"],
    "rtn, rank 16": [*RTN, "--low-rank", "16"],
    "gptq, rank 16": [*GPTQ, "--low-rank", "16"],
}
"""Each adds to the scheme's options. A float branch of some rank is for w4a4 alone."""


def _quantize(checkpoint: Path, folder: Path, options: list[str], common: list[str], target: str) -> float:
    """Makes and exports an artifact where there is none; seconds that quantizing took."""
    took = folder.with_suffix(folder.suffix + ".json")
    if not took.exists():
        start = time.perf_counter()
        _flatq("quantize", str(checkpoint), *options, *common, "-o", str(folder))
        seconds = time.perf_counter() - start
        took.write_text(json.dumps({"seconds": seconds, "options": options}) + "\n", encoding="utf-8")
    if not (folder / target).exists():
        _flatq("export", str(folder), EXPORT_FLAGS[target], "--no-verify")
    seconds = json.loads(took.read_text(encoding="utf-8"))["seconds"]
    assert isinstance(seconds, float)
    return seconds


def _peers(options: argparse.Namespace) -> dict[Path, dict[str, Any]]:
    """Deployment folders of what the runtime's own quantizer makes of the float model, and their rows."""
    from peers import as_deployment, draw, feeds, quantize_nncf, quantize_static, without_nncf

    from flatq.calib.inputs import CalibrationPlan
    from flatq.checkpoint import load_checkpoint
    from flatq.export.deploy import export_checkpoint

    checkpoint = load_checkpoint(options.checkpoint)
    plan = CalibrationPlan(images=options.calib_images, seed=options.calib_seed)
    calibration = feeds(draw(checkpoint, plan, options.threads, options.weights))
    openvino = options.runtime == "openvino"
    if openvino and (missing := without_nncf()):
        sys.exit(f"--peers: {missing}")
    rows = {}
    for variant in ("performance", "mixed") if openvino else ("plain export", "tuned export"):
        method = f"{'nncf' if openvino else 'quantize_static'}, {variant}"
        folder = options.work / f"w8a8.{method.replace(', ', '+').replace(' ', '-')}"
        float_folder = options.work / f"fp32.{'openvino' if openvino else variant.replace(' ', '-')}"
        exported = export_checkpoint(
            checkpoint,
            options.runtime,
            float_folder,
            average=options.weights,
            plain=variant == "plain export",
        )
        file = options.work / f"{folder.name}{Path(exported.file).suffix}"
        start = time.perf_counter()
        if openvino:
            quantize_nncf(float_folder / exported.file, file, calibration, variant)
        else:
            quantize_static(float_folder / exported.file, file, calibration)
        seconds = time.perf_counter() - start
        as_deployment(float_folder, file, folder, method)
        rows[folder] = {"scheme": "w8a8", "method": method, "options": [], "quantize_s": seconds}
    return rows


def _flatq(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "flatq", *arguments], check=True, stdout=subprocess.DEVNULL)


class _HeldOut:
    """Noisy held-out images: every model gets the same."""

    def __init__(self, data: str, shape: tuple[int, int, int], process: Any, n: int) -> None:
        from flatq.images import load_images, to_float
        from flatq.process import Process

        if process.prediction != "epsilon":
            sys.exit(
                f"the held-out loss is that of noise prediction, and this model predicts {process.prediction}"
            )
        images = load_images(data, size=shape[1], channels=shape[0])
        rows = np.linspace(0, len(images.pixels) - 1, min(n, len(images.pixels))).astype(np.int64)
        rng = np.random.default_rng(0)
        x0 = to_float(images.pixels[rows])
        self.noise = rng.standard_normal(x0.shape, dtype=np.float32)
        self.t = rng.permutation(np.arange(len(rows)) * process.train_steps // len(rows))
        self.x = Process.from_config(process).add_noise(x0, self.noise, self.t).astype(np.float32)

    def outputs(self, model: Any, batch: int = 64) -> Any:
        """The noise that a model predicts, float64 [n, C, H, W]."""
        channels = self.x.shape[1]
        parts = [
            model.runtime(self.x[start : start + batch], self.t[start : start + batch])[:, :channels]
            for start in range(0, len(self.x), batch)
        ]
        return np.concatenate(parts).astype(np.float64)

    def losses(self, outputs: Any) -> Any:
        """Of each image, [n]."""
        return ((outputs - self.noise) ** 2).mean(axis=(1, 2, 3))


def _fidelity(
    heldout: _HeldOut, path: Path, outputs_float: Any, runtime: str, threads: int | None
) -> dict[str, Any]:
    with flatq.load(path, runtime=flatq.RuntimeSettings(runtime, threads=threads)) as model:
        outputs = heldout.outputs(model)
    difference = heldout.losses(outputs) - heldout.losses(outputs_float)
    error = ((outputs - outputs_float) ** 2).mean()
    return {
        "loss": float(heldout.losses(outputs).mean()),
        "loss_increase": float(difference.mean()),
        "loss_increase_half_width": float(1.96 * difference.std(ddof=1) / np.sqrt(len(difference))),
        "sqnr_db": float(10 * np.log10((outputs_float**2).mean() / error)) if error else None,
    }


def _chosen(names: str | None, among: dict[str, list[str]]) -> dict[str, list[str]]:
    picked = list(among) if names is None else names.split(";")
    if unknown := [name for name in picked if name not in among]:
        sys.exit(f"no such variant: {', '.join(unknown)}; there are {', '.join(among)}")
    return {name: among[name] for name in picked}


def main() -> None:
    """Quantize, export, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--weights", default="ema")
    parser.add_argument("--data", required=True, help="images that the distances are taken to")
    parser.add_argument("--heldout", required=True, help="images that the model was not trained on")
    parser.add_argument("--heldout-n", type=int, default=1000)
    parser.add_argument("--features", help="an ONNX feature network; the bundled one for digits")
    parser.add_argument("--schemes", help="some of " + ";".join(SCHEMES))
    parser.add_argument("--methods", help="some of " + ";".join(METHODS))
    parser.add_argument("--peers", action="store_true", help="add the runtime's own quantizer at 8 bits")
    parser.add_argument("-n", type=int, default=1000, help="images sampled from each model")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--calib-images", type=int, default=32)
    parser.add_argument("--calib-seed", type=int, default=0)
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, default=Path("methods-work"))
    parser.add_argument("-o", "--out", type=Path, default=Path("methods.json"))
    options = parser.parse_args()

    from common import mark, write_json

    schemes, methods = _chosen(options.schemes, SCHEMES), _chosen(options.methods, METHODS)
    common = ["--weights", options.weights, "--calib-images", str(options.calib_images)]
    common += ["--seed", str(options.calib_seed)]
    common += [] if options.threads is None else ["--threads", str(options.threads)]
    options.work.mkdir(parents=True, exist_ok=True)
    variants = {}
    for scheme, bits in schemes.items():
        for method, more in methods.items():
            if "--low-rank" in more and scheme != "w4a4":
                continue
            folder = options.work / f"{scheme}.{method.replace(', ', '+').replace(' ', '-')}"
            variants[folder] = {
                "scheme": scheme,
                "method": method,
                "options": [*bits, *more],
                "quantize_s": _quantize(options.checkpoint, folder, [*bits, *more], common, options.runtime),
            }
            print(f"{scheme} {method}: quantized in {variants[folder]['quantize_s']:.0f} s", file=sys.stderr)
    if options.peers:
        variants |= _peers(options)

    baseline = flatq.load(
        options.checkpoint,
        weights=options.weights,
        runtime=flatq.RuntimeSettings(threads=options.threads),
    )
    with baseline:
        heldout = _HeldOut(options.heldout, baseline.image_shape, baseline.process, options.heldout_n)
        outputs_float = heldout.outputs(baseline)
    for folder, row in variants.items():
        row |= _fidelity(heldout, folder, outputs_float, options.runtime, options.threads)
    report = flatq.evaluate(
        flatq.EvaluateSettings(
            models=tuple(variants),
            baseline=options.checkpoint,
            data=options.data,
            out=options.work / "eval",
            sampling=flatq.SamplingSettings(steps=options.steps),
            images=options.n,
            features=options.features,
            runtime=flatq.RuntimeSettings(options.runtime, threads=options.threads),
        ),
        note=lambda line: print(line, file=sys.stderr),
    )
    rows = []
    for row, entry in zip(variants.values(), report.models, strict=True):
        drift = entry.drift
        rows.append(
            row
            | {
                "drift": None if drift is None else drift.corrected,
                "drift_low": None if drift is None else drift.low,
                "drift_high": None if drift is None else drift.high,
                "size_bytes": entry.size_bytes,
            }
        )
    result = {
        **mark(),
        "checkpoint": {
            "sha256": baseline.digest,
            "weights": options.weights,
            "loss": float(heldout.losses(outputs_float).mean()),
            "fid": next((e.drift.fid_float for e in report.models if e.drift is not None), None),
        },
        "extractor": report.extractor.model_dump(),
        "n": options.n,
        "steps": options.steps,
        "rows": rows,
    }
    write_json(options.out, result)
    _print(result)


def _print(result: dict[str, Any]) -> None:
    print(f"float: held-out loss {result['checkpoint']['loss']:.5f}, FID {result['checkpoint']['fid']}")
    print("| scheme | method | seconds | loss, increase | SQNR dB | drift | interval |")
    print("|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        drift = interval = "none"
        if row["drift"] is not None:
            drift, interval = f"{row['drift']:+.3f}", f"{row['drift_low']:+.3f} .. {row['drift_high']:+.3f}"
        sqnr = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        print(
            f"| {row['scheme']} | {row['method']} | {row['quantize_s']:.0f} "
            f"| {row['loss_increase']:+.6f} +- {row['loss_increase_half_width']:.6f} | {sqnr} "
            f"| {drift} | {interval} |"
        )


if __name__ == "__main__":
    main()
