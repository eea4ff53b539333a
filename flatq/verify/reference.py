"""One layer of the torch Q/DQ graph as a function of its input tensor: what a runtime's result is held to.

The integers, scales and bounds are those of the lowered graph's own nodes. The sum of products is computed in
float64, exactly where both factors are integers, so that the reference adds no rounding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import Lowered, grid_of
from flatq.quantize.trace import stored_value

__all__ = [
    "UNIT_ROUNDOFF",
    "AnyReference",
    "ProductReference",
    "Reference",
    "Result",
    "away_from_edges",
    "capture_sources",
    "find_references",
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

Step = Literal["output", "accumulator", "rounding"]


def away_from_edges(value: torch.Tensor, grid: QuantGrid) -> torch.Tensor:
    """The values, with those close to the edge between two integers moved onto one of the two."""
    scale = float(grid.scale)
    steps = value.double() / scale
    near = (steps - steps.floor() - 0.5).abs() < EDGE
    return torch.where(near, (steps.floor() * scale).to(value.dtype), value)


@dataclass(frozen=True)
class Reference:
    """A planned layer of the lowered graph.

    Attributes:
        layer: its name.
        sources: the node whose tensor it reads, before any quantizer of its own.
        node: the node that multiplies.
        inputs: the grid of its input, None where that is float.
        output: the grid of its output, None where that is float.
        integers: int8, the quantized weight.
        weight_scale: float64, [channels] or [].
        bias: float64 [channels], zeros where there is none.
    """

    layer: str
    sources: tuple[fx.Node]
    node: fx.Node
    inputs: tuple[QuantGrid | None]
    output: QuantGrid | None
    integers: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor

    def evaluate(
        self, value: torch.Tensor, *, integer: bool = True, roundoff: float = UNIT_ROUNDOFF
    ) -> Result:
        """The layer's exact output, and how far a runtime's may be from it.

        Args:
            value: float32, the source's tensor.
            integer: whether the runtime sums in integers, where the input has a quantizer.
            roundoff: unit roundoff of the type that the runtime's floats are in.
        """
        (grid,) = self.inputs
        factor = value.double() if grid is None else grid.quantize(value.double()) - grid.zero_point
        step = self._by_channel(self.weight_scale * (1.0 if grid is None else float(grid.scale)))
        weight = self.integers.double()
        bias = self._by_channel(self.bias)
        exact = self._multiply(factor, weight) * step + bias
        if self.output is not None:
            scale = float(self.output.scale)
            one = torch.tensor(scale, dtype=torch.float64)
            # Sums of narrow integers are few: one on the edge of two output steps comes again and again.
            from_edge = (exact / scale - (exact / scale).floor() - 0.5).abs() * scale
            either = from_edge <= 8 * UNIT_ROUNDOFF * (exact.abs() + bias.abs())
            same = torch.where(either, 1.001 * one, one / 2)
            return Result(self.output.dequantize(self.output.quantize(exact)), "output", one, same)
        if grid is not None and integer:
            rounding = (8 * roundoff * (exact.abs() + bias.abs())).clamp_min(_SMALLEST)
            return Result(exact, "accumulator", torch.maximum(step.expand_as(exact), rounding), rounding)
        magnitude = self._multiply(factor.abs(), weight.abs()) * step + bias.abs()
        rounding = (16 * roundoff * magnitude).clamp_min(_SMALLEST)
        return Result(exact, "rounding", rounding, rounding)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return len(self.integers)

    def _by_channel(self, value: torch.Tensor) -> torch.Tensor:
        trailing = 2 if self.integers.ndim == 4 else 0
        return value.reshape(-1, *[1] * trailing)

    def _multiply(self, factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        operator: Any = self.node.target
        product: torch.Tensor = operator(factor, weight, None, *self.node.args[3:], **self.node.kwargs)
        return product


@dataclass(frozen=True)
class ProductReference:
    """A product of two computed tensors of the lowered graph: of an attention, one of its two.

    Attributes:
        layer: its name, one of `product_names`.
        sources: the nodes whose tensors it reads, before any quantizers: [..., n, k] and [..., k, m].
        node: the node that multiplies.
        inputs: the grids of the factors.
    """

    layer: str
    sources: tuple[fx.Node, fx.Node]
    node: fx.Node
    inputs: tuple[QuantGrid, QuantGrid]

    @property
    def channels(self) -> int:
        """Size of the axis that stands for channels in parity: the heads'."""
        return int(self.node.meta["val"].shape[1])

    def evaluate(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        *,
        integer: bool = True,
        roundoff: float = UNIT_ROUNDOFF,
    ) -> Result:
        """As `Reference.evaluate`, for the two sources' tensors, float32."""
        pairs = zip(self.inputs, (first, second), strict=True)
        a, b = (grid.quantize(value.double()) - grid.zero_point for grid, value in pairs)
        step = float(self.inputs[0].scale) * float(self.inputs[1].scale)
        exact = a @ b * step
        if integer:
            rounding = 8 * roundoff * exact.abs()
            return Result(exact, "accumulator", rounding.clamp_min(step), rounding)
        rounding = 16 * roundoff * step * (a.abs() @ b.abs())
        return Result(exact, "rounding", rounding, rounding)


AnyReference = Reference | ProductReference


def product_names(attention: str) -> tuple[str, str]:
    """Names of an attention's two products: of queries and keys, and of the softmax's weights and values."""
    return f"{attention}.scores", f"{attention}.attended"


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
    kind: Step
    step: torch.Tensor
    same: torch.Tensor

    def compare(self, other: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """|other - value| in steps, infinite where `other` is not a number, and where the two are equal."""
        found = torch.from_numpy(np.asarray(other, dtype=np.float64))
        distance = (found - self.value).abs().nan_to_num(nan=torch.inf)
        steps = torch.where(distance == 0, 0.0, distance / self.step)
        equal = distance <= self.same
        return steps.numpy(), equal.numpy()


def find_references(lowered: Lowered) -> list[AnyReference]:
    """Every planned layer and every quantized product of a lowered graph, in order of execution."""
    graph = lowered.graph
    names = {weight: layer for layer, weight in lowered.layers.items()}
    products = {
        node: name
        for attention, nodes in lowered.products.items()
        for node, name in zip(nodes, product_names(attention), strict=True)
    }
    found: list[AnyReference] = []
    for node in graph.graph.nodes:
        if node.name in products:
            found.append(_product(products[node.name], node))
            continue
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        weight = node.args[1]
        if not (isinstance(weight, fx.Node) and weight.target in _DEQUANTIZE_WEIGHT):
            continue
        layer = names.get(str(_node(weight.args[0]).target))
        if layer is not None:
            found.append(_reference(graph, layer, node, weight))
    missing = {*lowered.layers, *products.values()} - {reference.layer for reference in found}
    assert not missing, f"not in the lowered graph: {sorted(missing)}"
    return found


def _reference(graph: fx.GraphModule, layer: str, node: fx.Node, weight: fx.Node) -> Reference:
    source, grid = _input(_node(node.args[0]))
    integers = _tensor(graph, weight.args[0])
    per_tensor = weight.target is _decomposed.dequantize_per_tensor.default
    scale = (
        torch.tensor(weight.args[1], dtype=torch.float64) if per_tensor else _tensor(graph, weight.args[1])
    )
    bias = node.args[2] if len(node.args) > 2 else None
    return Reference(
        layer=layer,
        sources=(source,),
        node=node,
        inputs=(grid,),
        output=_output(node),
        integers=integers,
        weight_scale=scale.double(),
        bias=torch.zeros(len(integers)).double() if bias is None else _tensor(graph, bias).double(),
    )


def _product(name: str, node: fx.Node) -> ProductReference:
    (first, one), (second, other) = (_input(_node(argument)) for argument in node.args[:2])
    assert one is not None
    assert other is not None
    return ProductReference(name, (first, second), node, (one, other))


def _input(node: fx.Node) -> tuple[fx.Node, QuantGrid | None]:
    if node.target is not _decomposed.dequantize_per_tensor.default:
        return node, None
    quantize = _node(node.args[0])
    grid = grid_of(quantize)
    source = _node(quantize.args[0])
    if source.target is _aten.clamp.default and source.args[1:3] == grid.bounds:
        source = _node(source.args[0])
    return source, grid


def _output(node: fx.Node) -> QuantGrid | None:
    """The grid that all users of a layer read it through, if there is one."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not _decomposed.quantize_per_tensor.default:
        return None
    return grid_of(users[0])


def _node(argument: Any) -> fx.Node:
    assert isinstance(argument, fx.Node), argument
    return argument


def _tensor(graph: fx.GraphModule, argument: Any) -> torch.Tensor:
    value = stored_value(graph, _node(argument))
    assert isinstance(value, torch.Tensor)
    return value.detach().cpu()


def capture_sources(
    lowered: Lowered,
    references: Sequence[AnyReference],
    inputs: tuple[torch.Tensor, ...],
    take: Callable[[AnyReference, tuple[torch.Tensor, ...]], None],
) -> torch.Tensor:
    """Run the lowered graph once and hand out each reference's input tensors as soon as they are there.

    Args:
        inputs: x, t and maybe label.
        take: called once for each reference, in the order in which their inputs are there.

    Returns:
        The graph's output.
    """
    waiting: dict[fx.Node, list[AnyReference]] = {}
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
