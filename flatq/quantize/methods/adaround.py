"""AdaRound: whether each weight is rounded down or up is learned, block by block.

- Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": the regularizer (eq. 24)
  that is annealed until every weight is rounded.
- Li et al. 2021, "BRECQ": the error is that of a block's output, its inputs come from the network quantized
  so far, its target from the float network, and the ranges of activations are learned, too.
- Errors are weighed by how far they move the prediction, as there: `flatq.quantize.methods.sensitivity`.
- Biases are learned with them, which costs nothing where the network runs.
- Here learning starts from GPTQ's integers, each of which may move to its neighbour.
- What was learned is kept if it lowers the error on inputs that the learning did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from flatq.quantize.methods.blocks import Block
from flatq.quantize.methods.options import AdaRound
from flatq.quantize.methods.sensitivity import Weights
from flatq.quantize.methods.soft import SoftLayer, soften
from flatq.quantize.methods.stream import Values

__all__ = ["Outcome", "reconstruct"]


_Target = tuple[torch.Tensor, torch.Tensor]
"""What a block is to yield for a batch, float32 [n, ...], and the weights of its errors, float32 [n]."""


class Outcome(NamedTuple):
    """Weighted mean squared errors of a block's outputs on the held-out inputs: as it was, and as learned."""

    given: float
    learned: float


def reconstruct(
    block: Block,
    exact: Sequence[Values],
    quantized: Sequence[Values],
    weights: Sequence[Weights],
    options: AdaRound,
    generator: torch.Generator,
    *,
    held_out: int,
    step: Callable[[], None] | None = None,
) -> Outcome:
    """Learn integers, biases and ranges of a block's layers; they are set unless the held-out error rises.

    Args:
        block: whose layers have integers to start from.
        exact, quantized: for each batch the values before the block, of the float network and of the one
            quantized so far; both are left as they are.
        weights: for each batch those of errors of the block's outputs.
        generator: of the order of the batches.
        held_out: how many batches, the last ones, only judge what the others taught.
        step: called after each iteration.
    """
    with torch.no_grad():
        targets = [
            [(value, given[node]) for node, value in zip(block.outputs, block.run(values, {}), strict=True)]
            for values, given in zip(exact, weights, strict=True)
        ]
    seen = len(quantized) - held_out
    unit = _error(block, quantized[:seen], targets[:seen])
    given = _error(block, quantized[seen:], targets[seen:])
    # Nothing to learn, or an error beyond float32.
    if not all(0 < error < float("inf") for error in (unit, given)):
        return Outcome(given, given)
    before = [(layer, layer.integers, layer.bias) for layer in block.layers]
    ends = [(layer.range, layer.range.low, layer.range.high) for layer in block.layers if layer.range]
    soft = soften(block.layers, biases=options.bias_lr > 0, ranges=options.range_lr > 0)
    _learn(block, soft, quantized[:seen], targets[:seen], unit, options, generator, step)
    for layer in soft:
        layer.harden()
    learned = _error(block, quantized[seen:], targets[seen:])
    if not learned <= given:
        for planned, integers, bias in before:
            planned.integers, planned.bias = integers, bias
        for range_, low, high in ends:
            range_.low, range_.high = low, high
    return Outcome(given, learned)


def _learn(
    block: Block,
    soft: Sequence[SoftLayer],
    quantized: Sequence[Values],
    targets: Sequence[list[_Target]],
    unit: float,
    options: AdaRound,
    generator: torch.Generator,
    step: Callable[[], None] | None,
) -> None:
    optimizer, schedule = _optimizer(soft, options)
    count = sum(layer.rounding.v.numel() for layer in soft)
    replaced = dict(block.products) | {layer.layer.node: layer.forward for layer in soft}
    order: list[int] = []
    warm = int(options.warmup * options.iterations)
    for i in range(options.iterations):
        order = order or torch.randperm(len(quantized), generator=generator).tolist()
        n = order.pop()
        loss = _distance(block.run(quantized[n], replaced), targets[n]) / unit
        if i >= warm:
            done = (i - warm) / max(options.iterations - warm, 1)
            first, last = options.beta
            beta = last + (first - last) * (1 - done)
            open_ = sum((1 - (2 * layer.rounding.h() - 1).abs().pow(beta)).sum() for layer in soft)
            loss = loss + options.weight * open_ / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step is not None:
            step()


def _optimizer(
    soft: Sequence[SoftLayer], options: AdaRound
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam; the rates of biases and ranges fall to nothing, the regularizer needs that of the rounding."""

    def falling(i: int) -> float:
        return 1 - i / options.iterations

    groups: list[tuple[float, list[torch.Tensor], Callable[[int], float]]] = [
        (options.lr, [layer.rounding.v for layer in soft], lambda i: 1.0),
        (options.bias_lr, [layer.bias_v for layer in soft if layer.bias_v is not None], falling),
        # Layers that read one tensor share its range.
        (options.range_lr, [r.v for r in dict.fromkeys(layer.range for layer in soft) if r], falling),
    ]
    groups = [group for group in groups if group[1]]
    optimizer = torch.optim.Adam([{"params": variables, "lr": lr} for lr, variables, _ in groups])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [rate for *_, rate in groups])


def _error(block: Block, quantized: Sequence[Values], targets: Sequence[list[_Target]]) -> float:
    """Mean over the batches, with the integers as they stand."""
    replaced = dict(block.products) | {layer.node: layer.forward for layer in block.layers}
    with torch.no_grad():
        errors = [
            float(_distance(block.run(values, replaced), target).double())
            for values, target in zip(quantized, targets, strict=True)
        ]
    return sum(errors) / len(errors)


def _distance(found: Sequence[torch.Tensor], targets: Sequence[_Target]) -> torch.Tensor:
    """Weighted mean squared difference, summed over the outputs."""
    errors = [
        ((value - wanted).square().flatten(1).mean(1) * weight).mean()
        for value, (wanted, weight) in zip(found, targets, strict=True)
    ]
    return torch.stack(errors).sum()
