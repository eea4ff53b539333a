"""Sections on the paper's numbers beside a study's, and on where its cells come from."""

from __future__ import annotations

from collections.abc import Sequence

from flatq.report.wording import NONE
from flatq.study.layout import Entry, Section, Table, estimate, row
from flatq.study.paper import SOURCE, PaperRow
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
    for kind, title, note, head in (
        ("LPF", "Mean loss under weight noise (LPF)", "", ("model",)),
        ("FID", "FID without quantization", "", ("model", "T")),
        ("8 bits", "Change of the FID at 8 bits", _ANY_QUANTIZER, ("model", "T", "our quantizer")),
    ):
        found = [one for one in rows if one.table == kind]
        if any(one.ours is not None for one in found):
            numbers = (*head, "the paper", "here")
            tables.append(Table(numbers, tuple(map(_paper_row, found)), title, note, words=len(head)))
    if not tables:
        return None
    return Section("paper", "The paper's tables beside ours", (_ANOTHER_SCALE,), tuple(tables))


def _paper_row(one: PaperRow) -> tuple[Entry, ...]:
    name = one.model.upper() + ("" if one.weights == "raw" else f"+{one.weights.upper()}")
    words = [name, *(str(word) for word in (one.steps, one.quantizer) if word is not None)]
    paper = {"LPF": f"{one.paper:.3f}", "FID": f"{one.paper:.2f}", "8 bits": f"{one.paper:+.2f}"}[one.table]
    ours = Entry("not measured")
    if one.ours is not None:
        ours = estimate(
            one.ours.mean, one.ours.low, one.ours.high, one.ours.seeds, sign=one.table == "8 bits"
        )
    return row(*words, paper, ours)


def origins_section(report: StudyReport) -> Section:
    """How to run a cell again, on which machines the cells ran, and what was verified."""
    words, tables = list(report.origin), [_cells(report)]
    if report.parity:
        tables.append(_parity(report))
    else:
        words.append("No cell that is there compared the layers on a runtime with the PyTorch reference.")
    absent = [
        row(cell, model, reason)
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
        row(
            o.cell,
            "unknown" if o.commit is None else o.commit[:12] + "+" * o.commit.endswith("+"),
            o.cpu,
            o.instructions,
            NONE if o.train_seconds is None else f"{o.train_seconds / 60:.1f} min",
            f"{o.seconds / 60:.1f} min",
        )
        for o in report.cells
    ]
    head = ("cell", "commit", "CPU", "instruction set", "training", "all")
    return Table(head, tuple(rows), "Machine and time of each cell", words=4, folded=True)


def _parity(report: StudyReport) -> Table:
    rows = [
        row(
            p.cell,
            f"{p.model} {p.weights} {p.quantizer} on {p.runtime}, T = {p.steps}",
            p.problem or "none",
            str(p.layers),
            f"{100 * p.least_equal:.4g} %",
        )
        for p in report.parity
    ]
    head = ("cell", "deployment", "problem", "layers", "least equal elements")
    title = "Layers on the runtime against the PyTorch reference"
    return Table(head, tuple(rows), title, words=3, folded=True)
