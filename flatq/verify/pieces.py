"""A deployed model taken apart, so that single layers of it run on its runtime: the protocol.

`flatq.verify.onnx_pieces` cuts ONNX files for ONNX Runtime, `flatq.verify.openvino_pieces` OpenVINO's IR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flatq.verify.reference import UNIT_ROUNDOFF, AnyReference

__all__ = ["Pieces", "Ran"]


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
