"""The HTML page in tests: small reports and their pages, and a strict parser of what flatq writes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reports import make_report

from flatq.evaluate.gate import Tolerances
from flatq.report.gating import regate, with_verdicts
from flatq.report.html.latency import Speed
from flatq.report.html.page import render_html
from flatq.report.html.page_models import PageSource
from flatq.report.model import Report

__all__ = [
    "MODELS",
    "SECTIONS",
    "Element",
    "add_pictures",
    "changed_entry",
    "gated_report",
    "page_of",
    "parse",
    "pixels_of",
]

MODELS = {"w8a8": 0.02, "w4a8": 1.0, "broken": float("nan")}
SECTIONS = ["numbers", "drift", "samples", "changed", "kernels", "latency", "again"]

_VOID = {"meta", "img", "br", "hr", "link"}
_EMPTY_IN_SVG = {"rect", "line", "circle", "path", "stop", "use", "g"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of all descendants, white space folded."""
        words = "".join(c if isinstance(c, str) else f" {c.text} " for c in self.children)
        return " ".join(words.split())

    @property
    def classes(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str, cls: str | None = None) -> list[Element]:
        return [e for e in self.walk() if e.tag == tag and (cls is None or cls in e.classes)]

    def by_id(self, name: str) -> Element:
        (found,) = [e for e in self.walk() if e.attributes.get("id") == name]
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _EMPTY_IN_SVG, f"<{tag}/> does not close itself"
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> in <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    """The page as a tree; fails where a tag is not closed in its place, or an id occurs twice."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == [parser.root], f"never closed: {[e.tag for e in parser.open[1:]]}"
    ids = [e.attributes["id"] for e in parser.root.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    return parser.root


def pixels_of(image: Element) -> np.ndarray:
    """RGBA of an inline picture."""
    head, _, data = (image.attributes["src"] or "").partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
        assert picture.format == "PNG"
        assert picture.size == (int(image.attributes["width"] or 0), int(image.attributes["height"] or 0))
        return np.asarray(picture.convert("RGBA"))


def add_pictures(folder: Path, name: str, kept: list[int], /, **more: Any) -> None:
    """Images for a sidecar of `reports.make_report`: the float image i is all i, the quantized one all
    255 - i (i below 256), and the pair i is i / 1000 apart. None as an array leaves it out."""
    file = folder / f"{name}.npz"
    with np.load(file) as archive:
        arrays: dict[str, Any] = dict(archive)
    indices = arrays["indices"]
    level = np.array(kept, np.uint8)[:, None, None, None]
    arrays |= {
        "image_distance": indices / 1000.0,
        "kept": np.array(kept, np.int64),
        "kept_float": np.broadcast_to(level, (len(kept), 1, 4, 4)),
        "kept_quantized": np.broadcast_to(255 - level, (len(kept), 1, 4, 4)),
    }
    arrays |= more
    np.savez(file, allow_pickle=False, **{key: a for key, a in arrays.items() if a is not None})


def gated_report(
    folder: Path, models: dict[str, float] = MODELS, tolerance: float = 0.5, **more: Any
) -> Report:
    report = make_report(folder, models, gate=Tolerances(tolerance), **more)
    return with_verdicts(report, regate(report, Tolerances(tolerance)), Tolerances(tolerance))


def page_of(report: Report, folder: Path, *speeds: Speed) -> Element:
    return parse(render_html([PageSource(report, folder)], speeds))


def changed_entry(report: Report, number: int, **fields: Any) -> Report:
    models = list(report.models)
    models[number] = models[number].model_copy(update=fields)
    return report.model_copy(update={"models": models})
