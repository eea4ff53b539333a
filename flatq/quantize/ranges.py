"""Which range of values a scale covers: the extremes, percentiles, or the least squared error.

What calibration sees is counted in a histogram whose bins are the leading bits of a float32. It never grows,
has the same relative resolution everywhere (so that an outlier does not swallow the rest), and holds whole
numbers: batches may come in any order and any size, and the counts are the same. torchao's HistogramObserver
spreads its bins anew over every wider range, and reckons with 256 codes whatever the width.
"""

from __future__ import annotations

from typing import Any

import torch

from flatq.quantize.pt2e import ObserverBase, QuantizationSpec
from flatq.quantize.quantizer import Qparams, activation_qparams, code_range, fixed_spec, observing_spec
from flatq.recipe import QuantRecipe, Scheme

__all__ = [
    "FloatHistogram",
    "RangeObserver",
    "activation_spec",
    "mse_range",
    "percentile_range",
    "weight_scale",
    "weight_spec",
]

_MANTISSA_BITS = 6
_SHIFT = 23 - _MANTISSA_BITS
_BINS = 2 ** (1 + 8 + _MANTISSA_BITS)

_WEIGHT_RATIOS = torch.linspace(1.0, 0.2, 81).tolist()
"""Ranges of a weight that are tried, as shares of its largest value; the first is min-max's own."""
_OCTAVES = 12
"""Ranges of an activation are tried down to 2^-12 of the extremes: beyond that it is all outliers."""


class FloatHistogram:
    """How often each float32 was seen, to 6 bits behind its leading one.

    Attributes:
        counts: int64 [32768], by sign, exponent and leading bits of the mantissa.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, values: torch.Tensor) -> None:
        """Count the values of a float32 tensor; they are to be finite."""
        bits = values.detach().cpu().float().contiguous().view(torch.int32).reshape(-1)
        self.counts += torch.bincount((bits >> _SHIFT) & (_BINS - 1), minlength=_BINS)

    def bins(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The bins that are not empty, ascending: lower and upper edge and count, float64 each."""
        keys = self.counts.nonzero().reshape(-1).to(torch.int32)
        inner = (keys << _SHIFT).view(torch.float32).double()
        outer = (((keys + 1) << _SHIFT) - 1).view(torch.float32).double()
        low, high = torch.minimum(inner, outer), torch.maximum(inner, outer)
        order = torch.argsort(low + high, stable=True)
        return low[order], high[order], self.counts[keys.long()][order].double()


def percentile_range(histogram: FloatHistogram, percentile: float) -> tuple[float, float]:
    """The values below which, and above which, `percentile` percent of all lie; to one bin, outward."""
    low, high, counts = histogram.bins()
    total = float(counts.sum())
    within = total * percentile / 100
    first = int((counts.flip(0).cumsum(0) >= within).nonzero()[0])
    last = int((counts.cumsum(0) >= within).nonzero()[0])
    return float(low[len(low) - 1 - first]), float(high[last])


def mse_range(histogram: FloatHistogram, low: float, high: float, scheme: Scheme) -> tuple[float, float]:
    """The range within [low, high] whose codes have the least squared error on what was counted.

    The ends are moved together, then in turn, in steps of an eighth of an octave, then of a 64th. Values in
    bins wider than half a step are taken as spread evenly over it (step^2 / 12), the others as their middle.

    Args:
        low, high: the extremes; the range holds 0 in any case.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    edges_low, edges_high, counts = histogram.bins()
    middle, width = (edges_low + edges_high) / 2, edges_high - edges_low
    middle = middle.clamp(low, high)

    def error(lows: torch.Tensor, highs: torch.Tensor) -> torch.Tensor:
        grid = [activation_qparams(*ends, scheme) for ends in zip(lows.tolist(), highs.tolist(), strict=True)]
        scale = torch.stack([qparams.scale for qparams in grid]).double()[:, None]
        zero = torch.stack([qparams.zero_point for qparams in grid])[:, None]
        least, most = grid[0].low - zero, grid[0].high - zero
        nearest = (middle / scale).round().clamp(least, most) * scale
        spread = (width > scale / 2) & (middle > least * scale) & (middle < most * scale)
        squared = torch.where(spread, scale * scale / 12, (middle - nearest).square())
        return (squared * counts).sum(1)

    coarse = torch.exp2(-torch.arange(8 * _OCTAVES + 1).double() / 8)
    fine = torch.exp2(torch.tensor([0, *range(-7, 0), *range(1, 8)]).double() / 64)
    # A symmetric scale depends on the larger end alone, so that its ends have to move together.
    ends = ["both"] if scheme.symmetric else ["both", "high", "low", "high", "low"]
    best = (low, high)
    for shares in (coarse, fine):
        for end in ends:
            start = (low, high) if shares is coarse else best
            # What stands comes first, so that it stays where nothing is better.
            lows, highs = (
                torch.cat([shares.new_tensor([now]), first * shares if moves else now * shares**0])
                for now, first, moves in zip(best, start, (end != "high", end != "low"), strict=True)
            )
            lows, highs = lows.clamp(low, high), highs.clamp(low, high)
            least = int(error(lows, highs).argmin())
            best = (float(lows[least]), float(highs[least]))
    return best


class RangeObserver(ObserverBase):  # type: ignore[misc]
    """Finds the range of a tensor by a recipe's `activation_range`, in memory that does not grow.

    Attributes:
        min_val, max_val: the extremes seen, float32 []; infinite before anything was.
    """

    def __init__(
        self, *, scheme: Scheme, recipe: QuantRecipe, dtype: torch.dtype, qscheme: torch.qscheme, **_: Any
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.quant_min, self.quant_max, _dtype = code_range(scheme)
        self.qscheme, self.ch_axis = qscheme, None
        self.scheme, self.recipe = scheme, recipe
        self.min_val, self.max_val = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        self.histogram = FloatHistogram()
        self._found: tuple[float, float] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(x.detach().float())
        self.min_val, self.max_val = torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)
        self._found = None
        if self.recipe.activation_range != "minmax":
            self.histogram.add(x)
        return x

    def range(self) -> tuple[float, float]:
        """Lower and upper end; the extremes as they are where one is not finite."""
        low, high = float(self.min_val), float(self.max_val)
        if self._found is None:
            self._found = (low, high)
            if self.recipe.activation_range != "minmax" and bool(
                self.min_val.isfinite() & self.max_val.isfinite()
            ):
                self._found = self._chosen(low, high)
        return self._found

    def _chosen(self, low: float, high: float) -> tuple[float, float]:
        if self.recipe.activation_range == "mse":
            return mse_range(self.histogram, low, high, self.scheme)
        start, end = percentile_range(self.histogram, self.recipe.percentile)
        return max(start, low), min(end, high)

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.range()
        qparams = activation_qparams(low, high, self.scheme)
        return qparams.scale.reshape(-1), qparams.zero_point.reshape(-1)


def activation_spec(scheme: Scheme, recipe: QuantRecipe) -> QuantizationSpec:
    """Observe a tensor's range as the recipe wants it."""
    low, high, dtype = code_range(scheme)
    return QuantizationSpec(
        dtype=dtype,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine,
        observer_or_fake_quant_ctr=RangeObserver.with_args(scheme=scheme, recipe=recipe),
    )


def weight_spec(weight: torch.Tensor, scheme: Scheme, recipe: QuantRecipe) -> QuantizationSpec:
    """How a weight becomes integers: by torchao's own min-max, or by the scales of `weight_scale`."""
    if recipe.weight_range == "minmax":
        return observing_spec(scheme, weight=True)
    scale = weight_scale(weight, scheme)
    low, high, dtype = code_range(scheme)
    return fixed_spec(Qparams(scale, torch.zeros_like(scale, dtype=torch.int64), low, high, dtype))


def weight_scale(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The scales whose codes have the least squared error, float32 [channels] or [].

    Among 81 shares, 1 down to 0.2, of the scale that min-max takes: the largest magnitude over half the
    number of steps. A weight of zeros gets the smallest scale that float32 divides by, as torchao gives it.

    Args:
        weight: [out, ...]; with `per_channel` each of its rows has a scale.
    """
    low, high, _ = code_range(scheme)
    rows = weight.detach().float().reshape(len(weight) if scheme.granularity == "per_channel" else 1, -1)
    smallest = torch.finfo(torch.float32).tiny
    whole = (rows.abs().amax(dim=1, keepdim=True) / ((high - low) / 2)).clamp_min(smallest)
    best = whole
    least = torch.full_like(whole, torch.inf, dtype=torch.float64)
    for ratio in _WEIGHT_RATIOS:
        scale = (whole * ratio).clamp_min(smallest)
        codes = (rows / scale).round().clamp(low, high)
        error = (rows - codes * scale).double().square().sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.reshape(-1) if scheme.granularity == "per_channel" else best.reshape(())
