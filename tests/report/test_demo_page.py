"""The page of `flatq demo`: whole, safe, and with every number and picture that it was given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pages import Element, add_pictures, parse, pixels_of
from reports import make_report

from flatq.report.findings import COLUMNS, MethodResult, cells
from flatq.report.html.demo import DemoMethod, write_demo_page
from flatq.report.html.page_models import PageSource

BITS = ("W8A8", "W4A4 plain")
REAL = np.full((24, 1, 4, 4), 77, np.uint8)


def method(folder: Path, name: str, seed: int) -> DemoMethod:
    models = {"w8a8": 0.02, "w4a4": 1.0}
    report = make_report(folder, models, seed=seed)
    for model in models:
        add_pictures(folder, model, list(range(30)))
    results = [MethodResult(name, "EMA", b, e) for b, e in zip(BITS, report.models, strict=True)]
    return DemoMethod(name, f"{name} & its gradients.", "10 steps.", PageSource(report, folder), results)


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> list[DemoMethod]:
    return [method(tmp_path_factory.mktemp(name), name, seed) for seed, name in enumerate(("ADM", "SAM"))]


@pytest.fixture(scope="module")
def page(methods: list[DemoMethod], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_demo_page(path, methods, ["W8A8: a finding < another."], ["A note."], REAL)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(page: str) -> Element:
    return parse(page)


def test_the_page_loads_nothing_and_escapes_what_it_is_given(page: str, document: Element) -> None:
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not {e.tag for e in document.walk()} & {"script", "link", "iframe", "object", "form", "base"}
    for element in document.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "xlink:href"):
                assert str(value).startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    assert "ADM &amp; its gradients." in page
    assert "a finding &lt; another." in page


def test_every_model_has_its_row_and_its_pictures(methods: list[DemoMethod], document: Element) -> None:
    (table,) = document.all("table")
    head, *rows = (
        [cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")
    )
    assert head == list(COLUMNS)
    assert [[cell.replace("\N{MINUS SIGN}", "-") for cell in row] for row in rows] == [
        list(cells(result)) for m in methods for result in m.results
    ]
    images = document.by_id("pictures").all("img")
    captions = [caption.text for caption in document.by_id("pictures").all("figcaption")]
    assert captions == ["float", *BITS, "float", *BITS, "training data"]
    float_side, quantized = pixels_of(images[0]), pixels_of(images[1])
    assert float_side.shape == quantized.shape
    assert (quantized[0, 0, 0], float_side[0, 0, 0]) == (255, 0)  # image 0 of `add_pictures`
    assert pixels_of(images[-1])[0, 0, 0] == 77
    assert all("sharp" in image.classes for image in images)


def test_the_plot_draws_each_interval_in_the_colours_of_the_page(document: Element) -> None:
    plots = document.by_id("drift").all("svg")
    assert len(plots) == 2  # for wide and for narrow screens
    for plot in plots:
        assert {"W8A8", "W4A4 plain", "ADM", "SAM", "drift in FID"} <= {t.text for t in plot.all("text")}
        styles = [str(e.attributes.get("style")) for e in plot.walk()]
        for method_colour in ("--first", "--second"):
            drawn = [s for s in styles if f"stroke: var({method_colour}); stroke-width: 3" in s]
            assert len(drawn) == len(BITS) + 1  # and the legend
        assert not [s for s in styles if re.search(r"(stroke|fill): #", s)]
