"""The clock, the rounds and the statistics of a benchmark. No models, no processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

__all__ = ["Latency", "Ratio", "Timing", "latency", "paired", "race", "settle", "timed"]

Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """One call: time on the wall, and time that the process's threads spent on the CPU."""

    wall_ms: float
    cpu_ms: float


class Latency(BaseModel):
    """Of the calls of one model at one batch size, in ms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_ms: float
    p90_ms: float
    min_ms: float


class Ratio(BaseModel):
    """How many times as fast one model is as another, from the ratios of calls in the same round.

    Attributes:
        low, high: the 10th and the 90th percentile of the rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    low: float
    high: float


def timed(
    call: Callable[[], object], wall: Clock = time.perf_counter, cpu: Clock = time.process_time
) -> Timing:
    """The time of one call.

    Args:
        wall, cpu: clocks, in seconds.
    """
    before = wall(), cpu()
    call()
    after = wall(), cpu()
    return Timing(1e3 * (after[0] - before[0]), 1e3 * (after[1] - before[1]))


def settle(cpu: Clock = time.process_time, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until this process's threads sleep, 0.1 s at most.

    OpenMP's threads wait for more work in a loop for some ms after a call, on the cores on which the next
    model is measured.

    Args:
        cpu: clock of the time that the threads spent on the CPU, in seconds.
        sleep: waits the seconds that it is given.
    """
    for _ in range(50):
        before = cpu()
        sleep(0.002)
        if cpu() - before < 0.0002:
            return


def race(
    runners: Mapping[Key, Callable[[], Timing]],
    rounds: int,
    warmup: int,
    progress: Callable[[int], None] | None = None,
) -> dict[Key, list[Timing]]:
    """Let each runner make one call in each round, so that a busy machine slows all of them alike.

    The order is rotated by one from round to round: nobody always runs after the same neighbour.

    Args:
        warmup: rounds before those that count.
        progress: called with the number of rounds done.

    Returns:
        For each runner one timing for each round that counts, in the order of the rounds.
    """
    names = list(runners)
    found: dict[Key, list[Timing]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            timing = runners[name]()
            if turn >= warmup:
                found[name].append(timing)
        if progress is not None:
            progress(turn + 1)
    return found


def latency(times_ms: Sequence[float]) -> Latency:
    """Median, 90th percentile (linear between neighbours) and minimum of at least one time."""
    return Latency(
        median_ms=float(np.median(times_ms)),
        p90_ms=float(np.quantile(times_ms, 0.9)),
        min_ms=float(min(times_ms)),
    )


def paired(reference_ms: Sequence[float], times_ms: Sequence[float]) -> Ratio | None:
    """Reference over model, round by round: 2 where the model takes half the time. None where a clock with
    coarse ticks saw no time pass."""
    pairs = list(zip(reference_ms, times_ms, strict=True))
    if not all(pair[0] and pair[1] for pair in pairs):
        return None
    ratios = [reference / time for reference, time in pairs]
    low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    return Ratio(median=float(median), low=float(low), high=float(high))
