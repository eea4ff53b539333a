"""Pictures for the page, inline as PNG: sheets of samples, and the pairs that changed most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatq.report.html.page_models import PageModel
from flatq.report.sidecar import FIRST, Sidecar, most_changed, read_sidecar
from flatq.report.wording import count, number

__all__ = ["Changed", "Picture", "Samples", "changed", "picture", "samples"]

_COLUMNS = 6
_TILE = 60  # smaller images are enlarged to about this many pixels

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An inline PNG. caption, note: below it. sharp: enlarged pixels stay squares."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str
    note: str = ""
    sharp: bool = True


@dataclass(frozen=True)
class Samples:
    """The grids of one group. missing: what cannot be shown, and why."""

    text: str
    panels: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Changed:
    """The pairs of one model. text: about all its pairs."""

    label: str
    text: str
    pairs: list[Picture] = field(default_factory=list)
    missing: str | None = None


def _sheet(images: U8, columns: int) -> tuple[Image.Image, bool]:
    """Tiles uint8 [n, C, H, W] row by row, with a transparent line between them, and whether they were
    enlarged."""
    n, channels, height, width = images.shape
    scale = max(1, _TILE // max(height, width))
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
    if channels == 1:
        tiles = tiles.repeat(3, axis=3)
    gap = 2
    h, w = scale * height + gap, scale * width + gap
    columns = min(columns, n)
    canvas = np.zeros((-(-n // columns) * h - gap, columns * w - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * h, (i % columns) * w
        canvas[top : top + h - gap, left : left + w - gap, :3] = tile
        canvas[top : top + h - gap, left : left + w - gap, 3] = 255
    return Image.fromarray(canvas), scale > 1


def picture(images: U8, columns: int, alt: str, caption: str, note: str = "") -> Picture:
    """A sheet of images as `Picture`; the same bytes for the same pixels."""
    drawn, sharp = _sheet(images, columns)
    stream = io.BytesIO()
    drawn.save(stream, format="PNG", optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{encoded}", *drawn.size, alt, caption, note, sharp)


def samples(group: Sequence[PageModel]) -> Samples:
    """Float and each model of the group, the image of an index at the same place in every panel."""
    found, missing = {}, []
    for model in group:
        sidecar, why = _read(model)
        if sidecar is not None and sidecar.kept is not None:
            found[model.label, model.entry.name] = sidecar
        else:
            missing.append(f"{model.label}: {why or _NOT_KEPT}")
    if not found:
        return Samples("", missing=missing)
    report = group[0].source.report
    rows = []
    for index in range(report.first_index, report.first_index + FIRST):
        pairs = [pair for sidecar in found.values() if (pair := sidecar.pair(index)) is not None]
        if len(pairs) < len(found):
            break
        rows.append([pairs[0][0], *(of_quantized for _, of_quantized in pairs)])
    last, columns = report.first_index + len(rows) - 1, min(_COLUMNS, len(rows))
    what = f"images {report.first_index} to {last}, {columns} in a row"
    names = [("float", report.baseline.name), *found]
    panels = [
        picture(np.stack(images), _COLUMNS, f"{label}: {what}", label, name)
        for (label, name), images in zip(names, zip(*rows, strict=True), strict=True)
    ]
    text = (
        f"The first {count(len(rows), 'image')} of the float model {report.baseline.name} and of each "
        "quantized one, on the same noise: the same place in each panel is the same image."
    )
    return Samples(text, panels, missing)


def changed(model: PageModel) -> Changed:
    """The pairs of a model with the largest distance, largest first."""
    sidecar, why = _read(model)
    if sidecar is None or sidecar.image_distance is None:
        return Changed(model.label, "", missing=why)
    distance = sidecar.image_distance
    rows = most_changed(distance)
    if not rows.size:
        return Changed(model.label, "No image changed at all.")
    text = (
        f"Mean paired RMSE {number(model.entry.rms_distance_mean)}, largest "
        f"{number(float(distance[rows[0]]))}, of {count(len(distance), 'pair')}."
    )
    farthest = [(int(sidecar.indices[row]), number(float(distance[row]))) for row in rows]
    pairs = [
        picture(
            np.stack(pair),
            2,
            f"image {index}: float on the left, {model.label} on the right",
            f"image {index}",
            far,
        )
        for index, far in farthest
        if (pair := sidecar.pair(index)) is not None
    ]
    if not pairs:
        listed = ", ".join(f"{index} ({far})" for index, far in farthest)
        return Changed(model.label, f"{text} Largest: images {listed}.", missing=_NOT_KEPT)
    return Changed(model.label, text, pairs)


_NOT_KEPT = "the report keeps no single images; evaluate again with this version of flatq to see them"


def _read(model: PageModel) -> tuple[Sidecar | None, str | None]:
    """What a model keeps, or why there is nothing."""
    name = model.entry.sidecar
    if name is None:
        return None, "the report names no file of features and images"
    sidecar = read_sidecar(model.entry, model.source.folder)
    if sidecar is None:
        return None, f"{name}, which holds features and images, is not beside the report"
    return sidecar, None if sidecar.image_distance is not None else _NOT_KEPT
