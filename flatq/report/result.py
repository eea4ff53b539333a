"""What `flatq gate` decided, for machines: the model of its JSON, JUnit XML and a Markdown summary of it.

Renders only; the verdicts come from `flatq.report.regate` or from the evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict

from flatq.assessment import OnInconclusive
from flatq.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK
from flatq.evaluate.difference import DriftDifference
from flatq.evaluate.drift import Drift
from flatq.evaluate.gate import Tolerances, Verdict
from flatq.report.model import Report
from flatq.version import __version__

__all__ = ["GateResult", "GatedModel", "gate_result", "junit", "summary"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class GatedModel(_Part):
    """A model and its verdict. drift: over the float model, at the confidence that was judged at. difference:
    over an earlier report's drift, where that was judged."""

    name: str
    label: str
    verdict: Verdict
    drift: Drift
    difference: DriftDifference | None = None


class GateResult(_Part):
    """outcome: the worst of the models'. exit_code: as the command exits, on_inconclusive applied. against:
    what the drift was judged over. notes: what a reader should know besides."""

    format: Literal["flatq-gate"] = "flatq-gate"
    version: Literal[1] = 1
    created_with: str = __version__
    outcome: Literal["pass", "fail", "inconclusive"]
    exit_code: int
    on_inconclusive: OnInconclusive
    tolerances: Tolerances
    against: Literal["float model", "earlier report"]
    extractor: str
    models: list[GatedModel]
    notes: list[str] = []


def gate_result(
    report: Report,
    verdicts: Sequence[Verdict],
    tolerances: Tolerances,
    *,
    on_inconclusive: OnInconclusive,
    differences: Sequence[DriftDifference] | None = None,
    notes: Sequence[str] = (),
) -> GateResult:
    """The result of the verdicts on a report's models, in their order.

    One model that failed fails all; without one, a single inconclusive model makes the outcome inconclusive.
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    outcome: Literal["pass", "fail", "inconclusive"] = "pass"
    if outcomes & {"fail", "inconclusive"}:
        outcome = "fail" if "fail" in outcomes else "inconclusive"
    inconclusive = {"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "error": EXIT_INCONCLUSIVE}[on_inconclusive]
    compared = [None] * len(verdicts) if differences is None else differences
    return GateResult(
        outcome=outcome,
        exit_code={"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "inconclusive": inconclusive}[outcome],
        on_inconclusive=on_inconclusive,
        tolerances=tolerances,
        against="float model" if differences is None else "earlier report",
        extractor=report.extractor.name,
        models=[
            GatedModel(
                name=entry.name, label=entry.label, verdict=verdict, drift=entry.drift, difference=difference
            )
            for entry, verdict, difference in zip(report.models, verdicts, compared, strict=True)
        ],
        notes=list(notes),
    )


def junit(result: GateResult) -> str:
    """JUnit XML: a test case for each model. Inconclusive is an error, a failure or skipped, as
    on_inconclusive says."""
    as_what = {"error": "error", "fail": "failure", "pass": "skipped"}[result.on_inconclusive]
    elements = {"pass": None, "fail": "failure", "inconclusive": as_what}
    found = [elements[model.verdict.outcome] for model in result.models]
    suite = ElementTree.Element(
        "testsuite",
        name="flatq gate",
        tests=str(len(found)),
        failures=str(found.count("failure")),
        errors=str(found.count("error")),
        skipped=str(found.count("skipped")),
    )
    for model, element in zip(result.models, found, strict=True):
        case = ElementTree.SubElement(
            suite, "testcase", classname="flatq.gate", name=_xml(model.name), time="0"
        )
        if element is not None:
            child = ElementTree.SubElement(case, element, message=_xml(model.verdict.reason))
            if element != "skipped":
                child.set("type", model.verdict.outcome)
                child.text = _xml(model.verdict.reason)
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(model.verdict.reason)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def summary(result: GateResult) -> str:
    """A short Markdown page: the outcome, a table of the models, the reasons."""
    limits = [
        text
        for text in (
            None if result.tolerances.max_drift is None else f"drift at most {result.tolerances.max_drift:g}",
            None
            if result.tolerances.max_drift_rel is None
            else f"at most {100 * result.tolerances.max_drift_rel:.3g} % of the float model's FID",
            None
            if result.tolerances.min_samples is None
            else f"at least {result.tolerances.min_samples} images",
        )
        if text is not None
    ]
    over = "" if result.against == "float model" else " over the earlier report"
    lines = [
        f"## flatq gate: {result.outcome.upper()}",
        f"Tolerated{over}: {', '.join(limits)}. Distances in the features of {_cell(result.extractor)}.",
        "\n".join(
            [
                "| model | verdict | drift [low, high] | n | more images |",
                "| --- | --- | ---: | ---: | ---: |",
                *(_row(model) for model in result.models),
            ]
        ),
        "\n".join(f"- **{_cell(model.label)}**: {_cell(model.verdict.reason)}" for model in result.models),
        "\n".join(f"- Note: {_cell(note)}." for note in result.notes),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _row(model: GatedModel) -> str:
    judged = model.difference or model.drift
    interval = "-"
    if judged.corrected is not None:
        interval = f"{judged.corrected:+.4g} [{judged.low:+.4g}, {judged.high:+.4g}]"
    more = model.verdict.samples_to_settle
    cells = (
        _cell(model.label),
        model.verdict.outcome,
        interval,
        str(model.drift.n),
        "-" if more is None else str(more),
    )
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 does not allow."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
