"""Linear and logarithmic axes with round ticks. Positions are percentages: a plot is as wide as its page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "LogAxis", "Tick", "log_axis", "place", "round_axis"]

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Tick:
    """at: in percent. text: of its label."""

    at: str
    text: str


@dataclass(frozen=True)
class Axis:
    """low, high: of the values shown. first, last: where these two lie, in percent of the width or height.
    step: between ticks, which stand at its multiples."""

    low: float
    high: float
    step: float
    first: float = 0.0
    last: float = 100.0

    def at(self, value: float) -> float:
        """Percent; what lies outside is put at the end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self, signed: bool) -> list[Tick]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + k * self.step for k in range(count + 1)]
        return [Tick(place(self.at(value)), self._label(value, signed)) for value in values]

    def _label(self, value: float, signed: bool) -> str:
        if abs(value) < 1e-9 * self.step:
            return "0"
        return f"{value:{'+' if signed else ''}.6g}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class LogAxis:
    """low, high: of the values shown, above 0. first, last: as in `Axis`."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        """Percent; what lies outside is put at the end."""
        share = math.log(min(max(value, self.low), self.high) / self.low) / math.log(self.high / self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self, signed: bool) -> list[Tick]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        units = (1, 2, 5) if self.high / self.low < 150 else (1,)
        values = [unit * 10.0**power for power in decades for unit in units]
        edge = 1 + 1e-9
        return [
            Tick(place(self.at(v)), f"{v:{'+' if signed else ''}.6g}")
            for v in values
            if self.low / edge <= v <= self.high * edge
        ]


def log_axis(values: Sequence[float], *, first: float = 0.0, last: float = 100.0) -> LogAxis:
    """A logarithmic axis over all values, which are above 0, that ends at 1, 2 or 5 times a power of ten."""
    return LogAxis(_round_down(min(values)), 10.0 / _round_down(10.0 / max(values)), first, last)


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(
        (unit * power for unit in (1.0, 2.0, 5.0) if unit * power < value * (1 - 1e-9)), default=power / 2
    )


def place(percent: float) -> str:
    """For instance `12.5%`."""
    return f"{round(percent, 2):g}%"


def round_axis(values: Sequence[float], *, first: float = 0.0, last: float = 100.0, ticks: int = 5) -> Axis:
    """An axis over all values whose ends and ticks are round numbers.

    Args:
        values: at least one, finite.
        ticks: about so many.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = 0.5 * abs(low) or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in _STEPS if power * unit >= raw * (1 - 1e-9))
    return Axis(step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9), step, first, last)
