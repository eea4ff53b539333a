"""A layer between float and integers: its grids, its quantized weight, and what it computes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F  # noqa: N812

from flatq.quantize.grid import QuantGrid, activation_grid
from flatq.quantize.trace import Layer, stored_value
from flatq.recipe import Decision, Port, Scheme, whole_name

__all__ = ["InputRange", "QuantLayer", "quant_layers", "quant_products"]

_aten = torch.ops.aten


@dataclass
class InputRange:
    """The range that a tensor is quantized to; methods set its ends.

    Attributes:
        scheme: of the activation.
        low, high: ends of the range, as in an artifact.
        readers: how many layers have this range at their input, reading the same tensor.
    """

    scheme: Scheme
    low: float
    high: float
    readers: int = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Fake quantization, differentiable (straight through inside the range)."""
        return activation_grid(self.low, self.high, self.scheme).fake_quantize(x)


@dataclass
class QuantLayer:
    """A planned layer; methods set `integers`, `bias` and the ends of `range`.

    Attributes:
        name: dotted module name.
        node: the operator that computes it.
        weight: float32, [out, in, kh, kw] or [out, in].
        bias: float32 [out], None where there is none.
        bias_name: the parameter that is added to the output: the layer's own, of a split convolution's second
            half that of the first; None where there is none.
        grid: of the weight.
        integers: int8, the weight's shape.
        input: the decision on what the layer reads, None where that stays in float.
        range: of what it reads, the same object for all layers that read one tensor at one width; None where
            that stays in float.
    """

    name: str
    node: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor | None
    bias_name: str | None
    grid: QuantGrid
    integers: torch.Tensor
    input: Decision | None = None
    range: InputRange | None = None

    def quantize_input(self, source: torch.Tensor) -> torch.Tensor:
        """Fake quantization of what the layer reads; the identity where that stays in float."""
        return source if self.range is None else self.range(source)

    def compute(
        self,
        weight: torch.Tensor,
        args: Sequence[Any],
        bias: torch.Tensor | None,
        quantize_input: Callable[[torch.Tensor], torch.Tensor],
    ) -> Any:
        """The operator's output for its arguments, with another weight, bias and fake quantization."""
        target: Any = self.node.target
        source, _, *rest = args
        return target(quantize_input(source), weight, *([bias, *rest[1:]] if rest else ()))

    def forward(self, *args: Any) -> Any:
        """The layer's output as it stands; stands in for the operator in a `Stream`."""
        return self.compute(self.grid.dequantize(self.integers), args, self.bias, self.quantize_input)

    def rows(self, source: torch.Tensor, *, quantize: bool = True) -> torch.Tensor:
        """What the weight, as a matrix [out, columns], is multiplied with: float32 [n, columns].

        A convolution's input is unfolded, one row for each place of the kernel. Without `quantize` it is what
        the float layer multiplies with.
        """
        source = self.quantize_input(source) if quantize else source
        if self.weight.ndim == 2:
            return source.reshape(-1, self.weight.shape[1])
        geometry: list[Any] = [1, 0, 1]
        geometry[: len(self.node.args[3:6])] = self.node.args[3:6]
        stride, padding, dilation = geometry
        unfolded = F.unfold(source, self.weight.shape[2:], dilation, padding, stride)
        return unfolded.transpose(1, 2).reshape(-1, self.weight[0].numel())


def quant_layers(
    graph: fx.GraphModule,
    layers: Sequence[Layer],
    decisions: Sequence[Decision],
    integers: Mapping[str, torch.Tensor],
    grids: Mapping[str, QuantGrid],
    ranges: Mapping[str, torch.Tensor],
) -> dict[fx.Node, QuantLayer]:
    """The planned layers of a traced graph, by their nodes, in order of execution.

    Args:
        integers, grids, ranges: as in `flatq.quantize.artifact.Artifact`.
    """
    inputs = {d.node: d for d in decisions if d.port == "input" and d.scheme is not None}
    result, owners = {}, dict[str, str]()
    shared: dict[tuple[fx.Node, Scheme], InputRange] = {}
    for layer in layers:
        name = layer.candidate.node
        if name not in integers:
            continue
        stored: Any = layer.node.args[2] if len(layer.node.args) > 2 else None
        whole = whole_name(name, layer.candidate.group)
        if stored is not None:
            owners[whole] = str(stored.target)
        decision, input_range = inputs.get(name), None
        if decision is not None:
            assert decision.scheme is not None
            key = (layer.node.all_input_nodes[0], decision.scheme)
            input_range = shared.setdefault(key, _range(decision, ranges))
            input_range.readers += 1
        result[layer.node] = QuantLayer(
            name,
            layer.node,
            _parameter(graph, layer.node.args[1]),
            None if stored is None else _parameter(graph, stored),
            owners.get(whole),
            grids[name],
            integers[name],
            decision,
            input_range,
        )
    return result


def quant_products(
    layers: Sequence[Layer], decisions: Sequence[Decision], ranges: Mapping[str, torch.Tensor]
) -> dict[fx.Node, Callable[..., Any]]:
    """What stands in for the products of decomposed attentions: the same on fake-quantized factors.

    They hold nothing that a method could choose, but what is behind them reads what they yield.

    Args:
        ranges: as in `flatq.quantize.artifact.Artifact`.
    """
    planned = {(d.node, d.port): d for d in decisions if d.scheme is not None}

    def quantizer(layer: Layer, port: Port) -> InputRange:
        return _range(planned[layer.candidate.node, port], ranges)

    def product(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda a, b: torch.matmul(first(a), second(b))

    found: dict[fx.Node, Callable[..., Any]] = {}
    for layer in layers:
        if layer.scores is not None:
            found[layer.scores] = product(quantizer(layer, "query"), quantizer(layer, "key"))
            found[layer.node] = product(quantizer(layer, "probabilities"), quantizer(layer, "value"))
    return found


def _range(decision: Decision, ranges: Mapping[str, torch.Tensor]) -> InputRange:
    assert decision.scheme is not None
    low, high = ranges[decision.range_name][decision.group].tolist()
    return InputRange(decision.scheme, low, high)


def _parameter(graph: fx.GraphModule, stored: Any) -> torch.Tensor:
    value: torch.Tensor = stored_value(graph, stored)
    return value.detach().clone()
