"""The harm of the layers as Markdown and as a bar plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flatq.flatness.result import Estimate
from flatq.sensitivity.result import MEASURES, LayerHarm, Measure, Sensitivity
from flatq.verify.tables import markdown_table

__all__ = ["forecast_quality", "layer_rows", "save_plot", "to_markdown"]

_BARS = 20


def layer_rows(found: Sensitivity) -> list[tuple[str, ...]]:
    """The head of the table of layers, and a row for each, most harmful first."""
    total = _totals(found)
    rows = [
        (
            h.layer,
            _bits(h),
            f"{h.parameters:,}",
            f"{h.macs:,}",
            *(text for m in MEASURES for text in _cells(h.value(m), total[m])),
        )
        for h in _worst_first(found.layers)
    ]
    return [("layer", "bits", "weights", "MACs", "prediction", "of all", "image", "of all"), *rows]


def to_markdown(found: Sensitivity) -> str:
    """Tables of layers and of blocks by quarter of t, and how good the forecast is."""
    total = _totals(found)
    blocks = [
        (
            name,
            f"{sum(h.parameters for h in harms):,}",
            *(f"{sum(h.prediction.quarters[q].value for h in harms):.2e}" for q in range(4)),
            _percent(sum(h.prediction.overall.value for h in harms), total["prediction"]),
            _percent(sum(h.image.value for h in harms), total["image"]),
        )
        for name, harms in found.blocks().items()
    ]
    head, *rows = layer_rows(found)
    quarters = ("t in quarter 1", "quarter 2", "quarter 3", "quarter 4")
    parts = [
        "# Sensitivity",
        f"{found.checkpoint} ({found.weights_variant}), recipe {found.recipe}, {found.rounding}: one layer "
        f"quantized at a time; {found.sampling['images']} images, {found.sampling['steps']} "
        f"{found.sampling['sampler']} steps, seed {found.sampling['seed']}. Prediction: squared error "
        "relative to the mean square of the float prediction. Image: mean squared difference of the final "
        "images, in [-1, 1]. Each value is followed by its standard error.",
        "## Layers, most harmful first",
        markdown_table(head, rows),
        "## Blocks: error of the prediction by quarter of t, from low noise to high",
        markdown_table(("block", "weights", *quarters, "of all", "image, of all"), blocks),
        "## Forecast of a plan: the sum of the harm of its layers",
        *(forecast_quality(found, measure) for measure in MEASURES),
    ]
    return "\n\n".join(parts) + "\n"


def forecast_quality(found: Sensitivity, measure: Measure) -> str:
    """A line on how the forecast compares with the measured plans."""
    ratios = found.ratios(measure)
    return (
        f"{measure}: measured / forecast on {len(ratios)} random plans: median {np.median(ratios):.2f} "
        f"({ratios.min():.2f} to {ratios.max():.2f}), all layers together {ratios[-1]:.2f}; "
        f"rank correlation {found.rank_correlation(measure):+.2f}."
    )


def save_plot(found: Sensitivity, path: Path) -> None:
    """Write the most harmful layers as bars with standard errors, an SVG of two panels."""
    from matplotlib.figure import Figure

    worst = _worst_first(found.layers)[:_BARS][::-1]
    figure = Figure(figsize=(10, 1.2 + 0.25 * len(worst)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip((right, left), MEASURES, strict=True):
        values = [h.value(measure) for h in worst]
        axes.barh(
            [h.layer for h in worst],
            [v.value for v in values],
            xerr=[v.standard_error or 0.0 for v in values],
            color="#4477aa",
        )
        axes.set_xlim(left=0)
    left.set_xlabel("mean squared difference of the image")
    right.set_xlabel("relative squared error of the prediction")
    figure.savefig(path, format="svg", metadata={"Date": None})


def _worst_first(layers: Sequence[LayerHarm]) -> list[LayerHarm]:
    """By the harm on the final image."""
    return sorted(layers, key=lambda h: h.image.value, reverse=True)


def _totals(found: Sensitivity) -> dict[Measure, float]:
    return {m: sum(h.value(m).value for h in found.layers) for m in MEASURES}


def _bits(harm: LayerHarm) -> str:
    """Such as w4a8; a float side is left out."""
    return "".join(
        f"{letter}{bits}"
        for letter, bits in (("w", harm.weight_bits), ("a", harm.activation_bits))
        if bits is not None
    )


def _cells(value: Estimate, total: float) -> tuple[str, str]:
    return f"{value.value:.2e} ± {value.standard_error:.0e}", _percent(value.value, total)


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"
