"""The picture of a benchmark: a bar for each model and batch size, drawn with pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flatq.bench.result import BenchResult
from flatq.files import replacing

__all__ = ["PLOT_FILE", "save_plot"]

PLOT_FILE = "bench.png"
_BAR, _GAP, _MARGIN, _WIDTH = 14, 6, 12, 420
_FLOAT, _QUANTIZED, _AXIS = "#8a8f98", "#2563a8", "#444444"


def save_plot(result: BenchResult, path: Path) -> None:
    """Write a PNG, atomically: ms for an image, the bar to the median and a line to the 90th percentile.

    Grey bars are float models, blue ones quantized; beside these stands how many times as fast as float on
    that runtime they are. Every batch size has the same scale.
    """
    font = ImageFont.load_default()
    rows: list[tuple[str, float, float, str, str] | str] = []
    for batch in result.batches:
        rows.append(f"batch {batch}, ms for an image (median; line to p90)")
        for entry in result.entries:
            found = next(m for m in entry.measured if m.batch == batch)
            text = f"{found.per_image_ms:.2f}"
            if found.speedup is not None and found.speedup.wall is not None:
                text += f"   x {found.speedup.wall.median:.2f}"
            color = _FLOAT if entry.precision in ("fp32", "fp16", "bf16") else _QUANTIZED
            rows.append((entry.label, found.per_image_ms, found.wall.p90_ms / batch, text, color))
    bars = [row for row in rows if not isinstance(row, str)]
    longest = max(row[2] for row in bars) or 1.0
    left = _MARGIN + max(int(font.getlength(row[0])) for row in bars) + _GAP
    right = max(int(font.getlength(row[3])) for row in bars) + 2 * _GAP + _MARGIN
    page = Image.new("RGB", (left + _WIDTH + right, 2 * _MARGIN + len(rows) * (_BAR + _GAP)), "white")
    pen = ImageDraw.Draw(page)
    top = _MARGIN
    for row in rows:
        if isinstance(row, str):
            pen.text((_MARGIN, top), row, fill=_AXIS, font=font)
        else:
            label, median, p90, text, color = row
            ends = [left + round(_WIDTH * value / longest) for value in (median, p90)]
            pen.text((_MARGIN, top), label, fill="black", font=font)
            pen.rectangle((left, top, max(left + 1, ends[0]), top + _BAR - 2), fill=color)
            if ends[1] > ends[0]:
                pen.line((ends[0] + 1, top + _BAR // 2, ends[1], top + _BAR // 2), fill=_AXIS)
            pen.text((max(ends) + _GAP, top), text, fill="black", font=font)
        top += _BAR + _GAP
    with replacing(path) as temporary:
        page.save(temporary, format="PNG")
