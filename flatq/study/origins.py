"""Where a study's cells come from, and what a reader has to know before trusting them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flatq.report.model import Record
from flatq.study.config import StudyConfig
from flatq.study.results import CellResult, ImagesResult

__all__ = ["CellOrigin", "LayerParity", "cautions", "common_origin", "layer_parity", "origin"]

_FEW_PER_RANK = 10


class CellOrigin(Record):
    """commit: "+" behind it where files differed. versions: package -> version. seconds: total wall time."""

    cell: str
    commit: str | None
    cpu: str
    instructions: str
    versions: dict[str, str]
    seconds: float
    train_seconds: float | None


class LayerParity(Record):
    """Layers of one deployment against the PyTorch reference; problem: what verification refused."""

    cell: str
    model: str
    weights: str
    runtime: str
    steps: int
    quantizer: str
    layers: int
    least_equal: float
    problem: str | None


def origin(cell: CellResult) -> CellOrigin:
    """The origin of one cell."""
    versions = {"python": cell.environment.get("python", "?"), **cell.environment.get("versions", {})}
    return CellOrigin(
        cell=cell.name,
        commit=cell.commit,
        cpu=str(cell.environment.get("cpu", "unknown CPU")),
        instructions=cell.instructions,
        versions=versions,
        seconds=sum(cell.seconds.values()),
        train_seconds=cell.seconds.get("train"),
    )


def common_origin(origins: Sequence[CellOrigin]) -> list[str]:
    """Sentences: which commit, CPU, instruction set and versions the cells share, or which has which."""
    lines = [
        _shared("commit", [(o.cell, o.commit or "unknown") for o in origins]),
        _shared("CPU", [(o.cell, o.cpu) for o in origins]),
        _shared("instruction set", [(o.cell, o.instructions) for o in origins]),
    ]
    names = dict.fromkeys(name for o in origins for name in o.versions)
    differing = [name for name in names if len({o.versions.get(name) for o in origins}) > 1]
    if not differing:
        lines.append("All cells were measured with the same versions of Python and the packages.")
    lines += [
        _shared(f"{name} version", [(o.cell, o.versions.get(name, "?")) for o in origins])
        for name in differing
    ]
    if any((o.commit or "").endswith("+") for o in origins):
        lines.append("A commit with + behind it had changes that were not committed.")
    return lines


def _shared(what: str, found: Sequence[tuple[str, str]]) -> str:
    groups: dict[str, list[str]] = {}
    for cell, value in found:
        groups.setdefault(value, []).append(cell)
    if len(groups) == 1:
        return f"All cells have the same {what}: {next(iter(groups))}."
    parts = "; ".join(f"{value}: {', '.join(cells)}" for value, cells in groups.items())
    return f"Cells differ in their {what}. {parts}."


def cautions(study: StudyConfig, cells: Sequence[CellResult], missing: Sequence[str]) -> list[str]:
    """Sentences on what weakens the result; empty where nothing does.

    Args:
        missing: names of the cells of the study that are not there.
    """
    found = []
    if missing:
        found.append(
            f"{len(cells)} of {len(cells) + len(missing)} cells are there, so this is provisional: intervals "
            f"and verdicts take no account of looking before the end. Missing: {', '.join(missing)}."
        )
    images = [(cell, result) for cell in cells for result in cell.images]
    few = [f"{_label(c, r)} ({r.n_over_rank:.1f})" for c, r in images if r.n_over_rank < _FEW_PER_RANK]
    found += _sentence(f"These FIDs rest on fewer than {_FEW_PER_RANK} samples per feature rank", few)
    lost = [f"{_label(c, r)} {q}" for c, r in images for q, x in r.quantized.items() if not x.finite]
    found += _sentence(
        "These quantized models sampled images that are not finite, which count as mid-grey", lost
    )
    bare = [
        f"{_label(c, r)} {q} ({x.drift.reason})"
        for c, r in images
        for q, x in r.quantized.items()
        if x.drift.corrected is None
    ]
    found += _sentence("These drifts could not be corrected for bias and are left out", bare)
    gone = [f"{name} of {cell.name} ({why})" for cell in cells for name, why in cell.missing.items()]
    found += _sentence("These models do not exist, and their seeds drop out of contrasts with them", gone)
    if len({result.features for _, result in images}) > 1:
        found.append("Cells used different feature networks: their FIDs do not compare.")
    return found


def _sentence(what: str, which: Sequence[str]) -> list[str]:
    return [f"{what}: {'; '.join(which)}."] if which else []


def layer_parity(cells: Iterable[CellResult]) -> Iterator[LayerParity]:
    """Every deployment whose layers were compared."""
    for cell in cells:
        for result in cell.images:
            for name, quantized in result.quantized.items():
                if quantized.parity is not None:
                    yield LayerParity(
                        cell=cell.name,
                        model=result.model,
                        weights=result.weights,
                        runtime=result.runtime,
                        steps=result.steps,
                        quantizer=name,
                        **dict(quantized.parity),
                    )


def _label(cell: CellResult, result: ImagesResult) -> str:
    return f"{cell.name} {result.model} {result.weights} T = {result.steps} {result.runtime}"
