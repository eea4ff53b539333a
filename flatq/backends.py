"""Which runtime, device and target go together, and the runtime of a deployment. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from flatq.deployment import Deployment, Target
from flatq.errors import UsageError
from flatq.runtime.base import Precision, Runtime

if TYPE_CHECKING:
    from flatq.runtime.onnxruntime import Device
    from flatq.runtime.openvino import Hint

__all__ = [
    "DEVICES",
    "EXPORT_FLAGS",
    "RUNTIMES",
    "Settings",
    "check_place",
    "check_settings",
    "open_runtime",
    "runtime_of",
    "target_of",
]

RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt")
DEVICES = ("cpu", "cuda", "tensorrt")
EXPORT_FLAGS: dict[Target, str] = {
    "onnxruntime": "--onnx",
    "openvino": "--openvino",
    "tensorrt": "--trt",
    "generic": "--generic",
}
"""The option of `flatq export` for each target."""

_RUNTIME_OF: dict[Target, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "generic": "onnxruntime",
}


@dataclass(frozen=True)
class Settings:
    """How a model runs.

    Attributes:
        runtime: one of `RUNTIMES`.
        device: one of `DEVICES`; the CPU by default. `cuda` with torch or ONNX Runtime, `tensorrt` is ONNX
            Runtime's TensorRT execution provider.
        threads: CPU threads, all cores by default.
        precision: of OpenVINO's floats, its own choice by default.
        hint: of OpenVINO.
    """

    runtime: str
    device: str | None = None
    threads: int | None = None
    precision: str | None = None
    hint: str | None = None


def runtime_of(target: Target, device: str | None = None) -> str:
    """The runtime that a target's deployment runs on if none is named."""
    return "onnxruntime" if (target, device) == ("tensorrt", "tensorrt") else _RUNTIME_OF[target]


def target_of(runtime: str, device: str | None = None) -> Target:
    """The target whose deployment a runtime runs on a device."""
    return "tensorrt" if "tensorrt" in (runtime, device) else cast(Target, runtime)


def check_settings(settings: Settings) -> None:
    """Refuse settings that are not offered or do not go together.

    Raises:
        UsageError: it names the option.
    """
    runtime = settings.runtime
    devices = {"torch": ("cpu", "cuda"), "onnxruntime": DEVICES, "openvino": ("cpu",), "tensorrt": ("cuda",)}
    checks: list[tuple[str, str | None, tuple[str, ...]]] = [("--runtime", runtime, RUNTIMES)]
    if runtime in RUNTIMES:
        own = runtime == "openvino"
        checks += [
            ("--device", settings.device, devices[runtime]),
            ("--precision", settings.precision, get_args(Precision) if own else ()),
            ("--hint", settings.hint, ("latency", "throughput") if own else ()),
        ]
    for option, value, offered in checks:
        if value is not None and value not in offered:
            where = "" if option == "--runtime" else f" with the runtime {runtime}"
            raise UsageError(
                f"{option} {value} is not offered{where}",
                expected="one of " + ", ".join(offered) if offered else f"no {option}: it is OpenVINO's",
                got=value,
                next_step=f"choose another {option}, or leave it out",
            )
    if settings.threads is not None and settings.threads < 1:
        raise UsageError("no threads", expected="--threads at least 1", got=str(settings.threads))


def check_place(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Refuse a graph on a runtime or provider that would not run its integers.

    Raises:
        UsageError: it names the right target.
    """
    target, runtime, device = deployment.target, settings.runtime, settings.device
    quantized = _is_quantized(deployment)
    if quantized or runtime != "onnxruntime":
        right = target_of(runtime, device)
        fits = target == right or (target == "generic" and right == "onnxruntime")
    else:
        right, fits = "onnxruntime", target != "openvino"
    if not fits:
        raise UsageError(
            f"{folder} is lowered for {target}, which is not what would run it",
            expected=f"a deployment for {right}",
            got=f"target {target} with the runtime {runtime}" + (f" on {device}" if device else ""),
            next_step=f"flatq export ARTIFACT {EXPORT_FLAGS[right]}, or leave --runtime and --device out",
        )
    if quantized and runtime == "onnxruntime" and device == "cuda":
        raise UsageError(
            f"ONNX Runtime's CUDA provider has no integer convolutions for {folder}",
            expected="a deployment for tensorrt, or a float checkpoint's",
            got=f"{deployment.precision} on cuda",
            next_step="flatq export ARTIFACT --trt, then --runtime tensorrt or --device tensorrt",
        )


def open_runtime(deployment: Deployment, file: Path, settings: Settings) -> Runtime:
    """The runtime of a deployment whose place was checked; `file` is its model file."""
    if settings.runtime == "openvino":
        from flatq.runtime.openvino import OpenVinoRuntime

        return OpenVinoRuntime(
            file,
            threads=settings.threads,
            hint=cast("Hint", settings.hint or "latency"),
            precision=cast(Precision | None, settings.precision),
        )
    if settings.runtime == "tensorrt":
        from flatq.runtime.tensorrt import TensorRtRuntime

        return TensorRtRuntime(file.parent, deployment.sha256)
    from flatq.runtime.onnxruntime import OnnxRuntime

    return OnnxRuntime(
        file,
        threads=settings.threads,
        device=cast("Device", settings.device or "cpu"),
        options=_tensorrt_options(deployment) if settings.device == "tensorrt" else {},
    )


def _tensorrt_options(deployment: Deployment) -> dict[str, str]:
    """What ONNX Runtime's TensorRT provider has to be allowed, since its networks are not strongly typed."""
    allowed = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable"}.get(deployment.float_precision)
    options = {allowed: "1"} if allowed else {}
    return options | ({"trt_int8_enable": "1"} if _is_quantized(deployment) else {})


def _is_quantized(deployment: Deployment) -> bool:
    return deployment.precision not in get_args(Precision)
