"""How a traced network is cut: into the blocks that are reconstructed together, and into single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import fx

from flatq.quantize.methods.layer import QuantLayer
from flatq.quantize.methods.stream import Replaced, Values, execute

__all__ = ["Block", "blocks", "pieces"]

_BLOCKS = ("ResnetBlock2D", "Attention")
"""Classes of diffusers' modules that BRECQ's blocks are, residual and attention."""


@dataclass(frozen=True)
class Block:
    """Consecutive operators.

    Attributes:
        name: of the module, or of the one layer.
        nodes: in order of execution.
        layers: the planned ones among them.
        products: what the quantized network computes in the place of products without a weight.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    layers: tuple[QuantLayer, ...]
    products: Replaced = field(default_factory=dict)

    @cached_property
    def outputs(self) -> list[fx.Node]:
        """What leaves the block and a layer of it has a part in."""
        inside, touched = set(self.nodes), {layer.node for layer in self.layers}
        for node in self.nodes:
            if touched.intersection(node.all_input_nodes):
                touched.add(node)
        return [node for node in self.nodes if node in touched and not inside.issuperset(node.users)]

    @cached_property
    def inputs(self) -> list[fx.Node]:
        """What the block reads of the operators before it, and its parameters."""
        inside = set(self.nodes)
        return list(dict.fromkeys(n for node in self.nodes for n in node.all_input_nodes if n not in inside))

    def run(self, values: Values, replaced: Replaced) -> list[torch.Tensor]:
        """The outputs for the values before the block, which stay; `replaced` as in `execute`."""
        local = {node: values[node] for node in self.inputs}
        execute(self.nodes, local, replaced)
        return [local[node] for node in self.outputs]


def blocks(
    graph: fx.GraphModule,
    layers: Mapping[fx.Node, QuantLayer],
    products: Replaced | None = None,
) -> list[Block]:
    """All operators of a graph: residual and attention blocks, and in between up to one planned layer each.

    After Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction".

    Args:
        products: of `flatq.quantize.methods.layer.quant_products`.
    """
    groups: list[tuple[str | None, list[fx.Node]]] = []
    ended = True
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        name = _block_name(node)
        if ended or name != groups[-1][0]:
            groups.append((name, []))
        groups[-1][1].append(node)
        ended = name is None and node in layers
    return [_block(name, nodes, layers, products or {}) for name, nodes in groups]


def pieces(block: Block) -> list[Block]:
    """The block cut behind each of its planned layers."""
    planned = {layer.node: layer for layer in block.layers}
    groups: list[list[fx.Node]] = [[]]
    for node in block.nodes:
        groups[-1].append(node)
        if node in planned:
            groups.append([])
    return [_block(None, nodes, planned, block.products) for nodes in groups if nodes]


def _block(
    name: str | None,
    nodes: Sequence[fx.Node],
    layers: Mapping[fx.Node, QuantLayer],
    products: Replaced,
) -> Block:
    inside = tuple(layers[node] for node in nodes if node in layers)
    own = {node: products[node] for node in nodes if node in products}
    return Block(name or (inside[-1].name if inside else ""), tuple(nodes), inside, own)


def _block_name(node: fx.Node) -> str | None:
    """Of the outermost residual or attention block that an operator was traced from."""
    for name, kind in (node.meta.get("nn_module_stack") or {}).values():
        if str(getattr(kind, "__name__", kind)).rpartition(".")[2] in _BLOCKS:
            return str(name).removeprefix("L['self'].")
    return None
