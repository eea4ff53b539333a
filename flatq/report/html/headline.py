"""The head of the page: the outcome, what was compared, what was tolerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flatq.report.html.page_models import PageModel, PageSource, outcome_of
from flatq.report.wording import bits_in_words, count, joined, percent

__all__ = ["WORDS", "lead", "title", "tolerance", "worst_outcome"]

_ORDER = ("fail", "inconclusive", "none", "pass")
WORDS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "Not gated"}
_ONE = {
    "pass": "{} is within the tolerance",
    "fail": "{} is not within the tolerance",
    "inconclusive": "{} may or may not be within the tolerance",
    "none": "{} was measured, but no tolerance was set",
}
_MANY = {
    "pass": ("passes", "pass"),
    "fail": ("fails", "fail"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    "none": ("is not gated", "are not gated"),
}


def worst_outcome(models: Sequence[PageModel]) -> str:
    """fail before inconclusive before none before pass."""
    return min((outcome_of(model.entry) for model in models), key=_ORDER.index, default="none")


def title(models: Sequence[PageModel]) -> str:
    """How the models came out, in one sentence."""
    outcomes = [outcome_of(model.entry) for model in models]
    if not models:
        return "No models were compared"
    if len(models) == 1:
        return _ONE[outcomes[0]].format(models[0].label)
    found = Counter(outcomes)
    parts = [f"{found[o]} {_MANY[o][found[o] > 1]}" for o in _ORDER if found[o]]
    return f"Of {len(models)} quantized models, {joined(parts)}"


def lead(models: Sequence[PageModel], sources: Sequence[PageSource]) -> list[str]:
    """What was compared and what the drift is, a paragraph each."""
    if not models:
        return []
    report = sources[0].report
    floats = joined(list(dict.fromkeys(source.report.baseline.name for source in sources)))
    pairs = max(source.report.n for source in sources)
    reference = report.reference
    what = count(reference.n, "reference image") if reference.n is not None else "reference images"
    bits = [bits_in_words(model.entry.precision) for model in models]
    names = [m.label + (f" ({words})" if words else "") for m, words in zip(models, bits, strict=True)]
    versions = "its quantized version" if len(models) == 1 else f"{len(models)} quantized versions of it"
    return [
        f"The float model {floats} and {versions}, {joined(names)}, each drew {count(pairs, 'image')} from "
        "the same noise.",
        f"The drift is how much farther from the {what} ({reference.name}) the quantized model's images lie "
        "than the float model's: 0 is no loss, more is worse. It is a difference of FIDs, in the features of "
        f"{report.extractor.name}.",
    ]


def tolerance(source: PageSource) -> str:
    """What the gate of a report tolerated."""
    gate = source.report.gate
    if gate is None:
        return "No tolerance was set, so nothing is judged: flatq gate report.json --max-drift X judges it."
    limits = []
    if gate.max_drift is not None:
        limits.append(f"a drift of at most {gate.max_drift:g}")
    if gate.max_drift_rel is not None:
        limits.append(f"a drift of at most {percent(gate.max_drift_rel)} of the float model's FID")
    over = ", over that of an earlier report" if source.against == "earlier report" else ""
    least = f", from {gate.min_samples:,} images or more" if gate.min_samples is not None else ""
    levels = {
        entry.looks.confidence if entry.looks is not None else entry.drift.confidence
        for entry in source.report.models
    }
    sure = f", at {joined([percent(level) for level in sorted(levels)])} confidence" if levels else ""
    return f"Tolerated: {joined(limits)}{over}{sure}{least}."
