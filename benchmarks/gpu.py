"""The parts of tools/gpu_run.sh, which says what each one is for; each writes RESULTS/PART.json.

    python benchmarks/gpu.py PART RESULTS [--rehearsal]

Floating-point operations: two for each multiply-add of `flatq.train.dry_run`, three times a forward pass for
one gradient (backward counts twice), twice that for a step of SAM, which has two gradients. Optimizer, norms,
activations and averages are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_settings import FULL, REHEARSAL, Settings

from flatq.checkpoint import load_checkpoint
from flatq.images import load_images, save_grid, to_uint8
from flatq.report.environment import environment
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings
from flatq.train import TrainConfig, train
from flatq.train.configure import resolve
from flatq.train.distributed import open_workers
from flatq.train.dry_run import forecast
from flatq.train.loop import Trainer

__all__ = ["main"]

DATASHEET_TFLOPS = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H200": 989.4}
"""Dense bf16 of the vendor's datasheets (SXM)."""


def smoke(settings: Settings, results: Path) -> dict[str, Any]:
    """Five steps of ADM and, with torch.compile, of SAM; eight samples."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, open_workers(settings.training["device"]) as workers:
        data = _random_images(Path(name))
        for method, compiled in (("adm", False), ("sam", settings.compile)):
            run = Trainer(_config(settings, data, method=method, compile=compiled), Path(name), workers)
            for _ in range(5):
                run.advance()
            found[f"{method}_weights_finite"] = all(bool(p.isfinite().all()) for p in run.parameters)
        with TorchRuntime(run.network.eval(), device=settings.training["device"]) as runtime:
            x = sample(
                runtime, run.config.process, SamplingSettings(steps=2), range(8), run.model.image_shape
            )
    found["samples_finite"] = bool(np.isfinite(x).all())
    assert all(found.values()), found
    return found


def throughput(settings: Settings, results: Path) -> dict[str, Any]:
    """Training on random images: speed does not depend on what they show."""
    device = settings.training["device"]
    measured = _matmul_tflops(settings.matmul, device)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    datasheet = DATASHEET_TFLOPS.get(name)
    training: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, open_workers(device) as workers:
        data = _random_images(Path(folder))
        for compiled in (False, True) if settings.compile else (False,):
            for method, gradients in (("adm", 1), ("sam", 2)):
                config = _config(settings, data, method=method, compile=compiled)
                size = forecast(config)
                run = Trainer(config, Path(folder), workers)
                start = time.perf_counter()
                for _ in range(5):
                    run.advance()
                _synchronize(device)
                warmup_s = time.perf_counter() - start
                rates = [_images_per_second(run, settings.window_s, device) for _ in range(3)]
                rate = statistics.median(rates)
                tflops = 2 * size.macs * 3 * gradients * rate / 1e12
                start = time.perf_counter()
                for _ in range(5):
                    run.batches.draw(run.timesteps)
                training[f"{method}-{'compiled' if compiled else 'eager'}"] = {
                    "images_per_second": rate,
                    "images_per_second_windows": rates,
                    "model_tflops": tflops,
                    "fraction_of_measured_peak": tflops / measured,
                    "fraction_of_datasheet_peak": None if datasheet is None else tflops / datasheet,
                    "step_ms": 1e3 * config.batch_size / rate,
                    "draw_batch_on_cpu_ms": 1e3 * (time.perf_counter() - start) / 5,
                    "first_5_steps_s": warmup_s,
                    "peak_memory_gib": _peak_memory_gib(device),
                    "parameters": size.parameters,
                    "forward_macs_per_image": size.macs,
                    "gradients_per_step": gradients,
                }
                print(json.dumps(training), flush=True)
                del run
                if device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
    return {"bf16_matmul_tflops": measured, "bf16_datasheet_tflops": datasheet, "training": training}


def sam(settings: Settings, results: Path) -> dict[str, Any]:
    return _trained(settings, results, "sam", method="sam", steps=10**6, max_minutes=settings.minutes)


def adm(settings: Settings, results: Path) -> dict[str, Any]:
    return _trained(settings, results, "adm", steps=_read(results, "sam")["steps_done"])


def adm_twice(settings: Settings, results: Path) -> dict[str, Any]:
    """The learning rate is constant after its warm-up, so this is the run `adm` at a later moment."""
    _read(results, "adm")
    if not (results / "adm-twice").exists():
        shutil.copytree(results / "adm", results / "adm-twice.partial", dirs_exist_ok=True)
        (results / "adm-twice.partial").rename(results / "adm-twice")
    return _trained(settings, results, "adm-twice", steps=_read(results, "sam")["gradient_passes"])


def _trained(settings: Settings, results: Path, name: str, **keys: Any) -> dict[str, Any]:
    """Trains in RESULTS/NAME, or goes on there."""
    keys = {"method": "adm", "compile": settings.compile, "save_minutes": 1.0, **keys}
    config = _config(settings, _training_images(settings, results), **keys)
    start, first = time.perf_counter(), 0

    def progress(step: int, loss: Any) -> None:
        nonlocal start, first
        if not first:  # the first step compiles
            _synchronize(settings.training["device"])
            start, first = time.perf_counter(), step

    checkpoint = train(config, results / name, resume=True, progress=progress)
    seconds = time.perf_counter() - start
    report = json.loads((results / name / "train.json").read_text("utf-8"))
    steps = report["steps_done"] - first
    return {
        "steps_done": report["steps_done"],
        "gradient_passes": report["gradient_passes"],
        "final_loss": report["final_loss"],
        "images_per_second": steps * config.batch_size / seconds,
        "images_per_second_over_steps": steps,
        "parameters": sum(value.numel() for value in checkpoint.weights["raw"].values()),
        "train": report,
    }


def sampling(settings: Settings, results: Path) -> dict[str, Any]:
    """The EMA weights of SAM, quantized by rounding to nearest; on the same noise throughout."""
    from flatq.calib import CalibrationPlan
    from flatq.export.deploy import export_artifact, export_checkpoint
    from flatq.models import open_model
    from flatq.quantize.artifact import write_artifact
    from flatq.quantize.lowering import lower
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.recipe import PRESETS

    _read(results, "sam")
    checkpoint = load_checkpoint(results / "sam" / "ckpt.pt")
    device = settings.training["device"]
    shape = checkpoint.model.image_shape
    plan = SamplingSettings(steps=settings.steps)
    found: dict[str, Any] = {"plan": plan.model_dump(mode="json"), "weights": "sam ema", "runs": {}}
    images: dict[str, Any] = {}

    def measure(name: str, runtime: Any, count: int) -> None:
        batch = min(count, 256)
        x = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
        t = np.full(batch, 500, dtype=np.int64)
        with runtime:
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                runtime(x, t)
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            images[name] = sample(runtime, checkpoint.process, plan, range(count), shape, batch_size=batch)
            whole = time.perf_counter() - start
            identity = runtime.identity
        difference = images[name].astype(np.float64) - images["float-fp32-torch"][:count]
        found["runs"][name] = {
            "images": count,
            "images_per_second": count / whole,
            "evaluations_per_second": batch / statistics.median(seconds[1:]),
            "fraction_of_time_in_the_network": settings.steps
            * count
            / batch
            * statistics.median(seconds[1:])
            / whole,
            "batch_size": batch,
            "paired_rmse_to_float_fp32": float(np.sqrt(np.square(difference).mean())),
            "runtime": identity,
        }
        print(name, json.dumps(found["runs"][name]), flush=True)

    network = checkpoint.network("ema")
    measure("float-fp32-torch", TorchRuntime(network, device=device), settings.images)
    measure("float-bf16-torch", TorchRuntime(_Bf16(network, device), device=device), settings.images)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_checkpoint(checkpoint, "onnxruntime", folder / "float", average="ema")
        for bits in ("w8a8", "w4a8"):
            calibration = CalibrationPlan(images=settings.calibration_images, steps=settings.steps)
            artifact = quantize_checkpoint(checkpoint, PRESETS[bits], average="ema", calibration=calibration)
            write_artifact(artifact, folder / bits)
            graph = lower(artifact, "onnxruntime").graph
            measure(f"{bits}-torch", TorchRuntime(graph, device=device), settings.images)
        export_artifact(folder / "w8a8", "onnxruntime", folder / "w8a8" / "onnxruntime")
        for name in ("float", "w8a8"):
            runtime = open_model(folder / name).runtime
            measure(f"{name}-onnxruntime-cpu", runtime, settings.cpu_images)
    columns = min(16, settings.cpu_images)
    rows = np.concatenate([values[:columns] for values in images.values()])
    save_grid(results / "samples.png", to_uint8(rows), columns=columns)
    found["rows_of_samples_png"] = list(images)
    return found


class _Bf16(torch.nn.Module):
    """A network under bf16 autocast; float32 in and out."""

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        super().__init__()
        self.network = network
        self.device_type = device

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            output: torch.Tensor = self.network(x, t)
        return output.float()


def tests(settings: Settings, results: Path) -> dict[str, Any]:
    """pytest on the files that hold a test marked `gpu`, and how each test went."""
    root = Path(__file__).resolve().parents[1]
    files = [
        str(p) for p in sorted((root / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text("utf-8")
    ]
    report = results / "tests.xml"
    options = ["-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-rs", f"--junitxml={report}"]
    # -P: else the checkout's flatq/ would be found first, which lacks the packages that lie beside it
    code = subprocess.run([sys.executable, "-P", "-m", "pytest", *options, *files], cwd=root, check=False)
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[f"{case.get('classname')}.{case.get('name')}"] = kinds[0] if kinds else "passed"
    if code.returncode:
        raise SystemExit(code.returncode)
    return {"outcomes": outcomes}


PARTS: dict[str, Callable[[Settings, Path], dict[str, Any]]] = {
    "smoke": smoke,
    "throughput": throughput,
    "sam": sam,
    "adm": adm,
    "adm-twice": adm_twice,
    "sample": sampling,
    "tests": tests,
}


def _config(settings: Settings, data: Path, **keys: Any) -> TrainConfig:
    base = {"data": str(data), "size": 32, "image_channels": 3, "precision": "bf16"}
    return resolve(("the run", base | settings.training | keys))


def _random_images(folder: Path) -> Path:
    path = folder / "random.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8))
    return path


def _training_images(settings: Settings, results: Path) -> Path:
    """An .npz of the training images, which opens in no time where a zip of pictures takes many seconds."""
    if settings.data is None:
        return _random_images(results)
    source = results.parent / settings.data
    path = results / f"{source.stem}.npz"
    if not path.exists():
        images = load_images(source, size=32, channels=3)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images.pixels)
        partial.rename(path)
    return path


def _read(results: Path, part: str) -> dict[str, Any]:
    path = results / f"{part}.json"
    if not path.exists():
        raise SystemExit(f"this part needs the result of {part}, and {path} is missing")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))["result"]
    return content


def _matmul_tflops(side: int, device: str) -> float:
    """The median speed of a product of random bf16 matrices, TFLOP/s."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(23):
        _synchronize(device)
        start = time.perf_counter()
        a @ b
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[3:]) / 1e12


def _images_per_second(run: Trainer, window_s: float, device: str) -> float:
    _synchronize(device)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < window_s:
        for _ in range(4):
            run.advance()
        steps += 4
    _synchronize(device)
    return steps * run.config.batch_size / (time.perf_counter() - start)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_memory_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def _machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        **environment().model_dump(mode="json"),
        "torch_build": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "gpu": None,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": card.name,
            "memory_gib": card.total_memory / 2**30,
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rehearsal", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args()
    settings = REHEARSAL if options.rehearsal else FULL
    device = settings.training["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device here; REHEARSAL=1 runs on the CPU")
    start = time.perf_counter()
    result = PARTS[options.part](settings, options.results)
    content = {
        "commit": os.environ.get("FLATQ_COMMIT") or None,
        "machine": _machine(device),
        "settings": asdict(settings),
        "seconds": time.perf_counter() - start,
        "result": result,
    }
    partial = options.results / f".{options.part}.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    partial.rename(options.results / f"{options.part}.json")
    print(f"{options.part}: {content['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
