"""The rules for each target, and the driver that tries them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from flatq.deployment import Target
from flatq.export.rewrites.attention import ATTENTION
from flatq.export.rewrites.graph import Graph
from flatq.export.rewrites.group_norm import GROUP_NORM
from flatq.export.rewrites.rule import Applied, Rule, attempt

__all__ = ["RULES", "summary", "tune"]

RULES: Mapping[Target, tuple[Rule[Any], ...]] = {"onnxruntime": (ATTENTION, GROUP_NORM)}
"""In the order in which they are tried. Targets that are not named take the model as it is."""


def tune(model: onnx.ModelProto, target: Target) -> list[Applied]:
    """Rewrite a model in place into the forms that the target runs fast.

    Args:
        model: as `flatq.export.onnx.to_onnx` gives it, float or with Q/DQ nodes.

    Returns:
        One entry for every node that a rule is made for, applied or refused, in the order of the graph. A
        model on which everything was refused is unchanged, byte for byte.
    """
    rules = RULES.get(target, ())
    if not rules:
        return []
    graph = Graph(model)
    done = [
        attempt(rule, graph, node)
        for rule in rules
        for node in [node for node in graph.nodes if node.op_type == rule.operator and not node.domain]
    ]
    graph.commit()
    return done


def summary(done: Iterable[Applied]) -> dict[str, Any]:
    """Rule -> how often it was applied, and the reason by node where it was refused; for provenance."""
    result: dict[str, Any] = {}
    for entry in done:
        record = result.setdefault(entry.rule, {"applied": 0, "refused": {}})
        if entry.refused is None:
            record["applied"] += 1
        else:
            record["refused"][entry.node] = entry.refused
    return result
