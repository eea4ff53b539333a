"""The command that makes a report again, from what the report holds: names of files, never their paths."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatq.report.model import Report

__all__ = ["eval_command", "what_is_not_known"]

_ALWAYS = ("steps", "sampler", "seed")
_DEFAULTS = {"eta": 0.0, "label": None, "guidance": 1.0}


def eval_command(report: Report) -> str:
    """`flatq eval ...` for a shell, to be run where the report's files lie."""
    words = ["flatq", "eval", *(entry.name for entry in report.models), "--fid"]
    for flag, value in _flags(report):
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def what_is_not_known(report: Report) -> str | None:
    """A sentence where the report is too old for the whole command."""
    if report.options is not None:
        return None
    return (
        "The report is older than the record of its options: batch size, threads, runtimes and the feature "
        "network are as `flatq eval` takes them by default, which need not be what was used."
    )


def _flags(report: Report) -> list[tuple[str, Any]]:
    base, plan, options = report.baseline, report.plan, report.options
    gate, looks = report.gate, next((e.looks for e in report.models if e.looks is not None), None)
    images = report.reference.kind == "images"
    flags: list[tuple[str, Any]] = [
        ("--baseline", base.name.removesuffix(f" ({base.weights})")),
        ("--weights", base.weights),
    ]
    if options is None:
        flags.append(("--data" if images else "--reference", report.reference.name))
    else:
        flags += [
            ("--data", options.data),
            ("--reference", options.reference),
            ("--features", options.features),
            ("--resize", options.resize),
        ]
    flags += [
        ("-n", report.n if looks is None else looks.planned[0]),
        ("--first", report.first_index or None),
        *((f"--{key}", plan.get(key)) for key in _ALWAYS),
        *((f"--{key}", plan[key]) for key in _DEFAULTS if plan.get(key) != _DEFAULTS[key] and key in plan),
        ("--rounding", None if report.rounding == "round" else report.rounding),
    ]
    if options is not None:
        flags += [
            ("--batch-size", options.batch_size),
            ("--runtime", options.runtime),
            ("--device", options.device),
            ("--precision", options.precision),
            ("--hint", options.hint),
            ("--baseline-runtime", options.baseline_runtime),
            ("--threads", _threads(report)),
            ("--confidence", options.confidence),
        ]
    if gate is not None:
        flags += [
            ("--max-drift", gate.max_drift),
            ("--max-drift-rel", gate.max_drift_rel),
            ("--min-samples", gate.min_samples),
        ]
    if looks is not None:
        flags += [
            ("--until-decided", True),
            ("--max-samples", looks.planned[-1]),
            ("--looks", len(looks.planned)),
        ]
    flags.append(("--ladder", any(entry.ladder is not None for entry in report.models) or None))
    return flags


def _threads(report: Report) -> int | None:
    """Of all runtimes; None where they did not have the same number."""
    runtimes = [report.baseline.runtime, *(entry.runtime for entry in report.models)]
    every = {runtime.get("threads") for runtime in runtimes}
    return every.pop() if len(every) == 1 else None
