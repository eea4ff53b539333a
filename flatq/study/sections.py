"""What the report of a study says, in order: sections of paragraphs and tables, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flatq.report.wording import NONE, ends, number, signed
from flatq.study.config import ClaimConfig, StudyConfig
from flatq.study.findings import Choices, ClaimFinding, Findings
from flatq.study.judging import FEWEST_SEEDS, JudgedClaim, JudgedCondition
from flatq.study.paper import SOURCE, MeanOverSeeds, PaperRow
from flatq.study.summary import StudyReport

__all__ = ["Entry", "Section", "Table", "about", "render_markdown", "sections", "verdict_lines"]

_TONES = {"confirmed": "pass", "refuted": "fail", "undecided": "inconclusive", "too few seeds": "none"}


@dataclass(frozen=True)
class Entry:
    """A cell of a table. lines: smaller, below the text. tone: CSS class of a verdict, or nothing."""

    text: str
    lines: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """numeric: columns after the first `words` are right-aligned numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""
    note: str = ""
    words: int = 99


@dataclass(frozen=True)
class Section:
    """code: shown verbatim, after the paragraphs."""

    id: str
    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    code: str = ""


def about(study: StudyConfig, report: StudyReport) -> tuple[str, ...]:
    """The paragraphs at the head of the page."""
    seeds = sorted({len(run.seeds) for run in study.runs.values()})
    lead = (
        f"{_count(len(study.runs), 'training run')} ({', '.join(study.runs)}) at "
        f"{' or '.join(map(str, seeds))} training seeds each"
    )
    if study.quantizers:
        lead += (
            f"; the models were quantized ({', '.join(study.quantizers)}) and sampled from the same noise as "
            f"the float models. FIDs are of {study.n:,} images, corrected for bias; drift is the change of the "
            "FID by quantization"
        )
    lead += f". {len(report.cells)} of {report.expected} cells (a run at a seed) are there."
    return (lead, *study.about)


def sections(study: StudyConfig, report: StudyReport) -> list[Section]:
    """All sections in order; those without content are left out."""
    found = report.findings
    parts = [
        _verdicts(study, found),
        _controls(study, found),
        _questions(found),
        _agreement(found),
        _pilot(study, found),
        _paper(report.paper),
        _origins(study, report),
    ]
    return [part for part in parts if part is not None]


def _verdicts(study: StudyConfig, found: Findings) -> Section | None:
    if not found.claims:
        return None
    families = list(dict.fromkeys(claim.family for claim in found.claims))
    tables = []
    for family in families:
        claims = [claim for claim in found.claims if claim.family == family]
        configs = {claim.id: claim for claim in study.claims}
        tables.append(
            Table(
                ("claim", "weak form (direction)", "the paper's form (size)"),
                tuple(_claim_row(claim, configs[claim.id]) for claim in claims),
                title=f"Family: {family}" if len(families) > 1 else "",
            )
        )
    return Section(
        "verdicts",
        "The verdicts",
        (
            "Each claim is a contrast between models, paired by training seed, against a threshold: a two-sided t "
            "test over seeds at 5 %, with Holm's correction over all conditions of a family and form. Intervals "
            "are 95 % and not corrected. Confirmed: on the claim's side of the threshold. Refuted: on the other "
            f"side. Undecided: neither. Below {FEWEST_SEEDS} seeds there are estimates without a verdict. With "
            "several conditions, all have to be confirmed, and one refuted condition refutes the claim.",
            "The number of seeds that would decide takes the mean and spread seen here for the true ones, at 80 % "
            "power and without the correction: it is a rough guide.",
        ),
        tuple(tables),
    )


def _claim_row(claim: ClaimFinding, config: ClaimConfig) -> tuple[Entry, ...]:
    lines: list[str] = []
    if claim.premise is not None and config.premise is not None:
        lines.append(
            f"{'Premise absent' if claim.premise_absent else 'Premise'}: {_condition(claim.premise)}"
        )
    if claim.missing is not None:
        lines.append(f"Not measured: {claim.missing}")
    return (
        Entry(f"{claim.id} {claim.title}", tuple(lines)),
        _verdict(claim.weak, claim.premise_absent, bool(config.weak)),
        _verdict(claim.paper, claim.premise_absent, bool(config.paper)),
    )


def _verdict(judged: JudgedClaim | None, premise_absent: bool, claimed: bool) -> Entry:
    if judged is None:
        return Entry("not measured" if claimed else NONE, tone="none")
    lines = []
    for part in judged.conditions:
        line = _condition(part)
        if part.verdict == "undecided":
            needed = part.seeds_needed
            line += (
                "; more than 1,000 seeds would be needed"
                if needed is None
                else f"; about {needed} seeds would decide"
            )
        if len(judged.conditions) > 1:
            line = f"{part.verdict}: {line}"
        lines.append(line)
    return Entry(
        _word(judged) + (", premise absent" if premise_absent else ""), tuple(lines), _TONES[judged.verdict]
    )


def _word(judged: JudgedClaim) -> str:
    return "no verdict: too few seeds" if judged.verdict == "too few seeds" else judged.verdict


def _condition(part: JudgedCondition) -> str:
    return f"{part.name} = {_interval(part)}; claimed {part.side} {number(part.threshold)}"


def _interval(found: JudgedCondition | MeanOverSeeds) -> str:
    """For instance `-0.2 [-0.3, -0.1], 8 seeds`."""
    interval = f" {ends(found.low, found.high)}" if found.low is not None else ""
    return f"{signed(found.mean)}{interval}, {_count(found.seeds, 'seed')}"


def _controls(study: StudyConfig, found: Findings) -> Section | None:
    names = [name for name in study.controls if any(b.name == name for c in found.claims for b in c.beside)]
    if not names:
        return None
    rows = []
    for claim, config in zip(found.claims, study.claims, strict=True):
        if not claim.beside:
            continue
        forms = {b.name: (b.weak, b.paper) for b in claim.beside}
        seen: set[str] = set()
        for place, (form, conditions) in enumerate((("weak", config.weak), ("paper", config.paper))):
            for i, condition in enumerate(conditions):
                if str(condition.value.root) in seen:
                    continue
                seen.add(str(condition.value.root))
                own = (claim.weak, claim.paper)[place]
                entries = [_part(own, i)] + [
                    _part(forms[name][place], i) if name in forms else Entry(NONE) for name in names
                ]
                side = "below" if condition.below is not None else "above"
                limit = condition.below if condition.below is not None else condition.above
                assert limit is not None
                rows.append(
                    (
                        Entry(
                            claim.id,
                            (f"{condition.name}; claimed {side} {number(limit.number)} ({form} form)",),
                        ),
                        *entries,
                    )
                )
    replaced = []
    for name in names:
        roles = next(c.roles for c in study.claims if set(study.controls[name]) <= set(c.roles))
        swaps = ", ".join(
            f"{new} in the place of {roles[role]}" for role, new in study.controls[name].items()
        )
        replaced.append(f"{name}: {swaps}.")
    return Section(
        "controls",
        "Controls",
        (
            "The same contrasts with another model in the place of one. They are outside Holm's correction and have "
            "no verdict. If a contrast vanishes under a control, what the control shares with SAM explains it.",
            *replaced,
        ),
        (Table(("claim", "as claimed", *names), tuple(rows)),),
    )


def _part(judged: JudgedClaim | None, place: int) -> Entry:
    return Entry(NONE if judged is None else _interval(judged.conditions[place]))


def _questions(found: Findings) -> Section | None:
    rows = [
        (
            Entry(question.id, (question.title,)),
            Entry(name),
            Entry("not measured" if value is None else _interval(value)),
        )
        for question in found.questions
        for name, value in question.values.items()
    ]
    if not rows:
        return None
    return Section(
        "questions",
        "Questions",
        ("Asked by this study, not by the paper: means over seeds with 95 % intervals, without verdicts.",),
        (Table(("question", "contrast", "mean [95 % interval]"), tuple(rows)),),
    )


def _agreement(found: Findings) -> Section | None:
    if not found.agreement:
        return None
    keys = list(dict.fromkeys((a.weights, a.quantizer) for a in found.agreement))
    values = {(a.measure, a.weights, a.quantizer): a for a in found.agreement}
    rows = []
    for measure in dict.fromkeys(a.measure for a in found.agreement):
        row = [Entry(measure)]
        for key in keys:
            a = values.get((measure, *key))
            row.append(
                Entry(NONE)
                if a is None
                else Entry(f"{a.correlation:+.2f}", (f"[{a.low:+.2f}, {a.high:+.2f}]",))
            )
        rows.append(tuple(row))
    first = found.agreement[0]
    return Section(
        "agreement",
        "Does flatness predict the damage?",
        (
            "Spearman's correlation, over models and seeds, of each measure with the increase of the loss by the "
            "quantizer's own weight error; weight range and kurtosis are rival predictors. Intervals (95 %) resample "
            f"the seeds. {first.models} models of {first.seeds} seeds. Seeds of one model lie close together, so most "
            "of what is ranked here are the training methods, and there are few of these.",
        ),
        (Table(("measure", *(f"{q}, {w}" for w, q in keys)), tuple(rows), words=1),),
    )


def _pilot(study: StudyConfig, found: Findings) -> Section | None:
    pilot = study.pilot
    if pilot is None:
        return None
    rules = (
        f"Radius: the smallest whose LPF increase is at most {number(pilot.flatter)} of that of {pilot.plain}, else the "
        f"largest. At 8 bits: the quantizer under which {pilot.plain} with EMA has the relative drift nearest "
        f"{number(pilot.paper_at_8)}. At 4 bits: the mildest that multiplies the FID of {pilot.plain} by at least "
        f"{number(pilot.collapse)}, else the harshest. All were fixed before any result."
    )
    choices = found.choices
    if choices is None:
        return Section("pilot", "The pilot's choices", (rules, "No choice yet: measurements are missing."))
    return Section("pilot", "The pilot's choices", (rules, *choice_lines(choices)), _choice_tables(choices))


def choice_lines(choices: Choices) -> tuple[str, ...]:
    """What was chosen, one sentence each."""
    return (
        f"SAM's radius: {number(choices.rho)}; its held-out loss: {number(choices.loss)}.",
        f"Naive quantizer at 8 bits: {choices.naive_at_8}.",
        f"Naive quantizer at 4 bits: {choices.naive_at_4}.",
    )


def _choice_tables(choices: Choices) -> tuple[Table, ...]:
    def table(head: tuple[str, str], values: dict[str, float], chosen: str) -> Table:
        rows = tuple(
            (Entry(name + (" (chosen)" if name == chosen else "")), Entry(number(value)))
            for name, value in values.items()
        )
        return Table(head, rows, words=1)

    return (
        table(("radius", "LPF increase over the plain model's"), choices.ratios, f"{choices.rho:g}"),
        table(("8 bits", "drift over FID, EMA"), choices.drift_at_8, choices.naive_at_8),
        table(("4 bits", "FID over float FID, raw"), choices.fid_ratio_at_4, choices.naive_at_4),
    )


def _paper(rows: Sequence[PaperRow]) -> Section | None:
    if not rows:
        return None
    lpf = [r for r in rows if r.table == "LPF"]
    fid = [r for r in rows if r.table == "FID"]
    at_8 = [r for r in rows if r.table == "8 bits"]
    tables = [
        Table(
            ("model", "the paper", "here"),
            tuple((Entry(_model(r)), Entry(f"{r.paper:.3f}"), _ours(r.ours)) for r in lpf),
            "Mean loss under weight noise (LPF)",
            words=1,
        ),
        Table(
            ("model", "T", "the paper", "here"),
            tuple(
                (Entry(_model(r)), Entry(str(r.steps)), Entry(f"{r.paper:.2f}"), _ours(r.ours)) for r in fid
            ),
            "FID without quantization",
            words=1,
        ),
    ]
    if at_8:
        tables.append(
            Table(
                ("model", "T", "the paper", "our quantizer", "here"),
                tuple(
                    (
                        Entry(_model(r)),
                        Entry(str(r.steps)),
                        Entry(f"{r.paper:+.2f}"),
                        Entry(r.quantizer or ""),
                        _ours(r.ours, with_sign=True),
                    )
                    for r in at_8
                ),
                "Change of the FID at 8 bits",
                "The talk does not say how it quantized, so every 8-bit quantizer of this study is beside its number.",
                words=1,
            )
        )
    return Section(
        "paper",
        "The paper's tables beside ours",
        (
            f"The paper's numbers ({SOURCE}) are Inception FIDs on CIFAR-10. Ours are of other images and another "
            "feature network, so they are on another scale: compare directions and ratios, not values. Ours are means "
            "over seeds with 95 % intervals.",
        ),
        tuple(tables),
    )


def _model(row: PaperRow) -> str:
    return row.model.upper() + ("" if row.weights == "raw" else f"+{row.weights.upper()}")


def _ours(found: MeanOverSeeds | None, with_sign: bool = False) -> Entry:
    if found is None:
        return Entry("not measured")
    show = signed if with_sign else number
    interval = "" if found.low is None else f"[{show(found.low)}, {show(found.high)}], "
    return Entry(show(found.mean), (f"{interval}{_count(found.seeds, 'seed')}",))


def _origins(study: StudyConfig, report: StudyReport) -> Section:
    tables = [
        Table(
            ("cell", "commit", "CPU", "instructions", "training", "all"),
            tuple(
                (
                    Entry(o.cell),
                    Entry((o.commit or "unknown")[:12] + ("+" if (o.commit or "").endswith("+") else "")),
                    Entry(o.cpu),
                    Entry(o.instructions),
                    Entry(NONE if o.train_seconds is None else _minutes(o.train_seconds)),
                    Entry(_minutes(o.seconds)),
                )
                for o in report.cells
            ),
            "Time and place of each cell",
            words=4,
        )
    ]
    paragraphs = list(report.origin)
    if report.parity:
        tables.append(
            Table(
                ("cell", "deployment", "layers", "least equal elements", "problem"),
                tuple(
                    (
                        Entry(p.cell),
                        Entry(f"{p.model} {p.weights} {p.quantizer} on {p.runtime}, T = {p.steps}"),
                        Entry(str(p.layers)),
                        Entry(f"{100 * p.least_equal:.4g} %"),
                        Entry(p.problem or "none"),
                    )
                    for p in report.parity
                ),
                "Layers on the runtime against the PyTorch reference",
            )
        )
    else:
        paragraphs.append(
            "No cell that is there compared the layers on a runtime with the PyTorch reference."
        )
    gone = [
        (Entry(cell), Entry(model), Entry(why))
        for cell, models in report.absent_models.items()
        for model, why in models.items()
    ]
    if gone:
        tables.append(Table(("cell", "model", "why"), tuple(gone), "Models that do not exist"))
    shown = report.cells[0]
    code = (
        f"git checkout {(shown.commit or 'COMMIT').rstrip('+')}\n"
        f"flatq study run study.toml --cells '{shown.cell}' -o /tmp/again\n"
        "flatq study report /tmp/again"
    )
    return Section(
        "again",
        "To run a cell again",
        (
            "study.toml beside this page holds every setting. The commands run one cell and report it; the same CPU "
            "instruction set and package versions are needed for the same digits.",
            *paragraphs,
        ),
        tuple(tables),
        code,
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _count(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def verdict_lines(report: StudyReport) -> list[str]:
    """One line for each claim, or the pilot's choices."""
    found = report.findings
    lines = [f"{len(report.cells)} of {report.expected} cells"]
    for claim in found.claims:
        forms = [
            f"{what}: {_word(judged)}"
            for what, judged in (("weak form", claim.weak), ("paper's form", claim.paper))
            if judged is not None
        ]
        absent = ["premise absent"] if claim.premise_absent else []
        missing = [claim.missing] if claim.missing is not None else []
        lines.append(f"{claim.id}: {'; '.join([*forms, *absent, *missing])}")
    if found.choices is not None:
        lines += choice_lines(found.choices)
    return lines


def render_markdown(study: StudyConfig, report: StudyReport) -> str:
    """The report as Markdown."""
    blocks = [f"# {study.title}", *about(study, report)]
    if report.cautions:
        blocks.append("\n".join(f"- **Caution**: {line}" for line in report.cautions))
    for section in sections(study, report):
        blocks += [f"## {section.heading}", *section.paragraphs]
        if section.code:
            blocks.append(f"```\n{section.code}\n```")
        for table in section.tables:
            blocks += [
                *([f"### {table.title}"] if table.title else []),
                *([table.note] if table.note else []),
            ]
            blocks.append(_markdown_table(table))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [row("<br>".join((entry.text, *entry.lines)) for entry in entries) for entries in table.rows]
    return "\n".join([row(table.head), row("---" for _ in table.head), *rows])
