"""Rewrites of an exported ONNX model into the forms that its target runs fast.

Nothing here changes what is computed beyond the rounding of float32, moves a Q/DQ node or touches a layer's
weights. Where Q/DQ nodes stand is decided by `flatq.quantize.lowering`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from flatq.deployment import Target
from flatq.errors import ModelError
from flatq.export.fused_attention import one_attention
from flatq.export.graph import OnnxGraph, RefusalError
from flatq.export.group_norm import instance_normalization

__all__ = ["Applied", "summary", "tune", "without_group_norm"]

_RULES = {
    "attention": ("Softmax", one_attention),
    "group-norm": ("GroupNormalization", instance_normalization),
}
"""Name of each rule -> the operator that it is tried on, wherever it stands, and the rule; in their order."""


@dataclass(frozen=True)
class Applied:
    """What came of one rule at one node.

    Attributes:
        rule: its name.
        node: name of the node that it was tried on.
        inputs, output: the tensors between which nodes were replaced; empty where the rule was refused.
        refused: the reason and the node, None where the rule was applied.
    """

    rule: str
    node: str
    inputs: tuple[str, ...] = ()
    output: str = ""
    refused: str | None = None


def tune(model: onnx.ModelProto, target: Target) -> list[Applied]:
    """Rewrite a model in place into the forms that the target runs fast.

    Args:
        model: as `flatq.export.onnx.to_onnx` gives it, float or with Q/DQ nodes.

    Returns:
        One entry for every node that a rule is made for, applied or refused, in the order of the graph. A
        model on which everything was refused is unchanged, byte for byte.
    """
    graph = OnnxGraph(model)
    # The other targets take the model as it is.
    done = [entry for rule in _RULES if target == "onnxruntime" for entry in _apply(rule, graph)]
    graph.commit()
    return done


def _apply(rule: str, graph: OnnxGraph) -> Iterator[Applied]:
    """Try a rule on every node that it is made for; the graph changes only where it is applied."""
    operator, rewrite = _RULES[rule]
    for node in [node for node in graph.nodes if node.op_type == operator and not node.domain]:
        try:
            new = rewrite(graph, node)
        except RefusalError as refusal:
            yield Applied(rule, node.name, refused=str(refusal))
        else:
            graph.replace(new.output, new.nodes)
            yield Applied(rule, node.name, new.inputs, new.output)


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


def without_group_norm(model: onnx.ModelProto) -> None:
    """Replace every GroupNormalization by InstanceNormalization between reshapes, in place.

    GroupNormalization changed in opset 21: weight and bias by channel, where opset 18 has them by group.
    TensorRT up to 10.7 refuses the new form, and up to 10.16 silently takes one group for one group a
    channel; OpenVINO before 2026 knows only the old one. InstanceNormalization has meant the same everywhere
    since opset 6.

    Raises:
        ModelError: one cannot be replaced.
    """
    graph = OnnxGraph(model)
    for done in _apply("group-norm", graph):
        if done.refused is not None:
            raise ModelError(
                f"the group normalization {done.node} cannot be replaced by instance normalization",
                expected="weight and bias that are constants, and shapes that are known but for the batch",
                got=done.refused,
                next_step="export for ONNX Runtime, which takes it as it is",
            )
    graph.commit()
