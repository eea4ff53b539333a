"""The page's plots: what each draws, in which colour, and where."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from pages import Element, changed_entry, gated_report, page_of, parse
from reports import make_report

from flatq.evaluate.gate import Tolerances
from flatq.report.html.latency import Speed
from flatq.report.html.plots import Interval, Point, interval_plots, scatter_plot
from flatq.report.wording import count, joined, numeral


def texts(drawing: Element) -> list[str]:
    return [text.text for text in drawing.all("text")]


def drawn(drawing: Element, style: str) -> list[list[float]]:
    """The coordinates of the paths whose style has these words."""
    paths = [p for p in drawing.all("path") if style in str(p.attributes.get("style"))]
    return [[float(x) for x in re.findall(r"-?[\d.]+", str(p.attributes["d"]))] for p in paths]


def test_intervals_lie_where_their_values_are() -> None:
    lanes = [Interval("a", 0.25, 0.0, 0.5, state="pass"), Interval("b", 1.0, limit=0.75, state="fail")]
    wide, narrow = (parse(svg) for _, svg in interval_plots(lanes, 0.5, "test"))
    for drawing in (wide, narrow):
        assert {"a", "b", "tolerance 0.5", "drift in FID"} <= set(texts(drawing))
        assert "+0.25 [+0, +0.5]" in texts(drawing)
        assert "+1, no interval" in texts(drawing)
        ((left, y, right, end),) = drawn(drawing, "stroke: var(--pass); stroke-width: 3")
        assert y == end
        (zero,) = drawn(drawing, "stroke: var(--soft); stroke-linecap: square")
        shared, own = drawn(drawing, "stroke: var(--fail); stroke-width: 1.5")
        assert zero[0] == pytest.approx(left)
        assert shared[0] == pytest.approx(right)
        assert own[0] - zero[0] == pytest.approx(1.5 * (right - left))
        assert re.search(r"fill: var\(--paper\); stroke: var\(--fail\)", str(_styles(drawing)))  # open


def _styles(drawing: Element) -> list[str]:
    return [str(e.attributes.get("style")) for e in drawing.walk()]


def test_nothing_to_draw() -> None:
    assert interval_plots([], None, "test") == []
    assert interval_plots([Interval("a", math.inf)], None, "test") == []
    assert scatter_plot([Point(1.0, Interval("float", 0.0))], {}, None, "ms", "test") is None
    assert scatter_plot([Point(1.0, Interval("a", math.nan, state="pass"))], {}, None, "ms", "test") is None


def test_the_drift_plot_draws_each_model(tmp_path: Path) -> None:
    report = gated_report(tmp_path)
    plots = page_of(report, tmp_path).by_id("drift").all("svg")
    assert len(plots) == 2  # for wide and for narrow screens
    for plot in plots:
        assert {"ema w8a8", "ema w4a8", "tolerance 0.5"} <= set(texts(plot))
        for tone in ("pass", "fail"):
            assert len(drawn(plot, f"stroke: var(--{tone}); stroke-width: 3")) == 1
        assert not [s for s in _styles(plot) if re.search(r"(stroke|fill): #", s)]
    relative = report.model_copy(update={"gate": Tolerances(None, 0.5)})
    section = page_of(relative, tmp_path).by_id("drift")
    limits = drawn(section.all("svg")[0], "stroke: var(--fail); stroke-width: 1.5")
    assert len(limits) == 3  # one in each lane
    assert "a tolerance relative to the FID is judged by an interval of its own" in section.text
    assert "at most 50 % of the float model's FID" in page_of(relative, tmp_path).all("header")[0].text


def _speed(digest: str, runtime: str, ms: float, is_float: bool = False) -> Speed:
    return Speed(digest, runtime, is_float, {1: ms, 8: ms / 2})


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
    figure = section.all("figure")[0]
    assert {"float, torch", "ema w8a8", "float, onnxruntime"} <= set(texts(figure))
    assert "ema w4a8" not in texts(figure)
    assert "float, openvino" not in texts(figure)
    ((bar, *_),) = drawn(figure, "stroke: var(--pass); stroke-width: 3")
    (dotted,) = drawn(figure, "stroke-dasharray: 1,1.65")
    left = next(float(str(t.attributes["x"])) for t in figure.all("text") if t.text == "2")
    assert (dotted[0] - left) / (bar - left) == pytest.approx((6 - 2) / (4 - 2))
    assert "ema w4a8: the benchmark does not hold it on onnxruntime" in section.text
    drift = report.models[0].drift
    assert drift is not None
    assert f"ema w8a8: 4 ms an image, drift {drift.corrected:+.4g}" in str(figure.attributes["aria-label"])

    far = [*speeds[1:], _speed("ab" * 32, "onnxruntime", 0.1)]
    assert "logarithmic" in page_of(report, tmp_path, *far).by_id("latency").text
    other = _speed("99" * 32, "onnxruntime", 1.0)
    assert "holds none of these models" in page_of(report, tmp_path, other).by_id("latency").text


def test_labels_at_one_place_stand_apart(tmp_path: Path) -> None:
    report = make_report(tmp_path, dict.fromkeys("abcd", 0.1))
    for number in range(4):
        report = changed_entry(report, number, latency_ms=2.0)
    drawing = page_of(report, tmp_path).by_id("latency").all("svg")[0]
    labels = [e for e in drawing.all("text") if e.text.startswith("ema ")]
    heights = sorted(float(str(e.attributes["y"])) for e in labels)
    assert len(heights) == 4
    assert min(np.diff(heights)) >= 12.0


def test_words() -> None:
    assert numeral("-0.5 [-1e-05, +inf]") == "−0.5 [−1e−05, +∞]"  # noqa: RUF001
    assert numeral("information on w8-8") == "information on w8-8"
    assert [count(n, "image") for n in (1, 2, 5000)] == ["1 image", "2 images", "5,000 images"]
    assert [joined(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
