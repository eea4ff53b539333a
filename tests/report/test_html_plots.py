"""Where the parts of the page's plots lie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pages import changed_entry, gated_report, page_of
from reports import make_report

from flatq.evaluate.gate import Tolerances
from flatq.report.html.axis import log_axis, round_axis
from flatq.report.html.intervals import Bar, interval_plot
from flatq.report.html.scatter import Speed
from flatq.report.html.text import count, joined, numeral


@pytest.mark.parametrize(
    ("values", "ends", "labels"),
    [
        ([0.0, 1.0], (0.0, 1.0), ["0", "+0.2", "+0.4", "+0.6", "+0.8", "+1"]),
        ([-0.07, 0.21], (-0.1, 0.3), None),
        ([-3.0, 12.0], (-5.0, 15.0), ["−5", "0", "+5", "+10", "+15"]),  # noqa: RUF001
        ([0.0, 0.0], (-0.5, 0.5), None),
        ([7.0, 7.0], (2.0, 12.0), None),
        ([0.0, 3e-9], (0.0, 3e-9), None),
    ],
)
def test_a_round_axis(values: list[float], ends: tuple[float, float], labels: list[str] | None) -> None:
    axis = round_axis(values, first=3.0, last=97.0)
    if max(values) != min(values):
        assert (axis.low, axis.high) == pytest.approx(ends, rel=1e-9, abs=1e-12)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert axis.at(axis.low) == 3.0
    assert axis.at(axis.high) == 97.0
    assert axis.at((axis.low + axis.high) / 2) == pytest.approx(50.0)
    assert axis.at(1e9) == 97.0
    ticks = axis.ticks(signed=True)
    assert labels is None or [tick.text for tick in ticks] == labels
    assert 3 <= len(ticks) <= 9


def test_random_axes_hold_their_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        values = sorted(rng.normal(size=2) * 10.0 ** rng.integers(-6, 7))
        axis = round_axis(values)
        assert axis.low <= values[0] <= values[1] <= axis.high
        assert values[1] - values[0] > 0.4 * (axis.high - axis.low)  # most of the width is used
        steps = np.array([axis.low, axis.high]) / axis.step
        assert steps == pytest.approx(np.round(steps), abs=1e-6)
        positive = sorted(10.0 ** rng.uniform(-3, 4, size=2))
        log = log_axis(positive, first=10.0, last=90.0)
        assert log.low < positive[0] <= positive[1] < log.high
        assert log.low >= positive[0] / 2.51
        assert log.high <= positive[1] * 2.51
        middle = math.sqrt(log.low * log.high)
        assert log.at(middle) == pytest.approx(50.0)


def test_lanes_zero_and_tolerance() -> None:
    bars = [Bar("a", 0.25, 0.0, 0.5, state="pass"), Bar("b", 1.0, limit=0.75)]
    plot = interval_plot(bars, 0.5)
    assert plot is not None
    assert plot.zero == "3%"
    assert plot.limit == "50%"
    assert plot.beyond == "50%"
    first, second = plot.lanes
    assert (first.low, first.middle, first.high, first.width) == ("3%", "26.5%", "50%", "47%")
    assert (second.low, second.middle, second.limit) == (None, "97%", "73.5%")
    assert first.value == "+0.25 [+0, +0.5]"
    assert second.value == "+1, no interval"
    assert interval_plot([]) is None
    assert interval_plot([Bar("a", math.inf)]) is None


def test_the_drift_plot_draws_each_model(tmp_path: Path) -> None:
    report = gated_report(tmp_path)
    section = page_of(report, tmp_path).by_id("drift")
    assert [lane.classes for lane in section.all("div", "lane")] == [{"lane", "pass"}, {"lane", "fail"}]
    (limit,) = section.all("line", "limit")
    (zero,) = section.all("line", "zero")
    share = [float((line.attributes["x1"] or "").rstrip("%")) for line in (zero, limit)]
    assert share[0] < share[1]
    assert section.all("rect", "beyond")[0].attributes["x"] == limit.attributes["x1"]
    relative = report.model_copy(update={"gate": Tolerances(None, 0.5)})
    section = page_of(relative, tmp_path).by_id("drift")
    assert len(section.all("line", "limit")) == 2  # one in each lane
    assert "a tolerance relative to the FID is judged by an interval of its own" in section.text
    assert "at most 50 % of the float model's FID" in page_of(relative, tmp_path).all("header")[0].text


def _speed(digest: str, runtime: str, ms: float, is_float: bool = False) -> Speed:
    return Speed("label", digest, runtime, is_float, {1: ms, 8: ms / 2})


def test_latency_against_drift(tmp_path: Path) -> None:
    report = gated_report(tmp_path, {"w8a8": 0.02, "w4a8": 1.0})
    report = changed_entry(report, 1, digest="22" * 32, latency_ms=3.0)
    section = page_of(report, tmp_path).by_id("latency")
    assert len(section.all("figure")) == 1
    assert "While sampling" in section.text
    assert "flatq bench" in section.text

    float_torch = report.baseline.model_copy(update={"runtime": {"runtime": "torch"}})
    report = report.model_copy(update={"baseline": float_torch})
    speeds = [
        _speed("ab" * 32, "onnxruntime", 4.0),
        _speed("01" * 32, "torch", 8.0, is_float=True),
        _speed("77" * 32, "onnxruntime", 6.0, is_float=True),
        _speed("77" * 32, "openvino", 6.0, is_float=True),
    ]
    section = page_of(report, tmp_path, *speeds).by_id("latency")
    assert [h.text for h in section.all("h3")] == [
        "Benchmark, batch 1: ms an image",
        "Benchmark, batch 8: ms an image",
    ]
    drawing = section.all("svg")[0]
    assert [e.text for e in drawing.all("text", "point-label")] == ["float, torch", "ema w8a8"]
    x = {g.text: g.all("circle")[0].attributes["cx"] for g in drawing.all("g")}
    assert x == {"float, torch": "97%", "ema w8a8": "54%"}  # 11 % is 0 ms, 97 % is 8 ms
    (line,) = drawing.all("line", "float")
    assert line.attributes["x1"] == "75.5%"
    assert "ema w4a8: the benchmark does not hold it on onnxruntime" in section.text
    drift = report.models[0].drift
    assert drift is not None
    assert f"ema w8a8: 4 ms an image, drift {drift.corrected:+.4g}" in (
        drawing.attributes["aria-label"] or ""
    )

    far = [*speeds[1:], _speed("ab" * 32, "onnxruntime", 0.1)]
    assert "logarithmic" in page_of(report, tmp_path, *far).by_id("latency").text
    other = _speed("99" * 32, "onnxruntime", 1.0)
    assert "holds none of these models" in page_of(report, tmp_path, other).by_id("latency").text


def test_labels_at_one_place_stand_apart(tmp_path: Path) -> None:
    report = make_report(tmp_path, dict.fromkeys("abcd", 0.1))
    for number in range(4):
        report = changed_entry(report, number, latency_ms=2.0)
    drawing = page_of(report, tmp_path).by_id("latency").all("svg")[0]
    heights = sorted(float(e.attributes["y"] or 0) for e in drawing.all("text", "point-label"))
    assert min(np.diff(heights)) >= 15.0


def test_words() -> None:
    assert numeral("-0.5 [-1e-05, +inf]") == "−0.5 [−1e−05, +∞]"  # noqa: RUF001
    assert [count(n, "image") for n in (1, 2, 5000)] == ["1 image", "2 images", "5,000 images"]
    assert [joined(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
