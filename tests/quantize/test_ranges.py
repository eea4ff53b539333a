"""Ranges of activations and weights: the histogram, percentiles, least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flatq.quantize.grid import activation_grid, integer_range
from flatq.quantize.ranges import FloatHistogram, RangeObserver, mse_range, percentile_range, weight_grid
from flatq.recipe import Scheme, recipe_for_bits


def _histogram(values: torch.Tensor) -> FloatHistogram:
    histogram = FloatHistogram()
    histogram.add(values)
    return histogram


def _squared_error(values: torch.Tensor, low: float, high: float, scheme: Scheme) -> float:
    q = activation_grid(low, high, scheme)
    codes = (values.double() / q.scale.double()).round().add(q.zero_point).clamp(q.low, q.high)
    return float(((codes - q.zero_point) * q.scale.double() - values.double()).square().sum())


def test_every_value_lies_in_its_bin_and_none_is_lost() -> None:
    extremes = [0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, math.nextafter(1.0, 0.0)]
    values = torch.cat([torch.tensor(extremes), torch.randn(999, generator=torch.Generator().manual_seed(0))])
    low, high, counts = _histogram(values).bins()
    assert float(counts.sum()) == len(values)
    # -0 and 0 have bins of their own that both hold 0.
    assert bool((low[1:] >= high[:-1]).all())
    ordered, place = values.double().sort().values, 0
    for i, count in enumerate(counts.int().tolist()):
        inside = ordered[place : place + count]
        assert bool(((inside >= low[i]) & (inside <= high[i])).all())
        place += count
    wide = (high - low) / torch.maximum(low.abs(), high.abs()).clamp_min(1e-30)
    assert float(wide[high.abs().minimum(low.abs()) > 1e-30].max()) <= 1 / 64


def test_order_and_batches_do_not_matter_and_memory_does_not_grow() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)) ** 3
    whole, parts = _histogram(values), FloatHistogram()
    before = parts.counts.numel()
    for part in values.flip(0).split([1, 700, 299]):
        parts.add(part)
    assert torch.equal(whole.counts, parts.counts)
    assert parts.counts.numel() == before == 2**15


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    low, high = percentile_range(_histogram(values), percentile)
    exact = np.percentile(values.numpy(), [100 - percentile, percentile])
    # Outward by at most one bin (1/64), and by the gap to the next value in the thin tails.
    assert exact[0] * (1 + 1 / 64) - 0.1 <= low <= exact[0] + 0.01
    assert exact[1] - 0.01 <= high <= exact[1] * (1 + 1 / 64) + 0.1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "silu", "outlier"])
def test_the_range_with_the_least_error_is_as_good_as_a_search_on_the_values(
    kind: str, symmetric: bool, bits: int
) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    if kind == "silu":
        values = torch.nn.functional.silu(2 * values)
    if kind == "outlier":
        values[0] = 30.0
    low, high = (float(v) for v in values.aminmax())
    scheme = Scheme(bits=bits, symmetric=symmetric)
    found = _squared_error(values, *mse_range(_histogram(values), low, high, scheme), scheme)
    shares = [2 ** (-k / 6) for k in range(54)]
    searched = min(_squared_error(values, low * a, high * b, scheme) for a in shares[::2] for b in shares)
    plain = _squared_error(values, low, high, scheme)
    assert found <= 1.05 * searched
    assert found <= 1.01 * plain
    if kind == "outlier" and bits == 4:
        assert found < 0.2 * plain


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-40, 1e30])
def test_a_constant_keeps_its_range(value: float) -> None:
    values = torch.full((50,), value)
    stored = float(values[0])
    low, high = mse_range(_histogram(values), stored, stored, Scheme(bits=8))
    assert low <= stored <= high
    error = abs(_squared_error(values, low, high, Scheme(bits=8)))
    assert error <= 50 * max((value * 2**-20) ** 2, 1e-70)
    start, end = percentile_range(_histogram(values), 99.99)
    assert start <= stored <= end


def test_an_observer_reports_what_is_not_finite() -> None:
    recipe = recipe_for_bits(8, activation_range="mse")
    observer = RangeObserver(Scheme(bits=8), recipe)
    observer(torch.tensor([1.0, 2.0]))
    assert observer.range()[1] == pytest.approx(2.0, rel=0.02)
    observer(torch.tensor([math.nan, 1.0]))
    assert not all(map(math.isfinite, observer.range()))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weight_scales_have_the_least_error_and_survive_zeros(granularity: str, bits: int) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(4))
    weight[1] = 0
    weight[2, 0, 0, 0] = 1e4
    scheme = Scheme.model_validate({"bits": bits, "granularity": granularity, "symmetric": True})
    scale = weight_grid(weight, scheme, recipe_for_bits(weight_range="mse")).scale
    low, high = integer_range(scheme)
    assert bool(scale.isfinite().all() & (scale > 0).all())
    assert scale.shape == ((5,) if granularity == "per_channel" else ())

    def error(scales: torch.Tensor) -> torch.Tensor:
        columns = scales.double().reshape(-1, 1, 1, 1)
        codes = (weight.double() / columns).round().clamp(low, high)
        return (codes * columns - weight).square().sum(dim=(1, 2, 3))

    largest = weight.abs().amax(dim=(1, 2, 3)) if granularity == "per_channel" else weight.abs().max()
    plain = (largest / ((high - low) / 2)).clamp_min(1e-30)
    if granularity == "per_channel":
        assert bool((error(scale) <= error(plain) * 1.0001).all())
        if bits <= 4:
            assert float(error(scale)[0]) < float(error(plain)[0])
    else:
        assert float(error(scale).sum()) <= float(error(plain).sum()) * 1.0001


def test_integers_are_those_of_the_runtimes_kernels() -> None:
    """Symmetric 8-bit weights leave out -128, narrower ones use both ends; affine ones are unsigned."""
    found = {bits: integer_range(Scheme(bits=bits, symmetric=True)) for bits in (8, 7, 4, 2)}
    assert found == {8: (-127, 127), 7: (-64, 63), 4: (-8, 7), 2: (-2, 1)}
    assert integer_range(Scheme(bits=8)) == (0, 255)
    assert integer_range(Scheme(bits=4)) == (0, 15)
