"""The samplers of timesteps: the history, the probabilities, and that the weights keep the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatq.train.timesteps import LossSecondMoment, Uniform


def test_uniform_until_every_timestep_has_ten_losses() -> None:
    sampler = LossSecondMoment(4)
    t = torch.arange(4).repeat(10)
    sampler.update(t[:-1], torch.full((39,), 3.0))
    assert torch.equal(sampler.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    drawn, weights = sampler.draw(1000, generator)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert torch.equal(weights, torch.ones(1000))


def test_probabilities_follow_the_last_ten_losses() -> None:
    sampler = LossSecondMoment(3)
    rng = np.random.default_rng(0)
    shown: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(12):  # two more than are kept
        t = torch.tensor([2, 0, 1, 0])
        losses = torch.from_numpy(rng.uniform(0.1, 2.0, 4))
        sampler.update(t, losses)
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            shown[step].append(loss)
    rms = np.array([np.sqrt(np.mean(np.square(shown[t][-10:]))) for t in range(3)])
    expected = 0.999 * rms / rms.sum() + 0.001 / 3
    np.testing.assert_allclose(sampler.probabilities().numpy(), expected, rtol=1e-12)


def test_weights_keep_the_mean_of_uniform_timesteps() -> None:
    sampler = LossSecondMoment(5)
    losses = torch.tensor([0.1, 5.0, 1.0, 0.3, 2.0])
    for _ in range(10):
        sampler.update(torch.arange(5), losses)
    t, weights = sampler.draw(200_000, torch.Generator().manual_seed(0))
    # the standard error is below 0.3 %: the weighted loss is nearly the same at each t
    assert float((losses[t] * weights).mean()) == pytest.approx(float(losses.mean()), rel=0.01)
    p = sampler.probabilities()
    torch.testing.assert_close(weights, (1 / (5 * p[t])).float())


def test_the_history_comes_back() -> None:
    first, second = LossSecondMoment(3), LossSecondMoment(3)
    first.update(torch.tensor([1, 1, 2]), torch.tensor([0.5, 0.25, 1.0]))
    second.load_state_dict(first.state_dict())
    for sampler in (first, second):
        for _ in range(10):
            sampler.update(torch.arange(3), torch.tensor([0.1, 0.2, 0.3]))
        sampler.update(torch.tensor([1]), torch.tensor([9.0]))
    assert torch.equal(first.probabilities(), second.probabilities())


def test_uniform_timesteps_have_the_weight_one() -> None:
    t, weights = Uniform(3).draw(300, torch.Generator().manual_seed(0))
    assert set(t.tolist()) == {0, 1, 2}
    assert torch.equal(weights, torch.ones(300))
