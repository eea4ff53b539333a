"""The measurements as Markdown and plots. Renders only; plots are SVG by matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatq.files import replacing
from flatq.flatness.result import Binned, Estimate, Flatness, Noise
from flatq.verify.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["rank_agreement", "save_plots", "to_markdown"]

_QUARTERS = ("t in quarter 1", "quarter 2", "quarter 3", "quarter 4")
_FEWEST_FOR_RANKS = 5


def to_markdown(results: Sequence[Flatness]) -> str:
    """One table for each kind of measurement, a row for each checkpoint and setting."""
    s = results[0].settings
    blocks = [
        "# Flatness",
        f"{s.images} draws of (image, timestep, noise) from {results[0].data}, the same for every model; "
        f"{s.pairs} antithetic pairs of weight noise, seed {s.seed}. "
        "Each value is followed by its standard error.",
    ]

    def add(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if rows:
            blocks.extend([f"## {title}", markdown_table(head, rows)])

    add("Loss", ("model", "loss", *_QUARTERS), [(_label(r), *_cells(r.loss)) for r in results])
    add(
        "Loss under gaussian weight noise",
        ("model", "noise", "mean loss", "increase", *_QUARTERS),
        [
            (_label(r), f"{n.kind} {n.sigma:g}", _text(n.loss.overall), *_cells(n.increase))
            for r in results
            for n in r.noise
        ],
    )
    add(
        "Increase of the loss at SAM's ascent point",
        ("model", "radius", "increase", *_QUARTERS),
        [(_label(r), f"{a.kind} {a.rho:g}", *_cells(a.increase)) for r in results for a in r.ascent],
    )
    bends = [(_label(r), r.curvature) for r in results if r.curvature is not None]
    add(
        "Hessian",
        ("model", "largest eigenvalue", "trace"),
        [(label, _text(bend.largest_eigenvalue), _text(bend.trace)) for label, bend in bends],
    )
    statistics = ("norm", "range over std", "kurtosis")
    add(
        "Weights (means over layers, weighted by size)",
        ("model", *statistics),
        [(_label(r), *(f"{r.measures()[name]:.4g}" for name in statistics)) for r in results],
    )
    add(
        "Increase of the loss by quantization",
        (
            "artifact",
            "precision",
            "weights alone",
            "lowered graph",
            "random error of the same norm",
            "forecast g.d + 1/2 d'Hd",
            "norm of d",
        ),
        [
            (
                f"{_label(r)}: {d.artifact}",
                d.precision,
                *(_text(part.overall) for part in (d.weights, d.quantized, d.random)),
                f"{d.slope:+.3g} {d.curvature:+.3g}",
                f"{d.error_norm:.4g}",
            )
            for r in results
            for d in r.damage
        ],
    )
    add(
        "Rank agreement with the damage (Spearman, first artifact of each model)",
        ("measure", "rank correlation"),
        [(name, f"{rho:+.2f}") for name, rho in rank_agreement(results).items()],
    )
    return "\n\n".join(blocks) + "\n"


def rank_agreement(results: Sequence[Flatness]) -> dict[str, float]:
    """Spearman's correlation over the models of each measure with the loss increase under the weight error of
    the model's first artifact; empty below five models."""
    from scipy.stats import spearmanr

    damaged = [r for r in results if r.damage]
    if len(damaged) < _FEWEST_FOR_RANKS:
        return {}
    harm = [r.damage[0].weights.overall.value for r in damaged]
    measures = [r.measures() for r in damaged]
    return {name: float(spearmanr([m[name] for m in measures], harm).statistic) for name in measures[0]}


def save_plots(results: Sequence[Flatness], folder: Path) -> None:
    """Write `noise.svg`, the increase of the loss against sigma for absolute and relative noise, and
    `quarters.svg`, that at the largest sigma in the quarters of t."""
    from matplotlib.figure import Figure

    def line(axes: Axes, points: Iterable[tuple[float, Estimate]], label: str) -> None:
        x, y = zip(*points, strict=True)
        errors = [1.96 * (estimate.standard_error or 0.0) for estimate in y]
        axes.errorbar(x, [e.value for e in y], yerr=errors, marker="o", capsize=3, label=label)

    def against_sigma(axes: Axes, noise: Sequence[Noise], label: str) -> None:
        line(axes, ((n.sigma, n.increase.overall) for n in noise), label)
        axes.set_xlabel("sigma" if noise[0].kind == "absolute" else "sigma / root mean square of the filter")
        axes.set_ylabel("increase of the loss")
        axes.set_yscale("symlog", linthresh=1e-3)

    def by_quarter(axes: Axes, noise: Sequence[Noise], label: str) -> None:
        line(axes, enumerate(noise[-1].increase.quarters, start=1), f"{label}, {noise[-1].sigma:g}")
        axes.set_xlabel("quarter of t, from low noise to high")
        axes.set_xticks([1, 2, 3, 4])

    for name, panel in (("noise.svg", against_sigma), ("quarters.svg", by_quarter)):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("absolute", "relative"), strict=True):
            for result in results:
                panel(axes, [n for n in result.noise if n.kind == kind], _label(result))
            axes.set_title(f"{kind} gaussian weight noise")
        figure.axes[0].legend()
        with replacing(folder / name) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})


def _label(result: Flatness) -> str:
    return f"{result.checkpoint} ({result.weights_variant})"


def _cells(value: Binned) -> tuple[str, ...]:
    return tuple(_text(v) for v in (value.overall, *value.quarters))


def _text(value: Estimate) -> str:
    return f"{value.value:.4g}" + ("" if value.standard_error is None else f" ± {value.standard_error:.2g}")
