"""Which of ONNX Runtime's operators multiply and accumulate, and on what."""

from __future__ import annotations

__all__ = ["INTEGER", "PRODUCTS", "WHOLE_ATTENTIONS"]

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

WHOLE_ATTENTIONS = {
    "Attention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "QAttention",
    "SparseAttention",
}
"""Both products of an attention at once."""

PRODUCTS = (
    INTEGER
    | WHOLE_ATTENTIONS
    | {
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "GatherBlockQuantized",
        "Gemm",
        "GemmFloat8",
        "MatMul",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulNBits",
        "NhwcFusedConv",
    }
)
"""All products. An operator that holds a layer's weight counts as one even if its name is not here."""
