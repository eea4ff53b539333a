"""Sections on the paper's numbers beside a study's, and on where its cells come from."""

from __future__ import annotations

from collections.abc import Sequence

from flatq.report.wording import NONE, count
from flatq.study.layout import Entry, Section, Table, interval, three_digits
from flatq.study.paper import SOURCE, MeanOverSeeds, PaperRow
from flatq.study.summary import StudyReport

__all__ = ["origins_section", "paper_section"]

_ANOTHER_SCALE = (
    f"The paper's numbers ({SOURCE}) are Inception FIDs on CIFAR-10. Ours are of other images, models and "
    "features, so they are on another scale: compare directions and ratios, not values. Ours are means over "
    "seeds with 95 % intervals."
)
_ANY_QUANTIZER = (
    "The talk does not say how it quantized, so each 8-bit quantizer of this study stands beside its number."
)
_HOW_AGAIN = (
    "study.toml beside this page holds every setting. These commands run one cell again and report it alone. "
    "The same digits need the same CPU instruction set and package versions."
)


def paper_section(rows: Sequence[PaperRow]) -> Section | None:
    """The paper's tables; one of which nothing was measured is left out."""
    tables = []
    for kind, title, note in (
        ("LPF", "Mean loss under weight noise (LPF)", ""),
        ("FID", "FID without quantization", ""),
        ("8 bits", "Change of the FID at 8 bits", _ANY_QUANTIZER),
    ):
        found = [row for row in rows if row.table == kind]
        if any(row.ours is not None for row in found):
            head = (
                "model",
                *(["T"] if kind != "LPF" else []),
                *(["our quantizer"] if kind == "8 bits" else []),
            )
            table = Table(
                (*head, "the paper", "here"),
                tuple(_paper_row(row) for row in found),
                title,
                note,
                words=len(head),
            )
            tables.append(table)
    return (
        Section("paper", "The paper's tables beside ours", (_ANOTHER_SCALE,), tuple(tables))
        if tables
        else None
    )


def _paper_row(row: PaperRow) -> tuple[Entry, ...]:
    name = row.model.upper() + ("" if row.weights == "raw" else f"+{row.weights.upper()}")
    words = [name, *(str(word) for word in (row.steps, row.quantizer) if word is not None)]
    paper = {"LPF": f"{row.paper:.3f}", "FID": f"{row.paper:.2f}", "8 bits": f"{row.paper:+.2f}"}[row.table]
    return (*map(Entry, words), Entry(paper), _ours(row.ours, with_sign=row.table == "8 bits"))


def _ours(found: MeanOverSeeds | None, *, with_sign: bool) -> Entry:
    if found is None:
        return Entry("not measured")
    lines = (interval(found.low, found.high, sign=with_sign), count(found.seeds, "seed"))
    return Entry(three_digits(found.mean, sign=with_sign), tuple(filter(None, lines)))


def origins_section(report: StudyReport) -> Section:
    """How to run a cell again, on which machines the cells ran, and what was verified."""
    words, tables = list(report.origin), [_cells(report)]
    if report.parity:
        tables.append(_parity(report))
    else:
        words.append("No cell that is there compared the layers on a runtime with the PyTorch reference.")
    absent = [
        (Entry(cell), Entry(model), Entry(reason))
        for cell, models in report.absent_models.items()
        for model, reason in models.items()
    ]
    if absent:
        tables.append(Table(("cell", "model", "reason"), tuple(absent), "Models that do not exist"))
    first = report.cells[0]
    code = (
        f"git checkout {(first.commit or 'COMMIT').rstrip('+')}\n"
        f"flatq study run study.toml --cells '{first.cell}' -o again\n"
        "flatq study report again"
    )
    return Section("again", "To run a cell again", (_HOW_AGAIN, *words), tuple(tables), code)


def _cells(report: StudyReport) -> Table:
    rows = [
        (
            Entry(o.cell),
            Entry("unknown" if o.commit is None else o.commit[:12] + "+" * o.commit.endswith("+")),
            Entry(o.cpu),
            Entry(o.instructions),
            Entry(NONE if o.train_seconds is None else _minutes(o.train_seconds)),
            Entry(_minutes(o.seconds)),
        )
        for o in report.cells
    ]
    head = ("cell", "commit", "CPU", "instruction set", "training", "all")
    return Table(head, tuple(rows), "Machine and time of each cell", words=4, folded=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _parity(report: StudyReport) -> Table:
    rows = [
        (
            Entry(p.cell),
            Entry(f"{p.model} {p.weights} {p.quantizer} on {p.runtime}, T = {p.steps}"),
            Entry(p.problem or "none"),
            Entry(str(p.layers)),
            Entry(f"{100 * p.least_equal:.4g} %"),
        )
        for p in report.parity
    ]
    head = ("cell", "deployment", "problem", "layers", "least equal elements")
    return Table(
        head, tuple(rows), "Layers on the runtime against the PyTorch reference", words=3, folded=True
    )
