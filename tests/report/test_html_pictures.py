"""Pictures on the page report.html, and what it says where a report holds none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pages import SECTIONS, add_pictures, changed_entry, page_of, pixels_of
from reports import make_report

from flatq.errors import DataError
from flatq.report.model import read_report


def test_pictures_pair_up(tmp_path: Path) -> None:
    make_report(tmp_path, {"w8a8": 0.1, "w4a8": 0.3})
    for name in ("w8a8", "w4a8"):
        add_pictures(tmp_path, name, [*range(24), *range(94, 100), 150, 200, 250])
    report = read_report(tmp_path)
    document = page_of(report, tmp_path)
    panels = document.by_id("samples").all("img")
    assert [p.attributes["alt"] for p in panels] == [
        "float: images 0 to 23, 6 in a row",
        "ema w8a8: images 0 to 23, 6 in a row",
        "ema w4a8: images 0 to 23, 6 in a row",
    ]
    left, eight, four = map(pixels_of, panels)
    assert left.shape == eight.shape == four.shape
    assert (eight == four).all()
    tile = 60 + 2
    for index in range(24):
        y, x = 30 + tile * (index // 6), 30 + tile * (index % 6)
        assert left[y, x].tolist() == [index, index, index, 255]
        assert eight[y, x].tolist() == [255 - index] * 3 + [255]
    assert (left[60:62, :, 3] == 0).all()  # the line between rows lets the paper through


def test_the_pairs_that_changed_most(tmp_path: Path) -> None:
    report = changed_entry(make_report(tmp_path, {"w8a8": 0.1}, n=100), 0, rms_distance_mean=0.05)
    add_pictures(tmp_path, "w8a8", [*range(24), *range(88, 100)])
    section = page_of(report, tmp_path).by_id("changed")
    assert [figure.text for figure in section.all("figcaption")] == [
        f"{index / 1000:.4g} image {index}" for index in range(99, 87, -1)
    ]
    assert "Mean paired RMSE 0.05, largest 0.099, of 100 pairs." in section.text
    first = section.all("img")[0]
    assert first.attributes["alt"] == "image 99: float on the left, ema w8a8 on the right"
    pixels = pixels_of(first)
    assert (pixels[30, 30, 0], pixels[30, -30, 0]) == (99, 156)


def test_no_image_changed(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8a8": 0.1}, n=100)
    add_pictures(tmp_path, "w8a8", [0, 1], image_distance=np.zeros(100))
    assert "No image changed at all." in page_of(report, tmp_path).by_id("changed").text


def test_an_older_report_says_what_is_missing(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8a8": 0.1}, n=100)
    raw = json.loads((tmp_path / "report.json").read_text())
    for part in (raw, raw["baseline"], *raw["models"]):
        for name in ("options", "gate", "weights", "prc", "audit", "looks", "ladder", "latency_ms"):
            part.pop(name, None)
    (tmp_path / "report.json").write_text(json.dumps(raw))
    old = read_report(tmp_path)
    assert old == report
    none = dict.fromkeys(("kept", "kept_float", "kept_quantized"))
    add_pictures(tmp_path, "w8a8", [0], **none)
    document = page_of(old, tmp_path)
    assert [s.attributes["id"] for s in document.all("section")] == SECTIONS
    assert "the report keeps no single images" in document.by_id("samples").text
    assert "Largest: images 99 (0.099), 98 (0.098)" in document.by_id("changed").text
    assert "Not audited" in document.by_id("kernels").text
    assert "holds no latency" in document.by_id("latency").text
    assert "older than the record of its options" in document.by_id("again").text
    (tmp_path / "w8a8.npz").unlink()
    text = page_of(old, tmp_path).by_id("samples").text
    assert "w8a8.npz, which holds features and images, is not beside the report" in text
    (tmp_path / "w8a8.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="cannot be read"):
        page_of(old, tmp_path)


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    report = make_report(tmp_path, {"w8a8": 0.1}, n=100)
    for more in (
        {"kept": np.array([0, 100])},
        {"kept_float": np.zeros((1, 1, 4, 4), np.uint8)},
        {"kept_float": np.zeros((2, 1, 4, 4)), "kept_quantized": np.zeros((2, 1, 4, 4))},
        {"kept_quantized": None},
        {"image_distance": np.full(100, np.nan)},
        {"image_distance": np.zeros(99)},
    ):
        add_pictures(tmp_path, "w8a8", [0, 1], **more)
        with pytest.raises(DataError, match="not of the report's samples"):
            page_of(report, tmp_path)
