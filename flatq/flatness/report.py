"""The measurements as Markdown and plots. Renders only; plots are SVG by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatq.files import replacing
from flatq.flatness.result import Binned, Estimate, Flatness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["rank_agreement", "save_plots", "to_markdown"]

_QUARTERS = ("t in quarter 1", "quarter 2", "quarter 3", "quarter 4")
_FEWEST_FOR_RANKS = 5


def to_markdown(results: Sequence[Flatness]) -> str:
    """One table for each kind of measurement, a row for each checkpoint and setting."""
    blocks = ["# Flatness", _about(results)]
    blocks += ["## Loss", _table(("model", *_columns()), [(_label(r), *_cells(r.loss)) for r in results])]
    noise = [
        (_label(r), f"{n.kind} {n.sigma:g}", _text(n.loss.overall), *_cells(n.increase))
        for r in results
        for n in r.noise
    ]
    head = ("model", "noise", "mean loss", *_columns("increase"))
    blocks += ["## Loss under gaussian weight noise", _table(head, noise)]
    climbs = [(_label(r), f"{a.kind} {a.rho:g}", *_cells(a.increase)) for r in results for a in r.ascent]
    blocks += [
        "## Increase of the loss at SAM's ascent point",
        _table(("model", "radius", *_columns("increase")), climbs),
    ]
    bends = [
        (_label(r), _text(r.curvature.largest_eigenvalue), _text(r.curvature.trace))
        for r in results
        if r.curvature is not None
    ]
    blocks += ["## Hessian", _table(("model", "largest eigenvalue", "trace"), bends)]
    layers = [
        (
            _label(r),
            f"{r.measures()['norm']:.4g}",
            f"{r.measures()['range over std']:.4g}",
            f"{r.measures()['kurtosis']:.4g}",
        )
        for r in results
    ]
    blocks += [
        "## Weights (means over layers, weighted by size)",
        _table(("model", "norm", "range / std", "kurtosis"), layers),
    ]
    hurt = [
        (
            f"{_label(r)}: {d.artifact}",
            d.precision,
            _text(d.weights.overall),
            _text(d.quantized.overall),
            _text(d.random.overall),
            f"{d.slope:+.3g} {d.curvature:+.3g}",
            f"{d.error_norm:.4g}",
        )
        for r in results
        for d in r.damage
    ]
    if hurt:
        head = (
            "artifact",
            "precision",
            "weights alone",
            "lowered graph",
            "random error of the same norm",
            "forecast g.d + 1/2 d'Hd",
            "norm of d",
        )
        blocks += ["## Increase of the loss by quantization", _table(head, hurt)]
        agreement = rank_agreement(results)
        if agreement:
            rows = [(name, f"{rho:+.2f}") for name, rho in agreement.items()]
            blocks += [
                "## Rank agreement with the damage (Spearman, first artifact of each model)",
                _table(("measure", "rank correlation"), rows),
            ]
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


def save_plots(results: Sequence[Flatness], folder: Path) -> list[Path]:
    """Write `noise.svg`, the increase of the loss against sigma for absolute and relative noise, and
    `quarters.svg`, that at the largest sigma in the quarters of t."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    def against_sigma(axes: Axes, kind: str) -> None:
        for result in results:
            points = [(n.sigma, n.increase.overall) for n in result.noise if n.kind == kind]
            _line(axes, points, _label(result))
        axes.set_xlabel("sigma" if kind == "absolute" else "sigma / root mean square of the filter")
        axes.set_ylabel("increase of the loss")
        axes.set_yscale("symlog", linthresh=1e-3)

    def by_quarter(axes: Axes, kind: str) -> None:
        for result in results:
            last = [n for n in result.noise if n.kind == kind][-1:]
            for n in last:
                _line(axes, list(enumerate(n.increase.quarters, start=1)), f"{_label(result)}, {n.sigma:g}")
        axes.set_xlabel("quarter of t, from low noise to high")
        axes.set_xticks([1, 2, 3, 4])

    def draw(name: str, panel: Callable[[Axes, str], None]) -> Path:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("absolute", "relative"), strict=True):
            panel(axes, kind)
            axes.set_title(f"{kind} gaussian weight noise")
        figure.axes[0].legend()
        with replacing(folder / name) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
        return folder / name

    return [draw("noise.svg", against_sigma), draw("quarters.svg", by_quarter)]


def _line(axes: Axes, points: Sequence[tuple[float, Estimate]], label: str) -> None:
    axes.errorbar(
        [x for x, _ in points],
        [y.value for _, y in points],
        yerr=[1.96 * (y.standard_error or 0.0) for _, y in points],
        marker="o",
        capsize=3,
        label=label,
    )


def _about(results: Sequence[Flatness]) -> str:
    s = results[0].settings
    return (
        f"{s.images} draws of (image, timestep, noise) from {results[0].data}, the same for every model; "
        f"{s.pairs} antithetic pairs of weight noise, seed {s.seed}. "
        "Each value is followed by its standard error."
    )


def _label(result: Flatness) -> str:
    return f"{result.checkpoint} ({result.weights_variant})"


def _columns(what: str = "loss") -> tuple[str, ...]:
    return (what, *_QUARTERS)


def _cells(value: Binned) -> tuple[str, ...]:
    return tuple(_text(v) for v in (value.overall, *value.quarters))


def _text(value: Estimate) -> str:
    return f"{value.value:.4g}" + ("" if value.standard_error is None else f" ± {value.standard_error:.2g}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
