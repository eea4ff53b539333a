"""SAM against closed forms: the step, the restored weights, the shared dropout mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatq.train.gradients import sam_gradients


def test_gradient_on_a_quadratic_is_the_closed_form() -> None:
    # L = 1/2 sum h w^2, over two parameters: g = h w, and at w + e the gradient is h (w + rho g / |g|)
    h = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a, b = nn.Parameter(w[:2].clone()), nn.Parameter(w[2:].clone())

    loss, sharp = sam_gradients([a, b], lambda: 0.5 * (h * torch.cat([a, b]) ** 2).sum(), rho=0.3)

    g = h * w
    moved = w + 0.3 * g / g.norm()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(torch.cat([a.grad, b.grad]), h * moved, rtol=1e-12, atol=0)
    assert float(loss) == pytest.approx(float(0.5 * (h * w**2).sum()), rel=1e-12)
    assert float(sharp) == pytest.approx(float(0.5 * (h * moved**2).sum()), rel=1e-12)


def test_weights_come_back_bit_for_bit_even_when_the_second_pass_fails() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(1000) * 1e-3)
    before = w.detach().clone()
    sam_gradients([w], lambda: (w.sin() ** 2).sum(), rho=7.3)
    assert torch.equal(w.detach(), before)

    calls = 0

    def failing() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert not torch.equal(w.detach(), before)
            raise RuntimeError("second pass")
        return (w**2).sum()

    with pytest.raises(RuntimeError, match="second pass"):
        sam_gradients([w], failing, rho=7.3)
    assert torch.equal(w.detach(), before)


def test_both_passes_share_the_dropout_mask_and_later_draws_go_on() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.ones(256))
    masks: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        dropped = nn.functional.dropout(w, 0.5)
        masks.append(dropped.detach() == 0)
        return (dropped**2).sum()

    sam_gradients([w], closure, rho=0.1)
    sam_gradients([w], closure, rho=0.1)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_zero_gradient_moves_nothing() -> None:
    w = nn.Parameter(torch.zeros(3))
    losses = sam_gradients([w], lambda: (w**2).sum(), rho=0.5)
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    assert w.grad is not None
    assert torch.equal(w.grad, torch.zeros(3))


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    w, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    sam_gradients([w, unused, frozen], lambda: (w * frozen).sum(), rho=0.5)
    assert unused.grad is None
    assert frozen.grad is None
    assert torch.equal(frozen, torch.ones(2))
