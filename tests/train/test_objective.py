"""The losses against float64 numpy on `flatq.process`, and where their gradients go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from flatq.process import Process, ProcessConfig
from flatq.train.objective import Objective

T = 50
TS = torch.tensor([0, 1, 2, 25, 49, 0])


def _draw(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(len(TS), channels, 4, 4, generator=generator) * 2 - 1
    x0[:, :, 0] = -1.0  # both open bins of the decoder
    x0[:, :, 1] = 1.0
    noise = torch.randn(x0.shape, generator=generator)
    return x0, noise, torch.randn(len(TS), 2 * channels, 4, 4, generator=generator)


def test_plain_loss_is_the_mean_square_of_each_image() -> None:
    x0, noise, output = _draw(2)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return output[:, :2]

    config = ProcessConfig(schedule="linear", train_steps=T)
    losses = Objective(config)(network, x0, TS, noise)
    assert losses.vb is None
    expected = ((output[:, :2].double() - noise.double()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(losses.total.double(), expected, rtol=1e-6, atol=0)
    x_t = Process.from_config(config).add_noise(x0.double().numpy(), noise.double().numpy(), TS.numpy())
    np.testing.assert_allclose(seen[0].numpy(), x_t, rtol=0, atol=1e-6)


def test_input_perturbation_moves_the_input_and_not_the_target() -> None:
    x0, noise, output = _draw(1)
    shift = 0.15 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return output[:, :1]

    config = ProcessConfig(schedule="cosine", train_steps=T)
    objective = Objective(config)
    shifted = objective(network, x0, TS, noise, shift)
    plain = objective(network, x0, TS, noise)
    assert torch.equal(shifted.mse, plain.mse)
    process = Process.from_config(config)
    x_t = process.add_noise(x0.double().numpy(), (noise + shift).double().numpy(), TS.numpy())
    np.testing.assert_allclose(seen[0].numpy(), x_t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learned_variance_is_the_bound_in_bits(schedule: str) -> None:
    channels = 2
    x0, noise, output = _draw(channels)
    config = ProcessConfig.model_validate(
        {"schedule": schedule, "train_steps": T, "variance": "learned_range"}
    )
    # a prediction near the truth, as in training: else the divergence is all error of the mean
    output[:, :channels] = noise + 0.1 * output[:, :channels]
    losses = Objective(config)(lambda x, t: output, x0, TS, noise)
    assert losses.vb is not None

    process = Process.from_config(config)
    t = TS.numpy()
    x0_, noise_, out_ = (value.double().numpy() for value in (x0, noise, output))
    x_t = process.add_noise(x0_, noise_, t)
    pred_x0, log_variance = process.predict(out_, x_t, t, clip=False)

    def at(table: np.ndarray) -> np.ndarray:
        return table[t].reshape(-1, 1, 1, 1)

    coef1, coef2 = at(process.posterior_mean_coef1), at(process.posterior_mean_coef2)
    true_mean, mean = coef1 * x0_ + coef2 * x_t, coef1 * pred_x0 + coef2 * x_t
    q, p = np.exp(at(process.posterior_log_variance_clipped)), np.exp(log_variance)
    divergence = 0.5 * (q / p + (true_mean - mean) ** 2 / p - 1 + np.log(p / q))
    upper = np.where(x0_ > 0.999, np.inf, x0_ + 1 / 255)
    lower = np.where(x0_ < -0.999, -np.inf, x0_ - 1 / 255)
    mass = norm.cdf(upper, mean, np.sqrt(p)) - norm.cdf(lower, mean, np.sqrt(p))
    decoder = -np.log(np.maximum(mass, 1e-12))
    nats = np.where(t.reshape(-1, 1, 1, 1) == 0, decoder, divergence).mean((1, 2, 3))
    expected = nats / math.log(2) * T / 1000

    # float32: x_t - x_0 cancels down to about 1e-7 of images of size 1, over sigmas of 0.01
    np.testing.assert_allclose(losses.vb.numpy(), expected, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(losses.total.numpy(), losses.mse.numpy() + expected, rtol=2e-3)


def test_the_bound_trains_the_variance_alone() -> None:
    x0, noise, output = _draw(1)
    output.requires_grad_()
    config = ProcessConfig(schedule="cosine", train_steps=T, variance="learned_range")
    losses = Objective(config)(lambda x, t: output, x0, TS, noise)
    assert losses.vb is not None
    (of_bound,) = torch.autograd.grad(losses.vb.sum(), output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(losses.mse.sum(), output)
    assert torch.count_nonzero(of_bound[:, :1]) == 0
    assert torch.count_nonzero(of_mse[:, 1:]) == 0
    assert torch.count_nonzero(of_bound[1:5, 1:]) == of_bound[1:5, 1:].numel()


def test_labels_reach_the_network() -> None:
    x0, noise, output = _draw(1)
    label = torch.arange(len(TS))
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(label)
        return output[:, :1]

    Objective(ProcessConfig(schedule="cosine", train_steps=T))(network, x0, TS, noise, label=label)
    assert torch.equal(seen[0], label)
