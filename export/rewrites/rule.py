"""What a rule is: a pattern around one operator, a check, a rewrite; and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnx import NodeProto

from flatq.export.rewrites.graph import Graph

__all__ = ["Applied", "RefusalError", "Replacement", "Rule", "attempt"]

Match = TypeVar("Match")


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
class Rule(Generic[Match]):
    """A rewrite of one operator and its neighbours.

    Attributes:
        name: what is recorded.
        operator: the operator that it is tried on, wherever it stands.
        pattern: finds the neighbours, raises `RefusalError` where they are others.
        check: raises `RefusalError` where the pattern is there and the rewrite would not be equal.
        rewrite: the new nodes. It may add constants to the graph and does not fail.
    """

    name: str
    operator: str
    pattern: Callable[[Graph, NodeProto], Match]
    check: Callable[[Graph, Match], None]
    rewrite: Callable[[Graph, Match], Replacement]


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


def attempt(rule: Rule[Match], graph: Graph, node: NodeProto) -> Applied:
    """Try a rule on a node; the graph changes only where it is applied."""
    try:
        match = rule.pattern(graph, node)
        rule.check(graph, match)
    except RefusalError as refusal:
        return Applied(rule.name, node.name, refused=str(refusal))
    replacement = rule.rewrite(graph, match)
    graph.replace(replacement.output, replacement.nodes)
    return Applied(rule.name, node.name, replacement.inputs, replacement.output)
