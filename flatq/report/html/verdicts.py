"""The head of the page: the outcome, what was compared, what was tolerated, what would settle it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flatq.report.html.shown import Shown, Source, outcome_of
from flatq.report.html.text import count, joined, numeral, percent
from flatq.report.wording import bits_in_words, ends, signed

__all__ = ["Card", "Head", "head"]

_ORDER = ("fail", "inconclusive", "none", "pass")
_WORDS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "Not gated"}
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


@dataclass(frozen=True)
class Card:
    """One model's verdict. bits: in words. drift, interval: in figures, where there are any."""

    label: str
    name: str
    outcome: str
    word: str
    bits: str | None
    drift: str | None
    interval: str | None
    reason: str
    settle: str | None


@dataclass(frozen=True)
class Head:
    """outcome: the worst of the models'. lead: what was compared. tolerance: what was tolerated."""

    outcome: str
    word: str
    title: str
    lead: list[str]
    tolerance: str
    notes: list[str]
    cards: list[Card]


def head(models: Sequence[Shown], sources: Sequence[Source]) -> Head:
    """The head of a page with these models."""
    outcomes = [outcome_of(model.entry) for model in models]
    worst = min(outcomes, key=_ORDER.index, default="none")
    return Head(
        outcome=worst,
        word=_WORDS[worst],
        title=_title(models, outcomes),
        lead=_lead(models, sources),
        tolerance=" ".join(dict.fromkeys(_tolerance(source) for source in sources)),
        notes=list(dict.fromkeys(note for source in sources for note in source.notes)),
        cards=[_card(model) for model in models],
    )


def _title(models: Sequence[Shown], outcomes: Sequence[str]) -> str:
    if not models:
        return "No models were compared"
    if len(models) == 1:
        return _ONE[outcomes[0]].format(models[0].label)
    found = Counter(outcomes)
    parts = [f"{found[o]} {_MANY[o][found[o] > 1]}" for o in _ORDER if found[o]]
    return f"Of {len(models)} quantized models, {joined(parts)}"


def _lead(models: Sequence[Shown], sources: Sequence[Source]) -> list[str]:
    if not models:
        return []
    report = sources[0].report
    floats = joined(list(dict.fromkeys(source.report.baseline.name for source in sources)))
    pairs = max(source.report.n for source in sources)
    reference = report.reference
    what = count(reference.n, "reference image") if reference.n is not None else "reference images"
    names = [f"{m.label} ({bits})" if (bits := _bits(m.entry.precision)) else m.label for m in models]
    versions = "its quantized version" if len(models) == 1 else f"{len(models)} quantized versions of it"
    return [
        f"The float model {floats} and {versions}, {joined(names)}, each drew {count(pairs, 'image')} from "
        "the same noise.",
        f"The drift says how much farther from the {what} ({reference.name}) the quantized model's images "
        "lie than the float model's: 0 is no loss, more is worse. It is a difference of FIDs, in the "
        f"features of {report.extractor.name}.",
    ]


def _tolerance(source: Source) -> str:
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
        if entry.drift is not None
    }
    sure = f", at {joined([percent(level) for level in sorted(levels)])} confidence" if levels else ""
    return f"Tolerated: {joined(limits)}{over}{sure}{least}."


def _card(model: Shown) -> Card:
    entry, verdict = model.entry, model.entry.verdict
    drift, interval = None, None
    if entry.drift is not None:
        found = entry.drift
        drift = numeral(signed(found.raw if found.corrected is None else found.corrected))
        interval = (
            "raw drift, no interval"
            if found.low is None
            else f"{percent(found.confidence)} in {numeral(ends(found.low, found.high))}"
        )
    settle = None
    if verdict is not None and verdict.outcome == "inconclusive":
        more = verdict.samples_to_settle
        settle = (
            "What would settle it: no feasible number of images; another tolerance would."
            if more is None
            else f"Likely to settle it: about {more:,} images (-n {more})."
        )
    return Card(
        label=model.label,
        name=entry.name,
        outcome=outcome_of(entry),
        word=_WORDS[outcome_of(entry)],
        bits=_bits(entry.precision),
        drift=drift,
        interval=interval,
        reason=_reason(model),
        settle=settle,
    )


def _bits(precision: str) -> str | None:
    """In words, that do not break at their hyphens."""
    words = bits_in_words(precision)
    return None if words is None else words.replace("-", "\N{NON-BREAKING HYPHEN}")


def _reason(model: Shown) -> str:
    verdict = model.entry.verdict
    if verdict is not None:
        return verdict.reason
    if not model.entry.finite:
        return "Its samples are not finite, so there is no drift."
    return "Not gated."
