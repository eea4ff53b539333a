"""Which range of values a scale covers: the extremes, percentiles, or the least squared error.

What calibration sees is counted in a histogram whose bins are the leading bits of a float32. It never grows,
has the same relative resolution everywhere, and gives the same counts whatever the order and the size of the
batches.
"""

from __future__ import annotations

import torch
from torch import nn

from flatq.quantize.grid import SMALLEST_SCALE, QuantGrid, activation_grid, integer_range
from flatq.recipe import QuantRecipe, Scheme

__all__ = ["FloatHistogram", "RangeObserver", "mse_range", "percentile_range", "weight_grid"]

_MANTISSA_BITS = 6
_SHIFT = 23 - _MANTISSA_BITS
_BINS = 2 ** (1 + 8 + _MANTISSA_BITS)

_WEIGHT_RATIOS = torch.linspace(1.0, 0.2, 81).tolist()
"""Ranges of a weight that are tried, as fractions of its largest value; the first is min-max's own."""
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
    """The range within [low, high] whose grid has the least squared error on what was counted.

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
        grids = [activation_grid(*ends, scheme) for ends in zip(lows.tolist(), highs.tolist(), strict=True)]
        scale = torch.stack([grid.scale for grid in grids]).double()[:, None]
        bottom, top = torch.tensor([grid.bounds for grid in grids], dtype=torch.float64)[..., None].unbind(1)
        nearest = ((middle / scale).round() * scale).clamp(bottom, top)
        spread = (width > scale / 2) & (middle > bottom) & (middle < top)
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


class RangeObserver(nn.Module):
    """Finds the range of a tensor by a recipe's `activation_range`, in memory that does not grow.

    Attributes:
        low, high: the extremes seen, float32 []; infinite before anything was.
    """

    def __init__(self, scheme: Scheme, recipe: QuantRecipe) -> None:
        super().__init__()
        self.scheme, self.recipe = scheme, recipe
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        self.histogram = FloatHistogram()

    def forward(self, x: torch.Tensor) -> None:
        low, high = torch.aminmax(x.detach().float())
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if self.recipe.activation_range != "minmax":
            self.histogram.add(x)

    def range(self) -> tuple[float, float]:
        """Lower and upper end; the extremes as they are where one is not finite."""
        low, high = float(self.low), float(self.high)
        if self.recipe.activation_range == "minmax" or not bool(self.low.isfinite() & self.high.isfinite()):
            return low, high
        if self.recipe.activation_range == "mse":
            return mse_range(self.histogram, low, high, self.scheme)
        start, end = percentile_range(self.histogram, self.recipe.percentile)
        return max(start, low), min(end, high)


def weight_grid(weight: torch.Tensor, scheme: Scheme, recipe: QuantRecipe) -> QuantGrid:
    """The grid of a weight; its scale is float32 [channels] or [].

    Min-max takes the largest magnitude over half the number of steps, at least the smallest scale that
    float32 divides by. `mse` takes one of 81 fractions of it, 1 down to 0.2, by the least squared error.

    Args:
        weight: [out, ...]; with `per_channel` each of its rows has a scale.
    """
    low, high = integer_range(scheme)
    rows = weight.detach().float().reshape(len(weight) if scheme.granularity == "per_channel" else 1, -1)
    whole = (rows.abs().amax(dim=1) / ((high - low) / 2)).clamp_min(SMALLEST_SCALE)
    best, least = whole, torch.full_like(whole, torch.inf, dtype=torch.float64)
    for ratio in _WEIGHT_RATIOS if recipe.weight_range == "mse" else ():
        grid = QuantGrid((whole * ratio).clamp_min(SMALLEST_SCALE), low, high)
        error = (rows - grid.dequantize(grid.quantize(rows))).double().square().sum(dim=1)
        best, least = torch.where(error < least, grid.scale, best), torch.minimum(error, least)
    return QuantGrid(best if scheme.granularity == "per_channel" else best.reshape(()), low, high)
