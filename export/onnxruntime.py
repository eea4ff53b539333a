"""For ONNX Runtime on the CPU: one ONNX file, weights of 4 bits and less as INT4 behind a Cast.

ONNX Runtime folds the Cast when it loads the file, and its int8 kernels run what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from flatq.deployment import FloatPrecision
from flatq.export.onnx import ONNX_FILE, narrow_weights, save_onnx

__all__ = ["write"]


def write(model: onnx.ModelProto, bits: Mapping[str, int], folder: Path, floats: FloatPrecision) -> str:
    """Write the model; see `flatq.export.targets`."""
    narrow_weights(model, bits)
    save_onnx(model, folder / ONNX_FILE)
    return ONNX_FILE
