"""Which runtime, device and target go together, and the runtime of a deployment. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from flatq.deployment import Deployment, Target, is_float
from flatq.errors import UsageError
from flatq.runtime.base import Precision, Runtime

if TYPE_CHECKING:
    from flatq.runtime.onnxruntime import Device
    from flatq.runtime.openvino import Hint

__all__ = [
    "DEVICES",
    "EXPORT_FLAGS",
    "RUNTIMES",
    "RuntimeSettings",
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


@dataclass(frozen=True)
class RuntimeSettings:
    """How a model runs.

    Attributes:
        runtime: one of `RUNTIMES`. By default a checkpoint runs in torch, a deployment on the runtime that it
            was lowered for, an artifact on ONNX Runtime.
        device: one of `DEVICES`, the CPU by default. `cuda` goes with torch, ONNX Runtime and TensorRT;
            `tensorrt` is ONNX Runtime's TensorRT execution provider.
        precision: floating-point precision of OpenVINO's float operators (fp32, bf16 or fp16); OpenVINO
            chooses by default.
        threads: number of CPU threads, all cores by default.
        hint: OpenVINO's performance hint, latency (the default) or throughput.
    """

    runtime: str | None = None
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    hint: str | None = None

    def on(self, runtime: str) -> RuntimeSettings:
        """The same settings on a given runtime, without OpenVINO's own where it is another."""
        own = runtime == "openvino"
        return replace(
            self,
            runtime=runtime,
            precision=self.precision if own else None,
            hint=self.hint if own else None,
        )


def runtime_of(target: Target, device: str | None = None) -> str:
    """The runtime that a target's deployment runs on if none is named."""
    if target == "generic" or (target, device) == ("tensorrt", "tensorrt"):
        return "onnxruntime"
    return target


def target_of(settings: RuntimeSettings) -> Target:
    """The target whose deployment these settings run; ONNX Runtime's where they name no runtime."""
    if "tensorrt" in (settings.runtime, settings.device):
        return "tensorrt"
    return cast(Target, settings.runtime or "onnxruntime")


def check_settings(settings: RuntimeSettings) -> None:
    """Refuse settings that are not offered or do not go together.

    Raises:
        UsageError: it names the option.
    """
    runtime = settings.runtime or ""
    devices = {"torch": ("cpu", "cuda"), "onnxruntime": DEVICES, "openvino": ("cpu",), "tensorrt": ("cuda",)}
    checks: list[tuple[str, str | None, tuple[str, ...]]] = [("--runtime", settings.runtime, RUNTIMES)]
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


def check_place(deployment: Deployment, folder: Path, settings: RuntimeSettings) -> None:
    """Refuse a graph on a runtime or provider that would not run its integers.

    Raises:
        UsageError: it names the right target.
    """
    target, runtime, device = deployment.target, settings.runtime, settings.device
    quantized = not is_float(deployment.precision)
    if quantized or runtime != "onnxruntime":
        right = target_of(settings)
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


def open_runtime(deployment: Deployment, file: Path, settings: RuntimeSettings) -> Runtime:
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
    return options | ({"trt_int8_enable": "1"} if not is_float(deployment.precision) else {})
