"""The values that a tensor can take once it is quantized: `QuantGrid`.

Range observers, rounding methods, lowering and the parity reference all round, clamp and dequantize through
it. Another number format is another grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flatq.recipe import Scheme

__all__ = ["SMALLEST_SCALE", "QuantGrid", "activation_grid", "integer_range"]

SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny)
"""Runtimes flush denormals to zero, and a scale of zero divides by it."""


@dataclass(frozen=True)
class QuantGrid:
    """Evenly spaced values: value = (integer - zero_point) * scale.

    Attributes:
        scale: positive float, [] for one scale or [channels] for one along axis 0.
        low, high: smallest and largest integer; an unsigned grid starts at 0.
        zero_point: the integer that stands for 0, the same for all channels.
    """

    scale: torch.Tensor
    low: int
    high: int
    zero_point: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """What the integers are stored in: torch.int8 or torch.uint8."""
        return torch.int8 if self.low < 0 else torch.uint8

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value of a grid with one scale."""
        scale = float(self.scale)
        return (self.low - self.zero_point) * scale, (self.high - self.zero_point) * scale

    def unsigned(self) -> QuantGrid:
        """The same values with integers from 0 on."""
        return replace(self, low=0, high=self.high - self.low, zero_point=self.zero_point - self.low)

    def quantize(self, value: torch.Tensor) -> torch.Tensor:
        """The nearest integers, in the values' own float type.

        As torch's operators do, values are multiplied by the reciprocal of the scale.
        """
        steps = value * (1.0 / self.scale_for(value))
        return (steps.round() + self.zero_point).clamp(self.low, self.high)

    def dequantize(self, integers: torch.Tensor) -> torch.Tensor:
        """The values of integers, in float32 for an integer tensor and in the float type of any other."""
        numbers = integers if integers.is_floating_point() else integers.float()
        return (numbers - self.zero_point) * self.scale_for(numbers)

    def fake_quantize(self, value: torch.Tensor) -> torch.Tensor:
        """The nearest values, where there is one scale; the gradient goes straight through inside bounds."""
        zero_point = torch.tensor(self.zero_point, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(value, self.scale, zero_point, self.low, self.high)

    def scale_for(self, value: torch.Tensor) -> torch.Tensor:
        """The scale in the float type of a tensor, and of a shape that broadcasts to it."""
        scale = self.scale.to(value.dtype)
        return scale.reshape(-1, *[1] * (value.ndim - 1)) if scale.ndim else scale


def integer_range(scheme: Scheme) -> tuple[int, int]:
    """Smallest and largest integer of a scheme.

    Symmetric 8-bit integers leave out -128, as the runtimes' symmetric kernels do; affine ones are unsigned.
    """
    if scheme.symmetric:
        half = 2 ** (scheme.bits - 1)
        return -half + (scheme.bits == 8), half - 1
    return 0, 2**scheme.bits - 1


def activation_grid(low: float, high: float, scheme: Scheme) -> QuantGrid:
    """The grid that covers [low, high] and represents 0 exactly; its scale is float32 [].

    A range that is empty gets the scale 1: its only value is 0. Symmetric 8-bit integers reach down to -128,
    as the runtimes' QuantizeLinear does, though the scale is that of -127..127: a clip in front of it would
    cost a kernel.
    """
    first, last = integer_range(scheme)
    first = -128 if scheme.symmetric and scheme.bits == 8 else first
    low, high = min(low, 0.0), max(high, 0.0)
    width = max(-low, high) / min(-first, last) if scheme.symmetric else (high - low) / (last - first)
    scale = max(width, SMALLEST_SCALE) if width else 1.0
    zero_point = 0 if scheme.symmetric else min(max(round(first - low / scale), first), last)
    return QuantGrid(torch.tensor(scale, dtype=torch.float32), first, last, zero_point)
