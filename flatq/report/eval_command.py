"""The command that makes a report again, from what the report holds: names of files, never their paths."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatq.report.model import Report

__all__ = ["eval_command"]

_DEFAULTS = {"eta": 0.0, "label": None, "guidance": 1.0}


def eval_command(report: Report) -> str:
    """`flatq eval ...` for a shell, to be run where the report's files lie."""
    words = ["flatq", "eval", *(entry.name for entry in report.models), "--fid"]
    for name, value in _options(report).items():
        flag = "-n" if name == "n" else "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _options(report: Report) -> dict[str, Any]:
    """Option -> value; None where it is left out, True for a flag."""
    base, plan = report.baseline, report.plan
    found = {
        "baseline": base.name.removesuffix(f" ({base.weights})"),
        "weights": base.weights,
        "n": report.n,
        "first": report.first_index or None,
        **{key: plan.get(key) for key in ("steps", "sampler", "seed")},
        **{key: plan[key] for key, usual in _DEFAULTS.items() if plan.get(key, usual) != usual},
        "rounding": None if report.rounding == "round" else report.rounding,
        "ladder": any(entry.ladder is not None for entry in report.models) or None,
    }
    if report.options is None:
        found["data" if report.reference.kind == "images" else "reference"] = report.reference.name
    else:
        runtimes = [base.runtime, *(entry.runtime for entry in report.models)]
        threads = {runtime.get("threads") for runtime in runtimes}
        found |= report.options.model_dump()
        found["threads"] = threads.pop() if len(threads) == 1 else None
    if report.gate is not None:
        found |= asdict(report.gate)
    looks = next((entry.looks for entry in report.models if entry.looks is not None), None)
    if looks is not None:
        found |= {"n": looks.planned[0], "max_samples": looks.planned[-1], "looks": len(looks.planned)}
        found["until_decided"] = True
    return found
