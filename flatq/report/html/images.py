"""Pictures for the page, inline as PNG: sheets of samples, and the pairs that changed most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatq.report.html.page_models import Group, PageModel
from flatq.report.pictures import CHANGED, FIRST, Pictures, most_changed, read_pictures
from flatq.report.wording import count, number

__all__ = ["Changed", "Picture", "Samples", "changed", "data_uri", "samples", "sheet"]

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


def sheet(images: U8, columns: int) -> tuple[Image.Image, bool]:
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


def data_uri(picture: Image.Image) -> str:
    """A PNG as a URI; the same bytes for the same pixels."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def samples(group: Group) -> Samples:
    """Float and each model of the group, the image of an index at the same place in every panel."""
    found, missing = {}, []
    for model in group.models:
        pictures, why = _read(model)
        if pictures is not None and pictures.kept is not None:
            found[model.label] = pictures
        else:
            missing.append(f"{model.label}: {why or _NOT_KEPT}")
    report = group.source.report
    if not found:
        return Samples("", missing=missing)
    common: list[int] = []
    for index in range(report.first_index, report.first_index + FIRST):
        if not all(pictures.pair(index) for pictures in found.values()):
            break
        common.append(index)
    pairs = {label: [pictures.pair(i) for i in common] for label, pictures in found.items()}
    sides = {label: [pair for pair in kept if pair is not None] for label, kept in pairs.items()}
    first = next(iter(sides.values()))
    what = f"images {common[0]} to {common[-1]}, {min(_COLUMNS, len(common))} in a row"
    panels = [_panel([left for left, _ in first], "float", report.baseline.name, what)]
    panels += [
        _panel([right for _, right in sides[model.label]], model.label, model.entry.name, what)
        for model in group.models
        if model.label in sides
    ]
    text = (
        f"The first {count(len(common), 'image')} of the float model {report.baseline.name} and of each "
        "quantized one, on the same noise: the same place in each panel is the same image."
    )
    return Samples(text, panels, missing)


def changed(model: PageModel) -> Changed:
    """The pairs of a model with the largest distance, largest first."""
    pictures, why = _read(model)
    if pictures is None:
        return Changed(model.label, "", missing=why)
    rows = most_changed(pictures.distance)
    if not rows.size:
        return Changed(model.label, "No image changed at all.")
    text = (
        f"Mean paired RMSE {number(model.entry.rms_distance_mean)}, largest "
        f"{number(float(pictures.distance[rows[0]]))}, of {count(len(pictures.distance), 'pair')}."
    )
    pairs = []
    for row in rows[:CHANGED]:
        index = int(pictures.indices[row])
        pair = pictures.pair(index)
        if pair is None:
            continue
        picture, sharp = sheet(np.stack(pair), 2)
        distance = number(float(pictures.distance[row]))
        alt = f"image {index}: float on the left, {model.label} on the right"
        pairs.append(Picture(data_uri(picture), *picture.size, alt, f"image {index}", distance, sharp))
    if not pairs:
        listed = ", ".join(f"{pictures.indices[r]} ({number(float(pictures.distance[r]))})" for r in rows)
        return Changed(model.label, f"{text} Largest: images {listed}.", missing=_NOT_KEPT)
    return Changed(model.label, text, pairs)


_NOT_KEPT = "the report keeps no single images; evaluate again with this version of flatq to see them"


def _panel(images: Sequence[U8], caption: str, note: str, what: str) -> Picture:
    picture, sharp = sheet(np.stack(images), _COLUMNS)
    return Picture(data_uri(picture), *picture.size, f"{caption}: {what}", caption, note, sharp)


def _read(model: PageModel) -> tuple[Pictures | None, str | None]:
    """What a model keeps, or why there is none."""
    if model.entry.sidecar is None:
        return None, "the report names no file of features and images"
    if not (model.source.folder / model.entry.sidecar).is_file():
        return None, f"{model.entry.sidecar}, which holds features and images, is not beside the report"
    pictures = read_pictures(model.entry, model.source.folder)
    if pictures is None:
        return None, _NOT_KEPT
    return pictures, None
