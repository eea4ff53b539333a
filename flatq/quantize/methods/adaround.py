"""AdaRound: whether each weight is rounded down or up is learned, block by block.

- Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": the rectified sigmoid h
  (eq. 23) and the regularizer (eq. 24) that is annealed until h is 0 or 1.
- Li et al. 2021, "BRECQ": the error is that of a block's output, its inputs come from the network quantized
  so far, and its target from the float network.
- Here the codes to start from are GPTQ's, which a code may leave for its neighbour: from the float weight, as
  the papers start, it stayed behind GPTQ (22.0 against 23.1 dB at w4a8 on the digits, 300 iterations).
- Wei et al. 2022, "QDrop": part of the inputs is the float network's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from flatq.quantize.methods.blocks import Block
from flatq.quantize.methods.layer import QuantLayer
from flatq.quantize.methods.options import AdaRound
from flatq.quantize.methods.stream import Values, execute

__all__ = ["Outcome", "SoftRounding", "reconstruct"]

_GAMMA, _ZETA = -0.1, 1.1
"""The stretched sigmoid's ends (Louizos et al. 2018)."""
_HALF = 0.501
"""A soft code starts on the given code's side of the middle."""


@dataclass(frozen=True)
class Outcome:
    """Mean squared errors of a block's outputs on the calibration inputs.

    Attributes:
        given: with the codes that it started from.
        learned: with the codes that were learned.
    """

    given: float
    learned: float


class SoftRounding:
    """The codes of a layer as a lower neighbour + h(V), with V to be learned.

    The two codes to choose from are the layer's own and the next one towards the float weight. At the start
    h(V) lies halfway between the code and the float weight, so that the hard codes are the layer's.
    """

    def __init__(self, layer: QuantLayer) -> None:
        self._layer = layer
        exact, codes = layer.weight / layer.scale, layer.codes.float()
        self._floor = torch.where(codes > exact, codes - 1, codes)
        start = ((codes + exact) / 2 - self._floor).clamp(0.0, 1.0)
        start = torch.where(codes > exact, start.clamp(min=_HALF), start.clamp(max=1 - _HALF))
        self.v = torch.logit((start - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()

    def h(self) -> torch.Tensor:
        """The share that each code is rounded up, in [0, 1]."""
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def weight(self) -> torch.Tensor:
        """The weight with soft codes; differentiable in V."""
        codes = (self._floor + self.h()).clamp(self._layer.low, self._layer.high)
        return codes * self._layer.scale

    def codes(self) -> torch.Tensor:
        """Hard codes: down or up."""
        codes = self._floor + (self.v.detach() >= 0)
        return codes.clamp(self._layer.low, self._layer.high).to(torch.int8)


def reconstruct(
    block: Block,
    exact: Sequence[Values],
    quantized: Sequence[Values],
    options: AdaRound,
    generator: torch.Generator,
    step: Callable[[], None] | None = None,
) -> Outcome:
    """Learn the codes of a block's layers and set them, unless their error is above that of the given ones.

    Args:
        block: whose layers have codes to start from.
        exact, quantized: for each batch the values before the block, of the float network and of the one
            quantized so far; both are left as they are.
        generator: of the order of the batches and of the mix.
        step: called after each iteration.
    """
    outputs = block.outputs
    targets = [_outputs(block, values, outputs, {}) for values in exact]
    codes = [layer.codes for layer in block.layers]
    given = _error(block, quantized, targets, outputs)
    if not 0 < given < float("inf"):  # nothing to learn, or an error beyond float32
        return Outcome(given, given)
    soft = [SoftRounding(layer) for layer in block.layers]
    _learn(block, soft, exact, quantized, targets, outputs, given, options, generator, step)
    for layer, rounding in zip(block.layers, soft, strict=True):
        layer.codes = rounding.codes()
    learned = _error(block, quantized, targets, outputs)
    if not learned <= given:
        for layer, before in zip(block.layers, codes, strict=True):
            layer.codes = before
    return Outcome(given, learned)


def _learn(
    block: Block,
    soft: Sequence[SoftRounding],
    exact: Sequence[Values],
    quantized: Sequence[Values],
    targets: Sequence[list[torch.Tensor]],
    outputs: Sequence[fx.Node],
    unit: float,
    options: AdaRound,
    generator: torch.Generator,
    step: Callable[[], None] | None,
) -> None:
    optimizer = torch.optim.Adam([rounding.v for rounding in soft], lr=options.lr)
    count = sum(rounding.v.numel() for rounding in soft)
    order: list[int] = []
    warm = int(options.warmup * options.iterations)
    for i in range(options.iterations):
        order = order or torch.randperm(len(quantized), generator=generator).tolist()
        n = order.pop()
        inputs = _mixed(block, exact[n], quantized[n], options.drop, generator)
        weights = [rounding.weight() for rounding in soft]
        replaced = dict(block.products) | {
            layer.node: lambda *args, layer=layer, weight=weight: layer.compute(weight, args)
            for layer, weight in zip(block.layers, weights, strict=True)
        }
        found = _outputs(block, inputs, outputs, replaced)
        loss = _distance(found, targets[n]) / unit
        if i >= warm:
            done = (i - warm) / max(options.iterations - warm, 1)
            first, last = options.beta
            beta = last + (first - last) * (1 - done)
            open_ = sum((1 - (2 * rounding.h() - 1).abs().pow(beta)).sum() for rounding in soft)
            loss = loss + options.weight * open_ / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step is not None:
            step()


def _mixed(block: Block, exact: Values, quantized: Values, drop: float, generator: torch.Generator) -> Values:
    """The quantized network's values, with a share of their elements from the float one."""
    mixed: Values = {}
    for node in block.inputs:
        value = quantized[node]
        constant = node.op == "get_attr" or not torch.is_tensor(value) or not value.is_floating_point()
        if drop and not constant:
            taken = torch.rand(value.shape, generator=generator) < drop
            value = torch.where(taken, exact[node], value)
        mixed[node] = value
    return mixed


def _outputs(
    block: Block, values: Values, outputs: Sequence[fx.Node], replaced: dict[fx.Node, Callable[..., object]]
) -> list[torch.Tensor]:
    local = {node: values[node] for node in block.inputs}
    with torch.set_grad_enabled(bool(replaced) and torch.is_grad_enabled()):
        execute(block.nodes, local, replaced)
    return [local[node] for node in outputs]


def _error(
    block: Block, quantized: Sequence[Values], targets: Sequence[list[torch.Tensor]], outputs: list[fx.Node]
) -> float:
    """Mean over the batches, with the codes as they stand."""
    replaced = dict(block.products) | {layer.node: layer.forward for layer in block.layers}
    with torch.no_grad():
        errors = [
            float(_distance(_outputs(block, values, outputs, replaced), target).double())
            for values, target in zip(quantized, targets, strict=True)
        ]
    return sum(errors) / len(errors)


def _distance(found: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference, summed over the outputs."""
    return torch.stack([(a - b).square().mean() for a, b in zip(found, target, strict=True)]).sum()
