"""Draw docs/images/demo.png from the folder of `flatq demo`: samples in float and quantized, and the drift.

    python docs/make_picture.py [FOLDER]

FOLDER is flatq-demo by default. The command prints the numbers that belong in the caption.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatq.images.grid import make_grid
from flatq.report.findings import MethodResult, cells
from flatq.report.model import read_report
from flatq.report.sidecar import read_sidecar

OUT = Path(__file__).resolve().parent / "images" / "demo.png"
BITS = ("8 bit\n(W8A8)", "4-bit weights\n(W4A8)", "4 bit, round to nearest\n(W4A4 plain)")
COLOURS = {"adm": "#1f5fae", "sam": "#c2571a"}
SHOWN, COLUMNS, SCALE, MARGIN = 12, 3, 12, 4
LINEAR_BELOW = 0.1


def main(demo: Path) -> None:
    """Write the picture and print the table's rows."""
    figure = Figure(figsize=(12, 3.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.7))
    _samples(axes[:4], demo / "adm" / "eval")
    for lane, method in enumerate(COLOURS):
        _drifts(axes[4], demo / method / "eval", method, 0.2 * (2 * lane - 1))
    _frame(axes[4])
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110, bbox_inches="tight")
    steps = json.loads((demo / "adm" / "train.json").read_text("utf-8"))["steps"]
    print(f"{OUT}: {steps} training steps")


def _samples(panels: np.ndarray, folder: Path) -> None:
    """The float samples, then those of each quantized model, all from the same noise."""
    report = read_report(folder / "report.json")
    grids = []
    for entry in report.models:
        pictures = read_sidecar(entry, folder)
        assert pictures is not None
        pairs = [pair for index in range(SHOWN) if (pair := pictures.pair(index)) is not None]
        assert len(pairs) == SHOWN
        of_float, of_quantized = (np.stack(images) for images in zip(*pairs, strict=True))
        grids = grids or [of_float]
        grids.append(of_quantized)
    for axes, grid, title in zip(panels, grids, ("float\n(32 bit)", *BITS), strict=True):
        margin = ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
        enlarged = np.pad(grid.repeat(SCALE, 2).repeat(SCALE, 3), margin, constant_values=255)
        axes.imshow(make_grid(enlarged, COLUMNS), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10)
        axes.axis("off")


def _drifts(axes: Axes, folder: Path, method: str, offset: float) -> None:
    """One line for each interval, a marker at the corrected drift; the numbers go to stdout."""
    report = read_report(folder / "report.json")
    name, marker = method.upper(), "os"[list(COLOURS).index(method)]
    for row, entry in enumerate(report.models):
        drift = entry.drift
        assert drift is not None
        assert drift.corrected is not None
        lane, colour = row + offset, COLOURS[method]
        axes.plot([drift.low, drift.high], [lane, lane], color=colour, linewidth=3)
        axes.plot(drift.corrected, lane, marker, color=colour, label=name if row == 0 else None)
        bits = BITS[row].splitlines()[1].strip("()")
        print(*cells(MethodResult(name, "EMA", bits, entry))[:7], f"n={report.n}", sep="  ")


def _frame(axes: Axes) -> None:
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_xscale("symlog", linthresh=LINEAR_BELOW)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.set_xlabel("drift: FID(quantized) - FID(float), 95 % interval")
    axes.set_yticks(range(len(BITS)), [label.splitlines()[1].strip("()") for label in BITS])
    axes.set_ylim(len(BITS) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, which="both")
    axes.set_title("drift of the FID", fontsize=10)
    axes.legend(frameon=False, loc="upper right")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "flatq-demo"))
