"""Biases as integer kernels add them: in whole steps of the sum of products.

ONNX Runtime's QLinearConv and QGemm take the bias as int32 in steps of input scale x weight scale, and round
a float bias to that while they load. At 4 bits such a step is near an output's quantization step, so the
rounding shows. Done here, in the lowered graph, it is part of what the torch graph computes, and the kernels
add nothing to it.

A bias has to fit an int32 in those steps. That of a channel whose weights training left at 1e-10 does not, so
quantizing gives such weights coarser steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

import flatq.quantize.quantizer  # noqa: F401  (defines the operators below)
from flatq.quantize.grid import SMALLEST_SCALE, QuantGrid
from flatq.quantize.trace import stored_value

__all__ = ["room_for_bias", "round_biases"]

_aten = torch.ops.aten
_decomposed = torch.ops.quantized_decomposed
_LAYERS = (_aten.conv2d.default, _aten.linear.default)
_DEQUANTIZE = (_decomposed.dequantize_per_tensor.default, _decomposed.dequantize_per_channel.default)

_BITS = 20
"""Bits of a bias whose channel has no weights, and so no scale of its own."""
_MOST_BITS = 28
"""Bits of any bias: an int32 has room for the sum of products beside it, and for what a correction adds."""


def room_for_bias(
    integers: torch.Tensor, grid: QuantGrid, bias: torch.Tensor | None, input_scale: float
) -> tuple[torch.Tensor, QuantGrid]:
    """Integers and grid of a weight at which its bias has at most `_MOST_BITS` bits in steps of the sum.

    Where it has more, the channel's scale is raised. The weights then lose up to half a new step, which moves
    the output by at most 255 / 2^29 of the bias for each of them. The step is also kept a normal float32.

    Args:
        integers: int8 [out, ...].
        bias: float32 [out]; None counts as zeros.
    """
    scale = grid.scale
    least = torch.full((len(integers),), 2 * SMALLEST_SCALE / input_scale, dtype=torch.float64)
    if bias is not None:
        least = torch.maximum(least, bias.double().abs() / (2.0**_MOST_BITS * input_scale))
    raised = torch.maximum(scale.double(), least if scale.ndim else least.amax())
    raised = raised.clamp_max(torch.finfo(torch.float32).max).to(scale.dtype)
    ratio = scale.double() / raised.double()
    columns = ratio.reshape(-1, *[1] * (integers.ndim - 1)) if scale.ndim else ratio
    return (integers.double() * columns).round().to(integers.dtype), replace(grid, scale=raised)


def round_biases(graph: fx.GraphModule) -> None:
    """Round the bias of every layer that runs as one integer kernel, in place.

    These are the layers whose input and weight are dequantized and whose output is quantized at once. A
    channel whose integers are all zero gets a weight scale at which its bias has at most `_BITS` bits: its
    own says nothing, and may be too small for the bias to fit an int32.
    """
    for node in graph.graph.nodes:
        if node.target not in _LAYERS or len(node.args) < 3 or node.args[2] is None:
            continue
        source, weight, bias_node = node.args[:3]
        users = list(node.users)
        if (
            source.target is not _decomposed.dequantize_per_tensor.default
            or weight.target not in _DEQUANTIZE
            or len(users) != 1
            or users[0].target is not _decomposed.quantize_per_tensor.default
        ):
            continue
        bias = stored_value(graph, bias_node)
        input_scale = float(source.args[1])
        with torch.no_grad():
            if weight.target is _decomposed.dequantize_per_channel.default:
                scale, integers = stored_value(graph, weight.args[1]), stored_value(graph, weight.args[0])
                empty = (integers.reshape(len(integers), -1) == 0).all(1) & (bias != 0)
                wanted = bias[empty].abs() / (2.0**_BITS * input_scale)
                scale[empty] = torch.maximum(scale[empty], wanted.to(scale.dtype))
            else:
                scale = torch.tensor(float(weight.args[1]))
            step = scale.double() * input_scale
            bias.copy_((bias.double() / step).round() * step)
