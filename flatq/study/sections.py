"""The sections of a study's report, in order: verdicts, controls, questions, choices, the paper, origins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from flatq.report.wording import NONE, count, number
from flatq.study.claims import ClaimConfig, ConditionConfig
from flatq.study.config import StudyConfig
from flatq.study.evidence import origins_section, paper_section
from flatq.study.findings import Choices, ClaimFinding, Findings
from flatq.study.judging import FEWEST_SEEDS, JudgedClaim, JudgedCondition
from flatq.study.layout import Entry, Section, Table, estimate, interval, row, three_digits
from flatq.study.summary import StudyReport

__all__ = ["lead", "sections", "verdict_lines"]

_FORMS = {"weak": "weak form", "paper": "paper's form"}
_TONES = {"confirmed": "pass", "refuted": "fail", "undecided": "inconclusive", "too few seeds": "none"}

_HOW_JUDGED = (
    "Each claim is a contrast between models, paired by training seed, against a threshold: a two-sided t "
    "test over seeds at 5 %, with Holm's correction over all conditions of a family and form. Intervals "
    "are 95 % and not corrected. Confirmed: on the claim's side of the threshold. Refuted: on the other "
    f"side. Undecided: neither. Below {FEWEST_SEEDS} seeds there are estimates without a verdict. With "
    "several conditions all have to be confirmed, and one that is refuted refutes the claim.",
    "The number of seeds that would decide takes the mean and the spread seen here for the true ones, at "
    "80 % power and without the correction, so it is a rough guide.",
)
_HOW_CONTROLLED = (
    "The same contrasts with another model in the place of one, outside Holm's correction and without a "
    "verdict. Where a contrast vanishes with a control in the place of the plain model, what the control "
    "shares with the flat one can explain it. A rival in the place of the flat model shows whether something "
    "else does as well."
)
_HOW_RANKED = (
    "Spearman's correlation, over models and seeds, of each measure with the increase of the loss by the "
    "quantizer's own weight error; weight range and kurtosis are rival predictors. Intervals are 95 % and "
    "resample the seeds. Seeds of one model lie close together, so that mostly training methods are ranked, "
    "and there are few of them."
)


def lead(study: StudyConfig, report: StudyReport) -> tuple[str, ...]:
    """The paragraphs at the head: the verdicts in one sentence, what was done, the study's own words."""
    runs = ", ".join(f"{name} ({count(len(run.seeds), 'seed')})" for name, run in study.runs.items())
    text = f"{count(len(study.runs), 'training run')}: {runs}."
    if study.images:
        text += (
            f" Their models were quantized in {count(len(study.quantizers), 'way')} and sampled from the "
            f"same noise as the float models. FIDs are of {study.n:,} images and corrected for bias; drift "
            "is the change of the FID by quantization."
        )
    text += f" {len(report.cells)} of {count(report.expected, 'cell')} (a run at a seed) are there."
    return (*_summary(report.findings), text, *study.about)


def _summary(found: Findings) -> tuple[str, ...]:
    """Counts of the verdicts."""
    if not found.claims:
        return ()
    parts = []
    for form, name in _FORMS.items():
        judged = [getattr(claim, form) for claim in found.claims]
        words = Counter(_word(one) for one in judged if one is not None)
        parts.append(f"{name}: {', '.join(f'{n} {word}' for word, n in words.items()) or 'no verdict'}")
    absent = sum(claim.premise_absent for claim in found.claims)
    premise = f" The premise of {count(absent, 'claim')} is absent here." if absent else ""
    return (f"{count(len(found.claims), 'claim')}. {'; '.join(parts).capitalize()}.{premise}",)


def sections(study: StudyConfig, report: StudyReport) -> list[Section]:
    """All sections in order; those without content are left out. The last one is how to run a cell again."""
    found = report.findings
    parts = [
        _verdicts(study, found),
        _controls(study, found),
        _questions(found),
        _agreement(found),
        _pilot(study, found),
        paper_section(report.paper),
        origins_section(report),
    ]
    return [part for part in parts if part is not None]


def verdict_lines(report: StudyReport) -> list[str]:
    """One line for each claim, or the pilot's choices."""
    found = report.findings
    lines = [f"{len(report.cells)} of {count(report.expected, 'cell')}"]
    for claim in found.claims:
        judged = {name: getattr(claim, form) for form, name in _FORMS.items()}
        words = [f"{name}: {_word(one)}" for name, one in judged.items() if one is not None]
        words += ["premise absent"] if claim.premise_absent else []
        words += [claim.missing] if claim.missing is not None else []
        lines.append(f"{claim.id}: {'; '.join(words)}")
    return lines if found.choices is None else [*lines, *_choice_lines(found.choices)]


def _verdicts(study: StudyConfig, found: Findings) -> Section | None:
    if not found.claims:
        return None
    configs = {claim.id: claim for claim in study.claims}
    families = list(dict.fromkeys(claim.family for claim in found.claims))
    tables = [
        Table(
            ("claim", "weak form (direction)", "the paper's form (size)"),
            tuple(_claim(claim, configs[claim.id]) for claim in found.claims if claim.family == family),
            f"Family: {family}" if len(families) > 1 else "",
        )
        for family in families
    ]
    return Section("verdicts", "The verdicts", _HOW_JUDGED, tuple(tables), tables_first=True)


def _claim(claim: ClaimFinding, config: ClaimConfig) -> tuple[Entry, ...]:
    lines = []
    if claim.premise is not None:
        lines.append(
            ("Premise absent. " if claim.premise_absent else "Premise. ") + _condition(claim.premise)
        )
    if claim.missing is not None:
        lines.append(f"Not measured: {claim.missing}.")
    return row(
        Entry(f"{claim.id}: {claim.title}", tuple(lines)),
        _verdict(claim.weak, claim.premise_absent, config.weak),
        _verdict(claim.paper, claim.premise_absent, config.paper),
    )


def _verdict(judged: JudgedClaim | None, absent: bool, conditions: tuple[ConditionConfig, ...]) -> Entry:
    if judged is None:
        return Entry("not measured" if conditions else NONE, tone="none")
    lines = []
    for part in judged.conditions:
        line = _condition(part)
        if part.verdict == "undecided":
            needed = "more than 1,000" if part.seeds_needed is None else f"about {part.seeds_needed}"
            line += f" {needed.capitalize()} seeds would decide."
        lines.append(line if len(judged.conditions) == 1 else f"{_word(part).capitalize()}. {line}")
    word = _word(judged) + (", premise absent" if absent else "")
    return Entry(word, tuple(lines), _TONES[judged.verdict])


def _word(judged: JudgedClaim | JudgedCondition) -> str:
    return "no verdict: too few seeds" if judged.verdict == "too few seeds" else judged.verdict


def _condition(part: JudgedCondition) -> str:
    return f"{part.name}: {_interval(part)}; claimed {part.side} {number(part.threshold)}."


def _interval(found: JudgedCondition) -> str:
    """For instance `-0.2 [-0.3, -0.1], 8 seeds`."""
    words = f"{three_digits(found.mean)} {interval(found.low, found.high)}"
    return f"{words.strip()}, {count(found.seeds, 'seed')}"


def _controls(study: StudyConfig, found: Findings) -> Section | None:
    names = [name for name in study.controls if any(b.name == name for c in found.claims for b in c.beside)]
    if not names:
        return None
    replaced = []
    for name in names:
        roles = next(claim.roles for claim in study.claims if set(study.controls[name]) <= set(claim.roles))
        swaps = [f"{new} in the place of {roles[role]}" for role, new in study.controls[name].items()]
        replaced.append(f"{name}: {', '.join(swaps)}.")
    tables = []
    for form, title in (("weak", ""), ("paper", "Further contrasts, of the paper's form")):
        rows = [
            line
            for claim, config in zip(found.claims, study.claims, strict=True)
            for line in _controlled(claim, config, form, {name: study.controls[name] for name in names})
        ]
        if rows:
            table = Table(("claim", "as claimed", *names), tuple(rows), title, folded=form == "paper")
            tables.append(table)
    return Section("controls", "Controls", (_HOW_CONTROLLED, " ".join(replaced)), tuple(tables))


def _controlled(
    claim: ClaimFinding, config: ClaimConfig, form: str, controls: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Entry, ...]]:
    """A row for each contrast of a form with a control; those that the weak form has too come there."""
    beside = {b.name: getattr(b, form) for b in claim.beside}
    known = {condition.value.root for condition in config.weak} if form == "paper" else set()
    for place, condition in enumerate(getattr(config, form)):
        if condition.value.root in known:
            continue
        known.add(condition.value.root)
        models = {quantity.model for quantity in condition.value.calls}
        judged = [beside.get(name) if models & set(roles) else None for name, roles in controls.items()]
        if any(judged):
            entries = []
            for one in (getattr(claim, form), *judged):
                part = None if one is None else one.conditions[place]
                entries.append(NONE if part is None else estimate(part.mean, part.low, part.high, part.seeds))
            yield row(Entry(claim.id, (condition.name,)), *entries)


def _questions(found: Findings) -> Section | None:
    rows = [
        row(
            "" if i else Entry(question.id, (question.title,)),
            name,
            value if isinstance(value, str) else _interval(value),
        )
        for question in found.questions
        for i, (name, value) in enumerate(question.values.items())
    ]
    if not rows:
        return None
    words = "Asked by this study, not by the paper: means over seeds with 95 % intervals, without verdicts."
    table = Table(("question", "contrast", "mean [95 % interval]"), tuple(rows))
    return Section("questions", "Questions", (words,), (table,))


def _agreement(found: Findings) -> Section | None:
    if not found.agreement:
        return None
    by_key = {(a.measure, a.weights, a.quantizer): a for a in found.agreement}
    columns = list(dict.fromkeys((a.weights, a.quantizer) for a in found.agreement))
    rows = []
    for measure in dict.fromkeys(a.measure for a in found.agreement):
        of = [by_key.get((measure, *column)) for column in columns]
        cells = [
            NONE if a is None else Entry(f"{a.correlation:+.2f}", (f"[{a.low:+.2f}, {a.high:+.2f}]",))
            for a in of
        ]
        rows.append(row(measure, *cells))
    sizes = {(a.models, a.seeds) for a in found.agreement}
    size = " or ".join(f"{models} points from {seeds} seeds" for models, seeds in sorted(sizes))
    head = ("measure", *(f"{quantizer}, {weights}" for weights, quantizer in columns))
    table = Table(head, tuple(rows), words=1)
    return Section(
        "agreement", "Does flatness predict the damage?", (_HOW_RANKED, f"In each column: {size}."), (table,)
    )


def _pilot(study: StudyConfig, found: Findings) -> Section | None:
    pilot = study.pilot
    if pilot is None:
        return None
    rules = (
        f"Radius: the smallest whose LPF increase is at most {number(pilot.flatter)} of that of "
        f"{pilot.plain}, else the largest. Naive quantizer at 8 bits: the one under which {pilot.plain} "
        f"with EMA has the relative drift nearest {number(pilot.paper_at_8)}. At 4 bits: the mildest that "
        f"multiplies the FID of {pilot.plain} by at least {number(pilot.collapse)}, else the harshest."
    )
    if found.choices is None:
        return Section("pilot", "The pilot's choices", (rules, "No choice yet: measurements are missing."))
    return Section(
        "pilot", "The pilot's choices", (*_choice_lines(found.choices), rules), _choice_tables(found.choices)
    )


def _choice_lines(choices: Choices) -> tuple[str, ...]:
    return (
        f"SAM's radius: {number(choices.rho)}; its held-out loss: {number(choices.loss)}.",
        f"Naive quantizer at 8 bits: {choices.naive_at_8}.",
        f"Naive quantizer at 4 bits: {choices.naive_at_4}.",
    )


def _choice_tables(choices: Choices) -> tuple[Table, ...]:
    def table(head: tuple[str, str], values: dict[str, float], chosen: str) -> Table:
        mark = {chosen: " (chosen)"}
        rows = [row(name + mark.get(name, ""), number(value)) for name, value in values.items()]
        return Table(head, tuple(rows), words=1)

    return (
        table(("radius", "LPF increase over the plain model's"), choices.ratios, f"{choices.rho:g}"),
        table(("8 bits", "drift over FID, EMA"), choices.drift_at_8, choices.naive_at_8),
        table(("4 bits", "FID over float FID, raw"), choices.fid_ratio_at_4, choices.naive_at_4),
    )
