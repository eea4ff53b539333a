"""What is learned of a layer: it starts as the layer is, follows its gradient, and is set as learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatq.quantize.grid import QuantGrid
from flatq.quantize.methods.layer import InputRange, QuantLayer
from flatq.quantize.methods.soft import SoftLayer, SoftRange, soften
from flatq.recipe import Scheme

X = 2 * torch.randn(512, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_range_starts_as_the_grid_is(bits: int, symmetric: bool) -> None:
    grid = InputRange(Scheme(bits=bits, symmetric=symmetric), -2.0, 5.0)
    torch.testing.assert_close(SoftRange(grid)(X), grid(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ends", [(-20.0, 20.0), (-0.5, 0.5)], ids=["too wide", "too narrow"])
def test_a_learned_range_follows_the_squared_error(ends: tuple[float, float]) -> None:
    grid = InputRange(Scheme(bits=4), *ends)
    before = float((grid(X) - X).square().mean())
    soft = SoftRange(grid)
    optimizer = torch.optim.Adam([soft.v], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (soft(X) - X).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    soft.harden()
    assert float((grid(X) - X).square().mean()) < 0.7 * before
    # A factor of 2 at most, however far it would go: the int32 of the bias has room for no more.
    assert 0.5 <= grid.high / ends[1] <= 2
    assert 0.5 <= grid.low / ends[0] <= 2


def _layer(input_range: InputRange | None, bias: bool = True) -> QuantLayer:
    linear = nn.Linear(4, 3)
    graph = torch.export.export(linear, (torch.zeros(1, 4),)).module()
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default)
    weight = linear.weight.detach()
    grid = QuantGrid(torch.tensor(0.1), -8, 7)
    integers = grid.quantize(weight).to(torch.int8)
    given = linear.bias.detach() if bias else None
    return QuantLayer(
        "linear", node, weight, given, "bias" if bias else None, grid, integers, range=input_range
    )


def test_layers_that_read_one_tensor_learn_one_range() -> None:
    grid = InputRange(Scheme(bits=8), -1.0, 1.0, readers=2)
    first, second = soften([_layer(grid), _layer(grid)], biases=True, ranges=True)
    assert first.range is second.range is not None


@pytest.mark.parametrize(
    "grid",
    [
        InputRange(Scheme(bits=8), -1.0, 1.0, readers=2),  # a layer of another block reads by it
        InputRange(Scheme(bits=8), 0.0, 0.0, readers=1),
        None,
    ],
    ids=["read elsewhere", "empty", "float"],
)
def test_ranges_that_are_not_learned(grid: InputRange | None) -> None:
    (soft,) = soften([_layer(grid)], biases=True, ranges=True)
    assert soft.range is None
    source = torch.randn(5, 4)
    expected = source if grid is None else grid(source)
    assert torch.equal(soft.layer.quantize_input(source), expected)


def test_what_is_not_asked_for_stays() -> None:
    grid = InputRange(Scheme(bits=8), -1.0, 1.0, readers=1)
    for layer in (_layer(grid), _layer(grid, bias=False)):
        (soft,) = soften([layer], biases=False, ranges=False)
        assert (soft.bias_v, soft.range) == (None, None)
    (soft,) = soften([_layer(grid, bias=False)], biases=True, ranges=False)
    assert soft.bias_v is None


def test_a_hardened_layer_computes_what_was_learned() -> None:
    grid = InputRange(Scheme(bits=8), -1.0, 1.0, readers=1)
    layer = _layer(grid)
    (soft,) = soften([layer], biases=True, ranges=True)
    assert isinstance(soft, SoftLayer)
    assert soft.bias_v is not None
    assert soft.range is not None
    with torch.no_grad():
        soft.bias_v += 0.5
        soft.range.v += 0.1
        soft.rounding.v.copy_(torch.where(soft.rounding.v >= 0, 9.0, -9.0))  # as annealing leaves them
    args = (torch.randn(6, 4), None, layer.bias)
    expected = soft.forward(*args)
    before = layer.forward(*args)
    soft.harden()
    torch.testing.assert_close(layer.forward(*args), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
