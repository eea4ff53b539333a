"""Looking at a growing sample several times without deceiving oneself: K looks that were planned beforehand.

Each look takes an interval at 1 - alpha / K, so all K hold together at 1 - alpha (Bonferroni), whatever
decides when to stop. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flatq.errors import UsageError
from flatq.evaluate.gate import Verdict

__all__ = ["Looks", "plan_looks", "until_decided"]


@dataclass(frozen=True)
class Looks:
    """planned: samples at each look, ascending. confidence: of all looks together. taken: how many were
    needed, 0 before the first."""

    planned: tuple[int, ...]
    confidence: float
    taken: int = 0

    @property
    def each(self) -> float:
        """The confidence of each look's interval."""
        return 1.0 - (1.0 - self.confidence) / len(self.planned)


def plan_looks(first: int, last: int, count: int, confidence: float) -> Looks:
    """Looks at `first` samples, at `last`, and between in equal ratios; fewer than `count` where they would
    not be of different sizes.

    Raises:
        UsageError: last < first, count < 1, or one look at a sample that may grow.
    """
    if last < first or count < 1 or (count == 1 and last > first):
        raise UsageError(
            "the looks cannot be planned",
            expected=f"--max-samples of at least the {first} images of -n, and 2 looks or more",
            got=f"--max-samples {last} and {count} looks",
        )
    if last == first:
        return Looks((first,), confidence)
    ratio = last / first
    sizes = sorted({round(first * ratio ** (k / (count - 1))) for k in range(count)} | {last})
    return Looks(tuple(sizes), confidence)


def until_decided(looks: Looks, judge: Callable[[int, float], Verdict]) -> tuple[Verdict, Looks]:
    """The verdict of the first look that is not inconclusive, else of the last one.

    Args:
        judge: called with (samples, confidence of the interval), once for each look that is taken.
    """
    *early, last = looks.planned
    for taken, n in enumerate(early, 1):
        verdict = judge(n, looks.each)
        if verdict.outcome != "inconclusive":
            return verdict, replace(looks, taken=taken)
    return judge(last, looks.each), replace(looks, taken=len(looks.planned))
