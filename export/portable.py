"""What every target but ONNX Runtime needs of the graph, for the sake of being right and not of speed.

GroupNormalization changed in opset 21: weight and bias by channel, where opset 18 has them by group.
TensorRT up to 10.7 refuses the new form, and up to 10.16 takes one group for one group a channel without a
word; OpenVINO before 2026 knows only the old one. So the operator is written as InstanceNormalization between
reshapes, which has meant the same thing everywhere since opset 6.
"""

from __future__ import annotations

import onnx

from flatq.errors import ModelError
from flatq.export.rewrites.graph import Graph
from flatq.export.rewrites.group_norm import GROUP_NORM
from flatq.export.rewrites.rule import attempt

__all__ = ["without_group_norm"]


def without_group_norm(model: onnx.ModelProto) -> None:
    """Write every GroupNormalization as InstanceNormalization, in place.

    Raises:
        ModelError: one cannot be written so.
    """
    graph = Graph(model)
    for node in [node for node in graph.nodes if node.op_type == GROUP_NORM.operator]:
        done = attempt(GROUP_NORM, graph, node)
        if done.refused is not None:
            raise ModelError(
                f"the group normalization {done.node} cannot be written as instance normalization",
                expected="weight and bias that are constants, and shapes that are known but for the batch",
                got=done.refused,
                next_step="export for ONNX Runtime, which takes it as it is",
            )
    graph.commit()
