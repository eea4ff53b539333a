"""The rounds and statistics of a benchmark, over clocks that are played."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flatq.bench.timing import Timing, latency, paired, race, settle, timed


def _clock(*seconds: float) -> Callable[[], float]:
    readings: Iterator[float] = iter(seconds)
    return lambda: next(readings)


def test_a_call_is_timed_between_two_readings_of_both_clocks() -> None:
    calls = []
    timing = timed(lambda: calls.append(1), wall=_clock(10.0, 10.25), cpu=_clock(3.0, 3.5))
    assert calls == [1]
    assert timing == Timing(wall_ms=250.0, cpu_ms=500.0)


def test_a_process_is_settled_once_its_threads_take_no_time() -> None:
    slept: list[float] = []
    # Busy for two waits, then still: 0.1 ms of 2 are its own bookkeeping.
    settle(cpu=_clock(0, 0.002, 0.002, 0.0035, 0.0035, 0.0036), sleep=slept.append)
    assert slept == [0.002] * 3
    busy: list[float] = []
    settle(cpu=lambda: 0.001 * len(busy), sleep=busy.append)
    assert sum(busy) == pytest.approx(0.1)


def test_median_and_p90_are_those_of_the_definition() -> None:
    # Of 1..11 the p90 lies at the tenth tenth: 1 + 0.9 x 10 = 10. The order does not matter.
    found = latency([11.0, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6])
    assert (found.median_ms, found.p90_ms, found.min_ms) == (6.0, 10.0, 1.0)
    # Between two values: median of 1 and 2, p90 = 1 + 0.9 x 1.
    found = latency([2.0, 1.0])
    assert (found.median_ms, found.min_ms) == (1.5, 1.0)
    assert found.p90_ms == pytest.approx(1.9, rel=1e-12)
    assert latency([4.0]).p90_ms == 4.0


def test_ratios_are_taken_within_rounds() -> None:
    # 4/2, 8/1, 12/12: the median is 2, where the ratio of the medians would be 4.
    ratio = paired([4.0, 8.0, 12.0], [2.0, 1.0, 12.0])
    assert ratio is not None
    assert ratio.median == 2.0
    # Ratios 1..11, as above.
    ratio = paired([float(n) for n in range(1, 12)], [1.0] * 11)
    assert ratio is not None
    assert ratio.median == 6.0
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 10.0), rel=1e-12)
    assert paired([1.0, 1.0], [1.0, 0.0]) is None
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired([1.0, 1.0], [1.0])


def test_every_runner_has_one_call_in_each_round_and_the_order_rotates() -> None:
    order: list[str] = []

    def runner(name: str) -> Callable[[], Timing]:
        def call() -> Timing:
            order.append(name)
            return Timing(float(len(order)), 0.0)

        return call

    done: list[int] = []
    found = race({name: runner(name) for name in "abc"}, rounds=4, warmup=2, progress=done.append)
    assert "".join(order) == "abcbcacab" * 2
    assert done == [1, 2, 3, 4, 5, 6]
    # Calls 1 to 6 warm up.
    assert {name: [t.wall_ms for t in times] for name, times in found.items()} == {
        "a": [8, 10, 15, 17],
        "b": [9, 11, 13, 18],
        "c": [7, 12, 14, 16],
    }
