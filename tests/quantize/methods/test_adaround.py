"""Learned rounding of a block: what it may choose, and that it never makes the block worse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatq.quantize.grid import QuantGrid
from flatq.quantize.methods.adaround import Outcome, reconstruct
from flatq.quantize.methods.blocks import Block, blocks
from flatq.quantize.methods.layer import QuantLayer
from flatq.quantize.methods.options import AdaRound
from flatq.quantize.methods.sensitivity import Weights
from flatq.quantize.methods.soft import SoftRounding
from flatq.quantize.methods.stream import Stream

QUICK = AdaRound(iterations=150, batch=8)
HELD_OUT = 2


def _problem(
    weight: torch.Tensor, scale: torch.Tensor, inputs: torch.Tensor
) -> tuple[Block, Stream, QuantLayer]:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight)
    graph = torch.export.export(linear, (inputs,)).module()
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default)
    grid = QuantGrid(scale[:, 0], -8, 7)
    layer = QuantLayer("linear", node, weight, None, None, grid, grid.quantize(weight).to(torch.int8))
    (block,) = blocks(graph, {node: layer})
    return block, Stream(graph, [(part,) for part in inputs.split(QUICK.batch)]), layer


def _learn(weight: torch.Tensor, scale: torch.Tensor, inputs: torch.Tensor) -> tuple[Outcome, torch.Tensor]:
    block, stream, layer = _problem(weight, scale, inputs)
    return _reconstruct(block, stream), layer.integers


def _reconstruct(block: Block, stream: Stream, weights: list[Weights] | None = None) -> Outcome:
    ones = [{node: torch.ones(QUICK.batch) for node in block.outputs} for _ in stream.batches]
    generator = torch.Generator().manual_seed(0)
    batches = stream.batches
    return reconstruct(block, batches, batches, weights or ones, QUICK, generator, held_out=HELD_OUT)


def _random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 8, generator=generator)
    inputs = torch.randn(64, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    return weight, weight.abs().amax(1, keepdim=True) / 7.5, inputs


def test_correlated_inputs_are_made_use_of() -> None:
    weight, scale, inputs = _random()
    outcome, codes = _learn(weight, scale, inputs)
    exact = weight / scale
    assert bool(((codes == exact.floor().clamp(-8, 7)) | (codes == exact.ceil().clamp(-8, 7))).all())
    for which, value in ((codes, outcome.learned), (exact.round().clamp(-8, 7), outcome.given)):
        held_out = inputs[-HELD_OUT * QUICK.batch :].double()
        error = (held_out @ (which * scale - weight).double().T).square().mean()
        assert value == pytest.approx(float(error), rel=1e-4)
    # Three directions of inputs and eight weights to choose for each output: much can be made up for.
    assert outcome.learned < 0.3 * outcome.given


def test_two_weights_that_read_the_same_are_rounded_apart() -> None:
    # The sum 0.8 of the two is nearest to 1: one goes up, one down. Rounded to nearest both go down.
    weight, scale = torch.tensor([[0.45, 0.4]]), torch.ones(1, 1)
    inputs = torch.linspace(-1, 1, 32)[torch.arange(32) * 5 % 32][:, None].expand(32, 2).contiguous()
    outcome, codes = _learn(weight, scale, inputs)
    assert sorted(codes.flatten().tolist()) == [0, 1]
    assert outcome.learned < 0.05 * outcome.given


def test_it_starts_halfway_between_the_given_codes_and_the_float_weight() -> None:
    weight, scale, inputs = _random()
    _, _, layer = _problem(weight, scale, inputs)
    nearest = layer.integers.clone()
    layer.integers[0] = (layer.integers[0] + 2).clamp(max=7)  # as GPTQ may choose them: beyond the nearest
    soft = SoftRounding(layer)
    assert torch.equal(soft.integers(), layer.integers)
    halfway = (nearest[1:] * scale[1:] + weight[1:].clamp(max=7 * scale[1:])) / 2
    torch.testing.assert_close(soft.weight()[1:], halfway, rtol=0, atol=0.002 * float(scale.max()))


def test_codes_that_do_not_help_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, inputs = _random()
    block, stream, layer = _problem(weight, scale, inputs)
    before = layer.integers.clone()
    monkeypatch.setattr(SoftRounding, "integers", lambda self: torch.zeros_like(before))
    outcome = _reconstruct(block, stream)
    assert outcome.learned > outcome.given
    assert torch.equal(layer.integers, before)


def test_what_was_learned_by_heart_is_not_taken() -> None:
    weight, scale, few = _random()
    # Learning sees three directions, in which much can be made up for; the inputs held out lie in all eight.
    inputs = torch.randn(few.shape, generator=torch.Generator().manual_seed(2))
    seen = len(inputs) - HELD_OUT * QUICK.batch
    inputs[:seen] = few[:seen]
    block, stream, layer = _problem(weight, scale, inputs)
    before = layer.integers.clone()
    outcome = _reconstruct(block, stream)
    assert outcome.learned > 1.2 * outcome.given
    assert torch.equal(layer.integers, before)


def test_the_learning_does_not_see_the_inputs_held_out() -> None:
    weight, scale, inputs = _random()
    codes = []
    for factor in (1.0, 1.5):  # the error of the held-out outputs is 1.5^2 times as large
        inputs[-HELD_OUT * QUICK.batch :] *= factor
        codes.append(_learn(weight, scale, inputs)[1])
    assert torch.equal(*codes)


def test_inputs_that_move_the_prediction_further_count_for_more() -> None:
    weight, scale, few = _random()
    # The first batch and those held out lie in three directions, in which much can be made up for; the others
    # in all eight.
    inputs = torch.randn(few.shape, generator=torch.Generator().manual_seed(2))
    for part in (slice(QUICK.batch), slice(-HELD_OUT * QUICK.batch, None)):
        inputs[part] = few[part]
    errors = []
    for factor in (1.0, 1e3):
        block, stream, layer = _problem(weight, scale, inputs)
        (node,) = block.outputs
        weights = [{node: torch.ones(QUICK.batch)} for _ in stream.batches]
        for i in (0, *range(-HELD_OUT, 0)):
            weights[i][node] *= factor
        _reconstruct(block, stream, weights)
        difference = layer.integers * scale - weight
        errors.append(float((inputs[: QUICK.batch] @ difference.T).square().mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("case", ["zero weight", "zero input", "one value", "past float32"])
def test_degenerate_blocks_stay_finite(case: str) -> None:
    weight, scale, inputs = _random()
    weight[2], scale[2] = 0, torch.finfo(torch.float32).tiny
    if case == "zero weight":
        weight, scale = torch.zeros_like(weight), torch.full_like(scale, torch.finfo(torch.float32).tiny)
    inputs = {
        "zero weight": inputs,
        "zero input": torch.zeros_like(inputs),
        "one value": inputs[:1].expand(64, 8),
        "past float32": inputs * 1e30,  # as squares
    }[case].contiguous()
    outcome, codes = _learn(weight, scale, inputs)
    assert not bool(codes[2].any())
    assert outcome.learned <= outcome.given
    if case != "one value":
        assert outcome.given == (float("inf") if case == "past float32" else 0)
        assert torch.equal(codes, (weight / scale).round().clamp(-8, 7).to(torch.int8))
