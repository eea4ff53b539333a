"""For any other consumer of ONNX: plain QuantizeLinear and DequantizeLinear, opset 21.

What stands in the file:

- in front of every planned layer QuantizeLinear and DequantizeLinear of its input: per tensor, affine uint8
  (int8 where the recipe is symmetric); a 4-bit activation is clipped to its 16 values before it, and so on;
- its weight as an INT8 initializer behind DequantizeLinear: per output channel (axis 0) or per tensor, as the
  recipe says, zero point 0; 4-bit weights are codes of -8..7 in it, since few consumers read INT4 in front of
  a convolution;
- where the recipe quantizes attention, the same in front of both factors of its two products, with the zero
  point 0;
- bias, normalization and everything else in float32; no Q/DQ behind a layer or a product;
- inputs x float32 [batch, C, H, W], t int64 [batch] and, with classes, label int64 [batch]; output `out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from flatq.deployment import FloatPrecision
from flatq.export.onnx import ONNX_FILE, save_onnx

__all__ = ["write"]


def write(model: onnx.ModelProto, bits: Mapping[str, int], folder: Path, floats: FloatPrecision) -> str:
    """Write the model; see `flatq.export.targets`."""
    save_onnx(model, folder / ONNX_FILE)
    return ONNX_FILE
