"""What a rule is: a function that gives the nodes to put in the place of one operator and its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from flatq.export.graph import OnnxGraph

__all__ = ["RefusalError", "Replacement", "Rule"]


class RefusalError(Exception):
    """A rule does not fit: why, and the name of the node that does not."""

    def __init__(self, reason: str, node: str) -> None:
        super().__init__(f"{reason} ({node})")


@dataclass(frozen=True)
class Replacement:
    """New nodes for a tensor that old ones made.

    Attributes:
        inputs: names of the tensors that the new nodes read, constants aside.
        output: name of the tensor, which the last node makes as before.
        nodes: in order.
    """

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[NodeProto, ...]


@dataclass(frozen=True)
class Rule:
    """A rewrite of one operator and its neighbours.

    Attributes:
        name: what is recorded.
        operator: the operator that it is tried on, wherever it stands.
        rewrite: returns the new nodes, or raises `RefusalError` where the neighbours are others or the
            rewrite would not be equal. It may add constants to the graph, but only where it does not raise.
    """

    name: str
    operator: str
    rewrite: Callable[[OnnxGraph, NodeProto], Replacement]
