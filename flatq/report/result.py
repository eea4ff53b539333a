"""What `flatq gate` decided, for machines: the model of its JSON, JUnit XML and a Markdown summary of it.

The verdicts come from `flatq.report.gating` or from the evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree

from flatq.assessment import OnInconclusive
from flatq.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK
from flatq.evaluate.difference import DriftDifference
from flatq.evaluate.drift import Drift
from flatq.evaluate.gate import Tolerances, Verdict
from flatq.report.model import Record, Report
from flatq.report.template import open_template
from flatq.report.wording import number, percent
from flatq.version import __version__

__all__ = ["GateResult", "GatedModel", "gate_result", "junit", "summary"]


class GatedModel(Record):
    """A model and its verdict. drift: over the float model, at the confidence that was judged at. difference:
    over an earlier report's drift, where that was judged."""

    name: str
    label: str
    verdict: Verdict
    drift: Drift
    difference: DriftDifference | None = None


class GateResult(Record):
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
    notes: tuple[str, ...] = ()


def gate_result(
    report: Report,
    on_inconclusive: OnInconclusive,
    differences: Sequence[DriftDifference] | None = None,
    notes: Sequence[str] = (),
) -> GateResult:
    """The result of the verdicts in a report, all of whose models have one.

    One model that failed fails all; without one, a single inconclusive model makes the outcome inconclusive.

    Args:
        differences: over an earlier report, where the verdicts judge these.
    """
    assert report.gate is not None
    verdicts = [entry.verdict for entry in report.models if entry.verdict is not None]
    compared = [None] * len(verdicts) if differences is None else differences
    outcomes = {verdict.outcome for verdict in verdicts}
    outcome: Literal["pass", "fail", "inconclusive"] = "pass"
    if outcomes & {"fail", "inconclusive"}:
        outcome = "fail" if "fail" in outcomes else "inconclusive"
    inconclusive = {"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "error": EXIT_INCONCLUSIVE}[on_inconclusive]
    return GateResult(
        outcome=outcome,
        exit_code={"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "inconclusive": inconclusive}[outcome],
        on_inconclusive=on_inconclusive,
        tolerances=report.gate,
        against="float model" if differences is None else "earlier report",
        extractor=report.extractor.name,
        models=[
            GatedModel(
                name=entry.name, label=entry.label, verdict=verdict, drift=entry.drift, difference=difference
            )
            for entry, verdict, difference in zip(report.models, verdicts, compared, strict=True)
        ],
        notes=tuple(notes),
    )


def junit(result: GateResult) -> str:
    """JUnit XML: a test case for each model. Inconclusive is an error, a failure or skipped, by
    on_inconclusive."""
    as_what = {"error": "error", "fail": "failure", "pass": "skipped"}[result.on_inconclusive]
    elements = {"pass": "system-out", "fail": "failure", "inconclusive": as_what}
    suite = ElementTree.Element("testsuite", name="flatq gate", tests=str(len(result.models)))
    for model in result.models:
        verdict, name = model.verdict, _xml(model.name)
        case = ElementTree.SubElement(suite, "testcase", classname="flatq.gate", name=name, time="0")
        child = ElementTree.SubElement(case, elements[verdict.outcome])
        if child.tag != "system-out":
            child.set("message", _xml(verdict.reason))
        if child.tag in ("failure", "error"):
            child.set("type", verdict.outcome)
        if child.tag != "skipped":
            child.text = _xml(verdict.reason)
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"*/{tag}"))))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def summary(result: GateResult) -> str:
    """A short Markdown page: the outcome, a table of the models, the reasons."""
    drift, relative, least = (
        result.tolerances.max_drift,
        result.tolerances.max_drift_rel,
        result.tolerances.min_samples,
    )
    limits = {
        f"drift at most {number(drift)}": drift,
        f"at most {percent(relative or 0)} of the float model's FID": relative,
        f"at least {least} images": least,
    }
    given = [text for text, limit in limits.items() if limit is not None]
    return open_template("gate.md").render(result=result, limits=given)


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 does not allow."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
