"""What the targets have in common: who writes which model files, and which floats each takes.

A writer gets an ONNX model of `flatq.export.onnx` lowered for its target, the width of the codes in each
weight's initializer, the folder to write into, and the type of the float rest. It returns the name of the
main file; the deployment folder takes the digest of every file that it left.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from flatq.deployment import FloatPrecision, Target
from flatq.errors import UsageError
from flatq.runtime.openvino import import_openvino

__all__ = ["Writer", "check_floats", "converter_versions", "writer_for"]

Writer = Callable[[onnx.ModelProto, Mapping[str, int], Path, FloatPrecision], str]

_INTEGERS_WANT_FLOAT32 = "the kernels with integers go with float32; fp16 is for float checkpoints"
_BF16_AT_RUN_TIME = "OpenVINO takes bf16 when it runs, not in the file: --precision bf16"
_REFUSED: dict[tuple[Target, FloatPrecision, bool], str] = {
    ("onnxruntime", "fp16", True): _INTEGERS_WANT_FLOAT32,
    ("onnxruntime", "bf16", True): _INTEGERS_WANT_FLOAT32,
    ("onnxruntime", "bf16", False): "ONNX Runtime has no convolution in bf16",
    ("openvino", "bf16", True): _BF16_AT_RUN_TIME,
    ("openvino", "bf16", False): _BF16_AT_RUN_TIME,
    ("generic", "fp16", True): "the generic form is float32 outside the integers",
    ("generic", "bf16", True): "the generic form is float32 outside the integers",
    ("generic", "bf16", False): "few consumers of ONNX take bf16",
}
"""(target, type of the floats, quantized) -> why not. What is left: fp16 of float checkpoints, fp16
in OpenVINO's file (it computes in what `--precision` says), and fp16 and bf16 for TensorRT."""


def writer_for(target: Target) -> Writer:
    """The `write` of the target's file in this room."""
    writer: Writer = importlib.import_module(f"flatq.export.{target}").write
    return writer


def check_floats(target: Target, floats: FloatPrecision, *, quantized: bool) -> None:
    """Refuse a type of the float rest that the target does not take.

    Raises:
        UsageError: the combination, with the reason.
    """
    reason = _REFUSED.get((target, floats, quantized))
    if reason is not None:
        raise UsageError(
            f"--float-precision {floats} is not offered for {target}",
            expected="--float-precision fp32" if quantized else "--float-precision fp32 or fp16",
            got=reason,
            next_step="leave --float-precision out",
        )


def converter_versions(target: Target) -> dict[str, str]:
    """Versions of the packages that turn a lowered graph into the target's files.

    Raises:
        MissingRuntimeError: one is not installed.
    """
    versions = {"onnx": onnx.__version__}
    return versions | {"openvino": import_openvino().__version__} if target == "openvino" else versions
