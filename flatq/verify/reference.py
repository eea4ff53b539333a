"""One layer of the torch Q/DQ graph as a function of its input tensor: what a runtime's result is held to.

The integers, scales and bounds are those of the lowered graph's own nodes. The sum of products is computed in
float64, exactly where both factors are integers, so that the reference adds no rounding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import Lowered, grid_of
from flatq.quantize.trace import stored_value
from flatq.recipe import Kind

__all__ = [
    "UNIT_ROUNDOFF",
    "Reference",
    "Result",
    "away_from_edges",
    "capture_sources",
    "find_references",
    "named_products",
    "product_names",
]

_aten = torch.ops.aten
_decomposed = torch.ops.quantized_decomposed
_LAYERS = (_aten.conv2d.default, _aten.linear.default)
_DEQUANTIZE_WEIGHT = (_decomposed.dequantize_per_channel.default, _decomposed.dequantize_per_tensor.default)

EDGE = 1e-3
"""Inputs are kept this far, in steps, from the edge of two integers: one runtime divides by the scale where
another multiplies by its reciprocal, and both are right."""

UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""

_SMALLEST = 2.0**-126
"""What float32 holds below it is a denormal, which some runtimes flush to zero."""

_ZERO, _ONE = torch.tensor([0.0, 1.0], dtype=torch.float64)


def away_from_edges(value: torch.Tensor, grid: QuantGrid) -> torch.Tensor:
    """The values, with those close to the edge between two integers moved onto one of the two."""
    scale = float(grid.scale)
    steps = value.double() / scale
    near = (steps - steps.floor() - 0.5).abs() < EDGE
    return torch.where(near, (steps.floor() * scale).to(value.dtype), value)


@dataclass(frozen=True)
class Reference:
    """A planned layer of the lowered graph, or one of the two products of an attention.

    Attributes:
        layer: its name, of a product one of `product_names`.
        sources: the nodes whose tensors it reads, before any quantizers: of a layer its input, of a product
            its two factors [..., n, k] and [..., k, m].
        node: the node that multiplies.
        inputs: the grids of what it reads, None where a layer's input is float.
        output: the grid of its output, None where that is float.
        integers: int8, the quantized weight; None for a product.
        weight_scale: float64, [channels] or [].
        bias: float64 [channels] or [], zeros where there is none.
    """

    layer: str
    sources: tuple[fx.Node, ...]
    node: fx.Node
    inputs: tuple[QuantGrid | None, ...]
    output: QuantGrid | None = None
    integers: torch.Tensor | None = None
    weight_scale: torch.Tensor = _ONE
    bias: torch.Tensor = _ZERO

    @property
    def kind(self) -> Kind:
        """What it computes."""
        if self.integers is None:
            return "attention"
        return "conv2d" if self.integers.ndim == 4 else "linear"

    def evaluate(self, *values: torch.Tensor, integer: bool = True) -> Result:
        """The exact output, and how far a runtime's may be from it.

        Args:
            values: float32, the tensors of the sources.
            integer: whether the runtime sums in integers, where the inputs have quantizers.
        """
        factors, step = [], self._by_channel(self.weight_scale)
        for value, grid in zip(values, self.inputs, strict=True):
            wide = value.double()
            factors.append(wide if grid is None else grid.quantize(wide) - grid.zero_point)
            step = step if grid is None else step * float(grid.scale)
        if self.integers is not None:
            factors.append(self.integers.double())
        bias = self._by_channel(self.bias)
        exact = self._multiply(factors) * step + bias
        if self.output is not None:
            scale = float(self.output.scale)
            one = torch.tensor(scale, dtype=torch.float64)
            # Sums of narrow integers are few: one on the edge of two output steps comes again and again.
            from_edge = (exact / scale - (exact / scale).floor() - 0.5).abs() * scale
            either = from_edge <= 8 * UNIT_ROUNDOFF * (exact.abs() + bias.abs())
            same = torch.where(either, 1.001 * one, one / 2)
            return Result(self.output.dequantize(self.output.quantize(exact)), "output", one, same)
        if integer and None not in self.inputs:
            rounding = (8 * UNIT_ROUNDOFF * (exact.abs() + bias.abs())).clamp_min(_SMALLEST)
            return Result(exact, "accumulator", torch.maximum(step.expand_as(exact), rounding), rounding)
        magnitude = self._multiply([factor.abs() for factor in factors]) * step + bias.abs()
        rounding = (16 * UNIT_ROUNDOFF * magnitude).clamp_min(_SMALLEST)
        return Result(exact, "rounding", rounding, rounding)

    def _by_channel(self, value: torch.Tensor) -> torch.Tensor:
        return value.reshape(-1, 1, 1) if self.kind == "conv2d" else value

    def _multiply(self, factors: Sequence[torch.Tensor]) -> torch.Tensor:
        operator: Any = self.node.target
        # Behind the two factors a layer has its bias, and a convolution its stride and padding.
        rest = () if self.integers is None else (None, *self.node.args[3:])
        product: torch.Tensor = operator(*factors, *rest, **self.node.kwargs)
        return product


def product_names(attention: str) -> tuple[str, str]:
    """Names of an attention's two products: of queries and keys, and of the softmax's weights and values."""
    return f"{attention}.scores", f"{attention}.attended"


def named_products(owners: Mapping[str, str], attentions: Collection[str]) -> dict[str, str]:
    """Name of each product of attentions, one of `product_names` -> the operator of a model that computes it.

    Args:
        owners: operators in order of execution -> the attention, or the layer, that each is of.
    """
    return {
        name: operator
        for attention in attentions
        for name, operator in zip(
            product_names(attention), [o for o, owner in owners.items() if owner == attention], strict=False
        )
    }


@dataclass(frozen=True)
class Result:
    """A layer's exact output and how far another may be from it; float64, broadcastable to each other.

    Attributes:
        value: the output, dequantized where it has a quantizer.
        kind: what the step is: see the two cases of a float output below.
        step: the most that it may be off. Behind an output quantizer, its step. Of a float output whose
            inputs are integers, one step of the integer sum, input scale x weight scale, or what float32 can
            resolve where that is more. Of a float output that was summed in float, 16 unit roundoffs of the
            sum of the products' magnitudes, which is what another order of summing moves.
        same: below this it counts as equal. Behind an output quantizer, half a step, or a whole one where
            what is quantized lies on the edge of two steps to float32's rounding. Of a float output whose
            inputs are integers, 8 unit roundoffs of |output| + |bias|: the integer sum is exact, and about
            four float32 roundings follow it. Else the step.
    """

    value: torch.Tensor
    kind: Literal["output", "accumulator", "rounding"]
    step: torch.Tensor
    same: torch.Tensor

    def compare(self, other: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """|other - value| in steps, infinite where `other` is not a number, and where the two are equal."""
        found = torch.from_numpy(np.asarray(other, dtype=np.float64))
        distance = (found - self.value).abs().nan_to_num(nan=torch.inf)
        steps = torch.where(distance == 0, 0.0, distance / self.step)
        equal = distance <= self.same
        return steps.numpy(), equal.numpy()


def find_references(lowered: Lowered) -> list[Reference]:
    """Every planned layer and every quantized product of a lowered graph, in order of execution."""
    layers = {weight: layer for layer, weight in lowered.layers.items()}
    products = {
        node: name
        for attention, nodes in lowered.products.items()
        for node, name in zip(nodes, product_names(attention), strict=True)
    }
    found = []
    for node in lowered.graph.graph.nodes:
        if node.name in products:
            sources, grids = zip(*map(_input, node.args[:2]), strict=True)
            found.append(Reference(products[node.name], sources, node, grids))
        elif node.target in _LAYERS and node.args[1].target in _DEQUANTIZE_WEIGHT:
            layer = layers.get(node.args[1].args[0].target)
            if layer is not None:
                found.append(_layer(lowered.graph, layer, node))
    missing = {*lowered.layers, *products.values()} - {reference.layer for reference in found}
    assert not missing, f"not in the lowered graph: {sorted(missing)}"
    return found


def _layer(graph: fx.GraphModule, layer: str, node: Any) -> Reference:
    source, grid = _input(node.args[0])
    stored, scale, *_ = node.args[1].args
    integers = stored_value(graph, stored).detach()
    bias = node.args[2] if len(node.args) > 2 else None
    # All users read the output through one quantizer, or it is float.
    (user, *others) = node.users
    quantized = not others and user.target is _decomposed.quantize_per_tensor.default
    return Reference(
        layer,
        (source,),
        node,
        (grid,),
        grid_of(user) if quantized else None,
        integers,
        torch.as_tensor(
            scale if isinstance(scale, float) else stored_value(graph, scale), dtype=torch.float64
        ),
        torch.zeros(len(integers)).double() if bias is None else stored_value(graph, bias).detach().double(),
    )


def _input(node: Any) -> tuple[fx.Node, QuantGrid | None]:
    """The tensor that an operator reads, before its quantizer and the clamp in front, and the grid."""
    if node.target is not _decomposed.dequantize_per_tensor.default:
        return node, None
    quantize = node.args[0]
    source, grid = quantize.args[0], grid_of(quantize)
    if source.target is _aten.clamp.default and source.args[1:3] == grid.bounds:
        source = source.args[0]
    return source, grid


def capture_sources(
    lowered: Lowered,
    references: Sequence[Reference],
    inputs: tuple[torch.Tensor, ...],
    take: Callable[[Reference, tuple[torch.Tensor, ...]], None],
) -> torch.Tensor:
    """Run the lowered graph once and hand out each reference's input tensors as soon as they are there.

    Args:
        inputs: x, t and maybe label.
        take: called once for each reference, in the order in which their inputs are there.

    Returns:
        The graph's output.
    """
    waiting: dict[fx.Node, list[Reference]] = {}
    for reference in references:
        for source in dict.fromkeys(reference.sources):
            waiting.setdefault(source, []).append(reference)
    parts: dict[str, dict[fx.Node, torch.Tensor]] = {reference.layer: {} for reference in references}

    class Capture(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            for reference in waiting.get(node, ()):
                there = parts[reference.layer]
                there[node] = value
                if there.keys() == set(reference.sources):
                    take(reference, tuple(there[source] for source in reference.sources))
                    there.clear()
            return value

    with torch.no_grad():
        output: torch.Tensor = Capture(lowered.graph).run(*inputs)
    return output
