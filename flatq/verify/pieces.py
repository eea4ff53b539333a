"""A deployed model taken apart: single layers of it run on its runtime. The protocol, and who fulfils it.

`flatq.verify.onnx_pieces` cuts ONNX files for ONNX Runtime, `flatq.verify.openvino_pieces` OpenVINO's IR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flatq.deployment import Deployment
from flatq.errors import UsageError
from flatq.quantize.lowering import Lowered
from flatq.verify.reference import UNIT_ROUNDOFF, AnyReference

__all__ = ["Pieces", "Ran", "open_pieces"]


@dataclass(frozen=True)
class Ran:
    """A layer's run.

    Attributes:
        output: float32.
        kernels: the operators that the runtime made of it, by the runtime's names.
        integer: whether the products were summed in integers.
        roundoff: unit roundoff of the type that the floats were in.
    """

    output: NDArray[np.float32]
    kernels: tuple[str, ...]
    integer: bool
    roundoff: float = UNIT_ROUNDOFF


class Pieces(Protocol):
    """Runs single layers of a deployed model on the runtime that it was exported for."""

    def run(self, reference: AnyReference, *sources: NDArray[np.float32]) -> Ran:
        """The layer's output for its input tensor, or a product's for its two factors.

        Raises:
            ModelError: the layer is not in the deployed model, or cannot be cut out or run alone.
        """
        ...


def open_pieces(deployment: Deployment, path: Path, lowered: Lowered, threads: int) -> Pieces:
    """The layers of a deployment on the runtime of its target.

    Raises:
        UsageError: the target has none here.
    """
    if deployment.target in ("onnxruntime", "generic"):
        from flatq.verify.onnx_pieces import OnnxRuntimePieces

        return OnnxRuntimePieces(path, lowered, threads)
    if deployment.target == "openvino":
        from flatq.verify.openvino_pieces import OpenVinoPieces

        return OpenVinoPieces(path, lowered, threads)
    raise UsageError(
        f"parity for {deployment.target} is not offered",
        expected="a deployment for onnxruntime, openvino or generic",
        got=deployment.target,
        next_step="export for TensorRT without it; `flatq eval` compares what the engine samples",
    )
