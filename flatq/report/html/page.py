"""The page of one report or several."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from flatq.report.eval_command import eval_command
from flatq.report.html import headline
from flatq.report.html.images import changed, samples
from flatq.report.html.latency import Speed, scatters
from flatq.report.html.numbers import measures
from flatq.report.html.page_models import PageModel, PageSource, groups, outcome_of, page_models
from flatq.report.html.plots import Interval, interval_plots
from flatq.report.template import open_template
from flatq.report.wording import ROUNDING, cautions, neighbours, reference_in_words, sampling_settings, scale
from flatq.verify.tables import integer_groups

__all__ = ["render_html"]

_ERROR_NAMES = {
    "export": ("Export", "B \N{MINUS SIGN} A"),
    "quantization": ("Quantization", "C \N{MINUS SIGN} A"),
    "kernel": ("Kernels", "D \N{MINUS SIGN} C \N{MINUS SIGN} B + A"),
    "total": ("Total", "D \N{MINUS SIGN} A"),
}
_STAGES = {
    "A": "float model in torch",
    "B": "its float export on the runtime",
    "C": "quantized graph in torch",
    "D": "that graph on the runtime",
}


def render_html(sources: Sequence[PageSource], speeds: Sequence[Speed] = ()) -> str:
    """One HTML file without scripts that loads nothing. The same reports and files give the same text.

    The page names what a report or its folder does not hold.

    Args:
        sources: at least one; their distances have to compare.
        speeds: a benchmark's times of the same models.

    Raises:
        DataError: reports of other features, references or roundings.
    """
    models = page_models(sources)
    reports = [source.report for source in sources]
    limit = _shared_limit(sources)
    plots, not_timed = scatters(models, speeds, limit)
    first = reports[0]
    lanes = [_interval(model, limit) for model in models]
    columns, rows = measures(models)
    text = open_template("page.html").render(
        outcome=headline.worst_outcome(models),
        title=headline.title(models),
        lead=headline.lead(models, sources),
        tolerance=" ".join(dict.fromkeys(map(headline.tolerance, sources))),
        notes=list(dict.fromkeys(note for source in sources for note in source.notes)),
        words=headline.WORDS,
        outcome_of=outcome_of,
        models=models,
        extractor=first.extractor,
        scale=scale(first),
        cautions=list(dict.fromkeys(line for report in reports for line in cautions(report))),
        neighbours=neighbours(first),
        columns=columns,
        rows=rows,
        limit=limit,
        lanes=lanes,
        drift=interval_plots(lanes, limit, "drift"),
        samples=[samples(group) for group in groups(models)],
        changed=[changed(model) for model in models],
        ladders={model.label: _ladder_plots(model) for model in models if model.entry.ladder is not None},
        error_names=_ERROR_NAMES,
        stages=_STAGES,
        integer_groups=integer_groups,
        scatters=plots,
        benchmarked=bool(speeds),
        not_timed=not_timed,
        reports=reports,
        eval_command=eval_command,
        roundings=ROUNDING,
        reference_in_words=reference_in_words,
        sampling_settings=sampling_settings,
    )
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def _shared_limit(sources: Sequence[PageSource]) -> float | None:
    """The absolute tolerance of the drift over the float model, where all reports share it."""
    limits = {
        source.report.gate.max_drift
        if source.report.gate is not None and source.against == "float model"
        else None
        for source in sources
    }
    return limits.pop() if len(limits) == 1 else None


def _interval(model: PageModel, shared: float | None) -> Interval:
    """The drift, with the model's own tolerance where it is not the shared one."""
    drift, gate = model.entry.drift, model.source.report.gate
    limits = []
    if gate is not None and model.source.against == "float model":
        relative = None if gate.max_drift_rel is None else gate.max_drift_rel * drift.fid_float
        limits = [x for x in (relative, gate.max_drift if shared is None else None) if x is not None]
    limit = min(limits, default=None)
    return Interval.of(model.label, drift, outcome_of(model.entry), limit)


def _ladder_plots(model: PageModel) -> list[tuple[str, Markup]]:
    lanes = [
        Interval.of(word, getattr(model.entry.ladder, name), "total" if name == "total" else "plain")
        for name, (word, _) in _ERROR_NAMES.items()
    ]
    return interval_plots(lanes, None, f"ladder {model.label}")
