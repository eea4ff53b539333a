"""For TensorRT: one ONNX file whose integers are symmetric int8.

4-bit weights are codes of -8..7 in INT8 initializers: TensorRT's INT4 is for matrix products with float
activations, and its convolutions run in int8. The engine is `flatq.export.engine`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from flatq.deployment import FloatPrecision
from flatq.export.onnx import ONNX_FILE, save_onnx
from flatq.export.symmetry import check_symmetric

__all__ = ["write"]


def write(model: onnx.ModelProto, bits: Mapping[str, int], folder: Path, floats: FloatPrecision) -> str:
    """Write the model; see `flatq.export.targets`.

    Raises:
        ModelError: the graph is not symmetric.
    """
    check_symmetric(model)
    save_onnx(model, folder / ONNX_FILE)
    return ONNX_FILE
