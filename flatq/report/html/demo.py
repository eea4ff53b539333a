"""The page of `flatq demo`: what was trained, what quantization did to the pictures, and the drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatq.files import replacing
from flatq.report.findings import COLUMNS, MethodResult, cells
from flatq.report.html.images import Picture, picture, samples
from flatq.report.html.page_models import PageSource, groups, page_models
from flatq.report.html.plots import drift_plot
from flatq.report.template import open_template

__all__ = ["DemoMethod", "write_demo_page"]

_WIDE, _NARROW = 8.0, 4.6  # inches; text keeps its size on a desktop and on a phone


@dataclass(frozen=True)
class DemoMethod:
    """A training method on the page.

    Attributes:
        name: as "ADM".
        what: the method, in one sentence.
        training: what the training took, in one sentence.
        source: the report of its quantized models.
        results: the same models in the same order, as rows of the table.
    """

    name: str
    what: str
    training: str
    source: PageSource
    results: Sequence[MethodResult]


def write_demo_page(
    path: Path,
    methods: Sequence[DemoMethod],
    sentences: Sequence[str],
    notes: Sequence[str],
    training_images: NDArray[np.uint8],
) -> None:
    """Write one HTML file without scripts that loads nothing, atomically.

    Args:
        sentences: the findings.
        notes: what names mean, what the findings rest on, and what was left out.
        training_images: uint8 [n, C, H, W], shown as an example.
    """
    results = [result for method in methods for result in method.results]
    report = methods[0].source.report
    text = open_template("demo.html").render(
        methods=methods,
        panels={method.name: _panels(method) for method in methods},
        real=picture(training_images, 6, "images that the models were trained on", "training data"),
        sentences=sentences,
        notes=notes,
        report=report,
        columns=COLUMNS,
        rows=list(map(cells, results)),
        plots=[
            ("wide", drift_plot(results, _WIDE)),
            ("narrow", drift_plot(results, _NARROW)),
        ],
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _panels(method: DemoMethod) -> list[Picture]:
    """The float model's first samples and those of each quantized one, from the same noise."""
    (group,) = groups(page_models([method.source]))
    found = samples(group).panels
    captions = ["float", *(result.bits for result in method.results)]
    return [
        replace(panel, caption=caption, note="", alt=f"{method.name}, {caption}: samples")
        for panel, caption in zip(found, captions, strict=True)
    ]
