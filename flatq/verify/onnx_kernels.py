"""Which of ONNX Runtime's operators multiply and accumulate, and on what."""

from __future__ import annotations

import onnx

__all__ = ["INTEGER", "PRODUCTS", "is_integer"]

INTEGER = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""Products of integers, summed in int32."""

PRODUCTS = INTEGER | {
    "Attention",
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "FusedMatMulActivation",
    "GatherBlockQuantized",
    "Gemm",
    "GemmFloat8",
    "GroupQueryAttention",
    "MatMul",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulNBits",
    "MultiHeadAttention",
    "NhwcFusedConv",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "SparseAttention",
}
"""All products. An operator that holds a layer's weight counts as one even if its name is not here."""


def is_integer(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies integers and sums them as integers."""
    return node.op_type in INTEGER
