"""Weights of errors: the squared Jacobian of the prediction, input by input."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from flatq.quantize.methods.sensitivity import sensitivities


class _Scaled(nn.Module):
    """Its prediction moves by s(x) for each unit that the linear layer's output moves."""

    def __init__(self, variances: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.linear, self.variances, self.gain = nn.Linear(2, 2), variances, gain

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        predicted = self.linear(x) * (s * self.gain)[:, None]
        return torch.cat([predicted, 1e3 * predicted.flip(0)], dim=1) if self.variances else predicted


def _weights(network: nn.Module, s: torch.Tensor, power: float = 1.0, size: int = 3) -> torch.Tensor:
    x = torch.randn(len(s), 2, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network, (x, s), dynamic_shapes=({0: batch}, {0: batch}))
    graph = exported.module()
    assert isinstance(graph, fx.GraphModule)
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default)
    batches = list(zip(x.split(size), s.split(size), strict=True))
    found = sensitivities(graph, batches, [node], power, torch.Generator().manual_seed(1))
    return torch.cat([weights[node] for weights in found])


@pytest.mark.parametrize("variances", [False, True])
def test_they_are_the_squared_gain_of_the_noise(variances: bool) -> None:
    s = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 10.0])
    torch.testing.assert_close(_weights(_Scaled(variances), s), s.square() / s.square().mean())


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_power_evens_them_out(power: float) -> None:
    s = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 10.0])
    expected = s ** (2 * power)
    torch.testing.assert_close(_weights(_Scaled(), s, power), expected / expected.mean())


@pytest.mark.parametrize("gain", [0.0, float("inf")])
def test_without_a_usable_gradient_all_inputs_count_alike(gain: float) -> None:
    assert torch.equal(_weights(_Scaled(gain=gain), torch.ones(6)), torch.ones(6))
