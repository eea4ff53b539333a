"""A traced graph that is run piece by piece over a set of inputs, so that what each layer reads can be seen.

No quantization here: a piece may be run with some of its nodes replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from flatq.quantize.trace import stored_value

__all__ = ["Replaced", "Stream", "Values", "execute"]

Values = dict[fx.Node, Any]
Replaced = Mapping[fx.Node, Callable[..., Any]]
"""node -> what is called in place of its operator, with the same arguments."""


def execute(nodes: Sequence[fx.Node], values: Values, replaced: Replaced | None = None) -> None:
    """Run operators in order, from and into `values`, which holds every argument that no node here makes."""
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        call: Any = (replaced or {}).get(node, node.target)
        values[node] = call(*args, **kwargs)


class Stream:
    """The values that are still needed behind the point up to which the graph has been run, batch by batch.

    Args:
        graph: of `flatq.quantize.trace.trace`.
        batches: the graph's inputs in order; float32 [n, ...] and the like, n may differ.
    """

    def __init__(self, graph: fx.GraphModule, batches: Sequence[tuple[torch.Tensor, ...]]) -> None:
        nodes = list(graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        constants = {node: stored_value(graph, node).detach() for node in nodes if node.op == "get_attr"}
        self.batches: list[Values] = [
            {**constants, **dict(zip(inputs, batch, strict=True))} for batch in batches
        ]
        place = {node: i for i, node in enumerate(nodes)}
        self._dies: dict[fx.Node, list[fx.Node]] = {}
        for node in nodes:
            if node.op != "get_attr" and node.users:
                self._dies.setdefault(max(node.users, key=place.__getitem__), []).append(node)

    def advance(self, nodes: Sequence[fx.Node], replaced: Replaced | None = None) -> None:
        """Run the next operators over all batches, and let go of what no later one reads."""
        with torch.no_grad():
            for values in self.batches:
                for node in nodes:
                    execute([node], values, replaced)
                    for dead in self._dies.get(node, ()):
                        values.pop(dead, None)
