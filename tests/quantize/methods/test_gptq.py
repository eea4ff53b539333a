"""GPTQ against closed forms and against trying every code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from flatq.errors import ModelError
from flatq.quantize.grid import QuantGrid
from flatq.quantize.methods.gptq import Moments, compensated, gptq_integers, output_error
from flatq.quantize.methods.options import Gptq

LOW, HIGH = -8, 7


def _nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight.double() / scale.double()).round().clamp(LOW, HIGH).to(torch.int8)


def _gptq(weight: torch.Tensor, scale: torch.Tensor, hessian: torch.Tensor, **options: Any) -> torch.Tensor:
    return gptq_integers(weight, QuantGrid(scale[:, 0], LOW, HIGH), hessian, Gptq(**options))


def _problem(
    out: int, columns: int, rows: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, its scales, and strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator)
    inputs = torch.randn(rows, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return weight, weight.abs().amax(1, keepdim=True) / 7.5, inputs


def _hessian(inputs: torch.Tensor) -> torch.Tensor:
    moments = Moments(inputs.shape[1])
    for part in inputs.split(7):
        moments.add(part, part)
    return moments.hessian


def test_the_hessian_is_that_of_the_squared_error() -> None:
    weight, scale, inputs = _problem(3, 5, 50)
    difference = (_nearest(weight, scale) * scale - weight).double()
    expected = (inputs.double() @ difference.T).square().sum(0)
    # Products of float32 rows are summed in float32 within a batch.
    torch.testing.assert_close(output_error(difference, _hessian(inputs)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("act_order", [False, True])
def test_independent_inputs_leave_nothing_to_make_up_for(act_order: bool) -> None:
    weight, scale, _ = _problem(6, 9, 1)
    hessian = torch.diag(torch.linspace(0.1, 5, 9, dtype=torch.float64))
    codes = _gptq(weight, scale, hessian, act_order=act_order)
    assert torch.equal(codes, _nearest(weight, scale))


def test_two_columns_by_hand() -> None:
    # x1 = x2 always, up to noise of variance 0.01: what counts is the sum of the weights. 0.4 is rounded to 0
    # and its error goes to the second column, 0.4 + 0.4 * 1 / 1.02 = 0.792, which is rounded to 1: the sum
    # 0.8 becomes 1 and not 0.
    hessian = torch.tensor([[1.01, 1.0], [1.0, 1.01]], dtype=torch.float64)
    weight, scale = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0]])
    codes = _gptq(weight, scale, hessian, act_order=False)
    assert codes.tolist() == [[0, 1]]
    assert _nearest(weight, scale).tolist() == [[0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_the_error_lies_between_the_best_there_is_and_that_of_rounding_to_nearest(seed: int) -> None:
    weight, scale, inputs = _problem(6, 4, 40, seed)
    hessian = _hessian(inputs)
    exact = weight.double() / scale.double()
    found = _gptq(weight, scale, hessian)
    every = torch.tensor(list(itertools.product(range(LOW, HIGH + 1), repeat=4)), dtype=torch.float64)

    def error(codes: torch.Tensor, channel: int) -> torch.Tensor:
        return output_error((codes - exact[channel]) * scale[channel].double(), hessian)

    errors = []
    for channel in range(6):
        best = float(error(every, channel).min())
        plain, gptq = (
            float(error(codes[channel : channel + 1].double(), channel))
            for codes in (_nearest(weight, scale), found)
        )
        assert best <= gptq * (1 + 1e-9)
        assert gptq <= plain
        errors.append((best, gptq, plain))
    _, gptq_all, plain_all = (sum(values) for values in zip(*errors, strict=True))
    assert gptq_all < 0.9 * plain_all


def test_the_block_changes_nothing_but_the_speed() -> None:
    weight, scale, inputs = _problem(5, 40, 100)
    found = [_gptq(weight, scale, _hessian(inputs), block=b) for b in (1, 7, 64)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "case", ["nothing", "constant", "rank 2", "huge", "past float32", "tiny", "dead columns"]
)
def test_degenerate_inputs_give_codes_within_the_width(case: str, act_order: bool) -> None:
    weight, scale, inputs = _problem(4, 12, 30)
    weight[1] = 0
    scale[1] = torch.finfo(torch.float32).tiny
    cases = {
        "nothing": torch.zeros(30, 12),
        "constant": torch.ones(30, 12),
        "rank 2": inputs[:2],
        "huge": inputs * 1e15,
        "past float32": inputs * 2.0**100,  # as squares
        "tiny": inputs * 1e-15,
        "dead columns": inputs * (torch.arange(12) % 3 > 0),
    }
    hessian = _hessian(cases[case])
    codes = _gptq(weight, scale, hessian, act_order=act_order)
    assert codes.dtype == torch.int8
    assert LOW <= int(codes.min()) <= int(codes.max()) <= HIGH
    assert not bool(codes[1].any())
    if case == "past float32":
        assert torch.equal(codes, _gptq(weight, scale, _hessian(inputs), act_order=act_order))
    if case == "nothing":
        assert torch.equal(codes, _nearest(weight, scale))
    if case == "dead columns":
        dead = torch.arange(12) % 3 == 0
        assert torch.equal(codes[:, dead], _nearest(weight, scale)[:, dead])


def test_compensation_is_the_least_squares_solution_that_stays_close_to_the_weight() -> None:
    weight, _, exact = _problem(4, 6, 50)
    inputs = exact + 0.3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    moments = Moments(6)
    for rows, given in zip(inputs.split(7), exact.split(7), strict=True):
        moments.add(rows, given)
    found, hessian = compensated(weight, moments, 0.1)
    share = 0.1 * float(moments.hessian.diagonal().mean()) / 2
    # The ridge as further rows: as many inputs as columns, at which V is to do what W does.
    more = share**0.5 * torch.eye(6, dtype=torch.float64)
    rows = torch.cat([inputs.double(), more])
    wanted = torch.cat([exact.double() @ weight.double().T, more @ weight.double().T])
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, wanted).solution.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hessian, 2 * rows.T @ rows, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e15])
def test_equal_inputs_leave_nothing_to_compensate(scale: float) -> None:
    weight, _, inputs = _problem(4, 6, 50)
    moments = Moments(6)
    moments.add(scale * inputs, scale * inputs)
    found, hessian = compensated(weight, moments, 0.1)
    assert torch.equal(found, weight.double())
    assert bool(hessian.isfinite().all())


def test_inputs_that_are_not_finite_are_an_error_and_no_endless_search() -> None:
    weight, scale, inputs = _problem(4, 12, 30)
    inputs[3, 2] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        _gptq(weight, scale, _hessian(inputs))
    moments = Moments(12)
    moments.add(inputs, inputs)
    with pytest.raises(ModelError, match="not finite"):
        compensated(weight, moments, 0.1)
