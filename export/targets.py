"""What differs between the targets' model files, and which float precisions each takes.

All are ONNX files of opset 21 but OpenVINO's, which is its IR. In them stands:

- in front of every planned layer QuantizeLinear and DequantizeLinear of its input, per tensor; behind it only
  for ONNX Runtime; a 4-bit activation is clipped to its 16 values before it, and so on;
- the weight as an initializer behind DequantizeLinear, per output channel (axis 0) or per tensor, with zero
  point 0: INT8 for TensorRT and `generic` (-8..7 at 4 bits: TensorRT's INT4 is for matrix products with float
  activations, and few other consumers read INT4 in front of a convolution), INT4 behind a Cast at 4 bits and
  less for ONNX Runtime and OpenVINO, which fold the Cast when they load the model;
- where the recipe quantizes attention, the same in front of both factors of its two products;
- bias, normalization and everything else in float;
- inputs x float32 [batch, C, H, W], t int64 [batch] and, with classes, label int64 [batch]; output `out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from flatq.deployment import FloatPrecision, Target
from flatq.errors import UsageError
from flatq.export.onnx import ONNX_FILE, narrow_weights, save_onnx
from flatq.export.openvino import write_openvino
from flatq.runtime.openvino import import_openvino

__all__ = ["check_floats", "converter_versions", "write_model"]

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


def write_model(
    model: onnx.ModelProto, bits: Mapping[str, int], folder: Path, target: Target, floats: FloatPrecision
) -> str:
    """Write a model of `flatq.export.onnx` that is lowered for a target; returns the name of the main file.

    Args:
        bits: name of each weight's initializer -> width of its integers.

    Raises:
        MissingRuntimeError: the target's own converter is not installed.
        ModelError: the converter refuses the graph, or the model is too large for one file.
    """
    if target in ("onnxruntime", "openvino"):
        narrow_weights(model, bits)
    if target == "openvino":
        return write_openvino(model, folder, floats)
    save_onnx(model, folder / ONNX_FILE)
    return ONNX_FILE


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
