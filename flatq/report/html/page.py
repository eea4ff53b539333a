"""The page of one report or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatq.errors import DataError
from flatq.files import replacing
from flatq.report.html.details import audits, ladders
from flatq.report.html.images import changed, samples
from flatq.report.html.intervals import Bar, interval_plot
from flatq.report.html.numbers import table
from flatq.report.html.scatter import Speed, scatters
from flatq.report.html.settings import again
from flatq.report.html.shown import Shown, Source, groups, outcome_of, shown
from flatq.report.html.template import open_template
from flatq.report.html.verdicts import head
from flatq.report.wording import cautions, neighbours, scale

__all__ = ["render_html", "write_html"]


def render_html(sources: Sequence[Source], speeds: Sequence[Speed] = ()) -> str:
    """One HTML file without scripts that loads nothing. The same reports and files give the same text.

    What a report or its folder does not hold is said on the page.

    Args:
        sources: at least one; their distances have to compare.
        speeds: of a benchmark of the same models.

    Raises:
        DataError: reports of other features, references or roundings.
    """
    models = shown(sources)
    reports = [source.report for source in sources]
    limit = _shared_limit(sources)
    plots, not_timed = scatters(models, speeds, limit)
    first = reports[0]
    text = open_template("page.html").render(
        head=head(models, sources),
        inception=first.extractor.kind == "inception",
        extractor=first.extractor,
        scale=scale(first),
        cautions=list(dict.fromkeys(line for report in reports for line in cautions(report))),
        neighbours=neighbours(first),
        table=table(models) if models else None,
        drift=interval_plot([_bar(model, limit) for model in models if model.entry.drift is not None], limit),
        samples=[samples(group) for group in groups(models)],
        changed=[changed(model) for model in models],
        ladders=ladders(models),
        audits=audits(models),
        not_audited=[model.label for model in models if model.entry.audit is None],
        scatters=plots,
        benchmarked=bool(speeds),
        not_timed=not_timed,
        again=again(sources),
    )
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def write_html(sources: Sequence[Source], path: Path, speeds: Sequence[Speed] = ()) -> Path:
    """Writes the page atomically into a folder that is there; gives `path` back.

    Raises:
        DataError: as `render_html`, or the file cannot be written.
    """
    text = render_html(sources, speeds)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write {path}",
            expected="a file name in a folder that can be written",
            got=error.strerror or str(error),
        ) from error
    return path


def _shared_limit(sources: Sequence[Source]) -> float | None:
    """The absolute tolerance of the drift over the float model, where all reports share it."""
    limits = {
        source.report.gate.max_drift
        if source.report.gate is not None and source.against == "float model"
        else None
        for source in sources
    }
    return limits.pop() if len(limits) == 1 else None


def _bar(model: Shown, shared: float | None) -> Bar:
    drift, gate = model.entry.drift, model.source.report.gate
    assert drift is not None
    own = None
    if gate is not None and model.source.against == "float model":
        relative = None if gate.max_drift_rel is None else gate.max_drift_rel * drift.fid_float
        limits = [
            limit for limit in (relative, gate.max_drift if shared is None else None) if limit is not None
        ]
        own = min(limits, default=None)
    middle = drift.raw if drift.corrected is None else drift.corrected
    return Bar(model.label, middle, drift.low, drift.high, own, outcome_of(model.entry))
