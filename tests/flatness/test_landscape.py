"""The loss landscape against slow oracles: float64, full Hessians, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flatq.flatness.draws import Draws, make_draws
from flatq.flatness.landscape import Landscape, inner, losses_of, norm, weight_noise
from flatq.flatness.measure import (
    ascent_losses,
    ascent_step,
    curvature,
    filter_scales,
    layer_weights,
    noise_losses,
)
from flatq.images import load_images
from flatq.process import Process, ProcessConfig


class _Net(nn.Module):
    """A tiny network with a kernel, a matrix and vectors; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.time = nn.Linear(1, 3)
        self.out = nn.Conv2d(3, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv(x) + self.time(t.to(x.dtype)[:, None] / 1000)[:, :, None, None]
        output: torch.Tensor = self.out(torch.tanh(h))
        return output


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Net().double()
    x = torch.randn(24, 1, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(24, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.arange(24) * 40
    return Landscape(net, Draws(x, t, target, None, torch.arange(24) % 4), batch_size=10)


def _flat_loss(landscape: Landscape, flat: torch.Tensor) -> torch.Tensor:
    parts = flat.split([w.numel() for w in landscape.weights.values()])
    weights = {n: p.view(w.shape) for p, (n, w) in zip(parts, landscape.weights.items(), strict=True)}
    return losses_of(
        lambda *inputs: torch.func.functional_call(landscape.network, weights, inputs), landscape.draws
    ).mean()


def _flat(landscape: Landscape) -> torch.Tensor:
    return torch.cat([w.flatten() for w in landscape.weights.values()])


def _hessian(landscape: Landscape) -> torch.Tensor:
    found: torch.Tensor = torch.autograd.functional.hessian(
        lambda flat: _flat_loss(landscape, flat), _flat(landscape)
    )
    return found


def test_gradient_by_finite_differences(landscape: Landscape) -> None:
    gradient = torch.cat([g.flatten() for g in landscape.gradient().values()])
    flat, step = _flat(landscape), 1e-6
    for i in range(0, len(flat), 7):
        e = torch.zeros_like(flat)
        e[i] = step
        slope = (_flat_loss(landscape, flat + e) - _flat_loss(landscape, flat - e)) / (2 * step)
        assert float(gradient[i]) == pytest.approx(float(slope), abs=1e-8)


def test_hessian_products_and_curvature_against_the_full_matrix(landscape: Landscape) -> None:
    full = _hessian(landscape)
    v = weight_noise(landscape.weights, 3, 0)
    product, by_batch = landscape.hessian_times({k: z.double() for k, z in v.items()})
    flat = torch.cat([z.double().flatten() for z in v.values()])
    np.testing.assert_allclose(
        torch.cat([p.flatten() for p in product.values()]).numpy(), (full @ flat).numpy(), atol=1e-10
    )
    sizes = np.array([10, 10, 4])
    assert float((by_batch * sizes).sum() / 24) == pytest.approx(float(flat @ full @ flat), rel=1e-9)

    found = curvature(landscape, probes=400, seed=0)
    assert found.largest_eigenvalue.value == pytest.approx(float(torch.linalg.eigvalsh(full)[-1]), rel=1e-3)
    trace = float(full.diagonal().sum())
    assert found.trace.standard_error is not None
    assert abs(found.trace.value - trace) < 4 * found.trace.standard_error


def test_noise_is_antithetic_and_matches_the_trace(landscape: Landscape) -> None:
    """To second order the increase under sigma z is sigma^2 tr(H) / 2; the slope cancels within a pair."""
    base, sigma = landscape.losses(), 1e-3
    found = noise_losses(landscape, "absolute", sigma, 200, 0, base).increase.overall
    assert found.standard_error is not None
    expected = sigma**2 * float(_hessian(landscape).diagonal().sum()) / 2
    assert abs(found.value - expected) < 4 * found.standard_error


def test_relative_noise_scales_with_each_filter(landscape: Landscape) -> None:
    scales = filter_scales(landscape.weights)
    w = landscape.weights["conv.weight"]
    assert scales["conv.weight"].shape == (3, 1, 1, 1)
    for row in range(3):
        assert float(scales["conv.weight"][row]) == pytest.approx(float(w[row].norm()) / 9**0.5)
    bias = landscape.weights["conv.bias"]
    assert float(scales["conv.bias"]) == pytest.approx(float(bias.norm()) / 3**0.5)


@pytest.mark.parametrize("kind", ["absolute", "adaptive"])
def test_the_ascent_is_the_best_first_order_step(landscape: Landscape, kind: str) -> None:
    """It has the right radius and the largest inner product with the gradient among steps of that radius."""
    gradient, rho = landscape.gradient(), 0.3
    step = ascent_step(landscape.weights, gradient, rho, kind)  # type: ignore[arg-type]
    scale = {
        n: (w.abs() + 0.01 if kind == "adaptive" else torch.ones_like(w))
        for n, w in landscape.weights.items()
    }
    assert norm({n: e / scale[n] for n, e in step.items()}) == pytest.approx(rho)
    bound = rho * norm({n: scale[n] * g for n, g in gradient.items()})
    assert inner(step, gradient) == pytest.approx(bound)
    base = landscape.losses()
    found = ascent_losses(landscape, kind, 1e-4, gradient, base)  # type: ignore[arg-type]
    assert found.increase.overall.value == pytest.approx(bound / rho * 1e-4, rel=1e-2)


def test_nothing_is_written_to_the_network(landscape: Landscape) -> None:
    before = {n: w.clone() for n, w in landscape.network.state_dict().items()}
    landscape.losses(weight_noise(landscape.weights, 0, 0))
    landscape.hessian_times(weight_noise(landscape.weights, 0, 0))
    assert all(torch.equal(w, before[n]) for n, w in landscape.network.state_dict().items())


def test_layers_weights_of_known_distributions() -> None:
    uniform = torch.linspace(-1, 1, 40001, dtype=torch.float64).view(1, -1)
    (found,) = layer_weights({"a.weight": uniform, "a.bias": torch.ones(3)})
    assert found.name == "a"
    assert found.kurtosis == pytest.approx(1.8, abs=1e-3)
    assert found.range_over_std == pytest.approx(2 * 3**0.5, rel=1e-3)
    assert found.norm == pytest.approx((40001 / 3) ** 0.5, rel=1e-3)


def test_draws_are_even_over_t_and_the_same_for_every_model() -> None:
    images = load_images("digits:train")
    process = ProcessConfig(schedule="cosine")
    draws, fewer = make_draws(images, process, 256, 0), make_draws(images, process, 256, 0)[:64]
    assert torch.equal(draws.bins, draws.t * 4 // process.train_steps)
    for part in (draws, fewer):
        counts = torch.bincount(part.t * 16 // process.train_steps, minlength=16)
        assert int(counts.min()) >= len(part.t) // 16 - 2
    kept = torch.from_numpy(Process.from_config(process).alphas_cumprod.copy())[draws.t].view(-1, 1, 1, 1)
    x0 = (draws.x - (1 - kept).sqrt() * draws.target) / kept.sqrt()
    low = draws.bins == 0
    assert float(x0[low].abs().max()) < 1.001
    assert abs(float(draws.target.std()) - 1) < 0.02
