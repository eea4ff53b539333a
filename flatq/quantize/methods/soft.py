"""What is learned of a layer in its block: its integers, its bias, and the range of its input.

- Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": the rectified sigmoid h
  (eq. 23), which decides between two integers.
- Esser et al. 2020, "Learned Step Size Quantization", as BRECQ takes it for activations: the gradient of a
  fake-quantized value in its scale, straight through the rounding; Bhalgat et al. 2020, "LSQ+": and in its
  zero point. What is learned here are the two ends of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import torch

from flatq.quantize.grid import activation_grid
from flatq.quantize.methods.layer import InputRange, QuantLayer

__all__ = ["SoftLayer", "SoftRange", "SoftRounding", "soften"]

_GAMMA, _ZETA = -0.1, 1.1
"""The stretched sigmoid's ends (Louizos et al. 2018)."""
_HALF = 0.501
"""A soft integer starts on the given one's side of the middle."""
_OCTAVE = log(2)
"""An end moves by a factor of 2 at most: an int32 has room for the bias in half its steps."""


class SoftRounding:
    """The integers of a layer as a lower neighbour + h(V), with V to be learned.

    The two to choose from are the layer's own integer and the next one towards the float weight. At the start
    h(V) lies halfway between the integer and the float weight, so that the hard integers are the layer's.
    """

    def __init__(self, layer: QuantLayer) -> None:
        self._layer = layer
        exact, given = layer.weight / layer.grid.scale_for(layer.weight), layer.integers.float()
        self._floor = torch.where(given > exact, given - 1, given)
        start = ((given + exact) / 2 - self._floor).clamp(0.0, 1.0)
        start = torch.where(given > exact, start.clamp(min=_HALF), start.clamp(max=1 - _HALF))
        self.v = torch.logit((start - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()

    def h(self) -> torch.Tensor:
        """The fraction that each integer is rounded up, in [0, 1]."""
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def weight(self) -> torch.Tensor:
        """The weight with soft integers; differentiable in V."""
        grid = self._layer.grid
        return grid.dequantize((self._floor + self.h()).clamp(grid.low, grid.high))

    def integers(self) -> torch.Tensor:
        """Hard integers, int8: down or up."""
        grid = self._layer.grid
        return (self._floor + (self.v.detach() >= 0)).clamp(grid.low, grid.high).to(torch.int8)


class SoftRange:
    """The ends of an input's range, each times exp(V); one factor for both where the scheme is symmetric."""

    def __init__(self, given: InputRange) -> None:
        self._given = given
        grid = activation_grid(given.low, given.high, given.scheme)
        self._first, self._last = grid.low, grid.high
        self.v = torch.zeros(1 if given.scheme.symmetric else 2, requires_grad=True)

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper end, float32 [] each; differentiable in V."""
        factors = self.v.clamp(-_OCTAVE, _OCTAVE).exp().expand(2)
        return min(self._given.low, 0.0) * factors[0], max(self._given.high, 0.0) * factors[1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Fake quantization as of `InputRange`, differentiable in x and V."""
        low, high = self.ends()
        if self._given.scheme.symmetric:
            scale = torch.maximum(-low, high) / min(-self._first, self._last)
            zero_point = torch.zeros(())
        else:
            scale = (high - low) / (self._last - self._first)
            zero_point = _straight_through(self._first - low / scale)
        integers = (_straight_through(x / scale) + zero_point).clamp(self._first, self._last)
        return (integers - zero_point) * scale

    def harden(self) -> None:
        """Set the ends of the given range."""
        low, high = self.ends()
        self._given.low, self._given.high = float(low.detach()), float(high.detach())


class SoftLayer:
    """A layer with what is learned of it.

    Args:
        learn_bias: of a layer that has one.
        range: None leaves the layer's own.

    Attributes:
        bias_v: what is added to the bias, float32 [out], in units of the output that an input of mean square
            1 gives; None where the bias stays.
    """

    def __init__(self, layer: QuantLayer, learn_bias: bool, range: SoftRange | None) -> None:
        self.layer, self.rounding, self.range = layer, SoftRounding(layer), range
        self.bias_v: torch.Tensor | None = None
        if learn_bias and layer.bias is not None:
            self.bias_v = torch.zeros_like(layer.bias, requires_grad=True)
        self._unit = float(layer.weight.flatten(1).norm(dim=1).mean())

    def bias(self) -> torch.Tensor | None:
        """float32 [out]; differentiable in `bias_v`."""
        given = self.layer.bias
        return given if given is None or self.bias_v is None else given + self.bias_v * self._unit

    def forward(self, *args: Any) -> Any:
        """Stands in for the layer's operator; differentiable in all that is learned."""
        quantize_input = self.range or self.layer.quantize_input
        return self.layer.compute(self.rounding.weight(), args, self.bias(), quantize_input)

    def harden(self) -> None:
        """Set the layer's integers, bias and range."""
        self.layer.integers = self.rounding.integers()
        bias = self.bias()
        self.layer.bias = None if bias is None else bias.detach()
        if self.range is not None:
            self.range.harden()


def soften(layers: Sequence[QuantLayer], *, biases: bool, ranges: bool) -> list[SoftLayer]:
    """The layers of a block, ready to be learned.

    A range is learned where it is not empty, and where no layer outside of the block reads by it.
    """
    shared: dict[int, SoftRange] = {}
    for layer in layers:
        given = layer.range
        inside = [other for other in layers if other.range is given]
        if ranges and given is not None and len(inside) == given.readers and given.low < given.high:
            shared.setdefault(id(given), SoftRange(given))
    return [SoftLayer(layer, biases, shared.get(id(layer.range))) for layer in layers]


def _straight_through(x: torch.Tensor) -> torch.Tensor:
    """Rounded, with the gradient of the identity (Bengio et al. 2013)."""
    return x + (x.round() - x).detach()
