"""A convolution that reads two concatenated tensors, as two whose results are added.

Q-Diffusion (Li et al. 2023, section 4.2): where a U-Net's skip connection joins two tensors, their values,
and with them the weights, spread very differently. Each half gets a range of its own and weight scales of
its own, and each is a layer that every runtime has an integer kernel for. In float only the order of a sum
changes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import fx

from flatq.layer_decisions import decide_layers
from flatq.quantize.trace import HALF, Layer, add_call, find_layers, hold_weight, rewrite_layers
from flatq.recipe import Decision, QuantRecipe, half_name, whole_name

__all__ = ["planned_splits", "split_skip_connections", "whole_weights"]

_aten = torch.ops.aten


def planned_splits(graph: fx.GraphModule, recipe: QuantRecipe) -> list[str]:
    """The convolutions of a traced graph that the recipe splits: those whose input it quantizes."""
    if not recipe.split_shortcuts:
        return []
    layers = find_layers(graph)
    inputs = {
        d.node: d for d in decide_layers(recipe, [layer.candidate for layer in layers]) if d.port == "input"
    }
    return [
        layer.candidate.node
        for layer in layers
        if layer.candidate.kind == "conv2d"
        and inputs[layer.candidate.node].scheme is not None
        and _joined(layer.node) is not None
    ]


def whole_weights(decisions: Iterable[Decision]) -> dict[str, list[str]]:
    """Name of each split convolution -> the names of its halves, in order."""
    found: dict[str, list[str]] = {}
    for decision in decisions:
        name = whole_name(decision.node, decision.group)
        if decision.port == "weight" and name != decision.node:
            found.setdefault(name, []).append(decision.node)
    return found


def split_skip_connections(graph: fx.GraphModule, names: Container[str]) -> None:
    """Split the named convolutions of a traced graph, in place. The first half keeps the bias."""
    rewrite_layers(graph, names, _split)


def _joined(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a convolution reads joined by channel."""
    source: Any = node.args[0]
    if source.target is not _aten.cat.default or len(source.args) < 2 or source.args[1] != 1:
        return None
    parts = source.args[0]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _split(graph: fx.GraphModule, layer: Layer) -> None:
    name, node = layer.candidate.node, layer.node
    sources = _joined(node)
    assert sources is not None, f"{name} does not read two joined tensors"
    module = graph.get_submodule(name)
    weight: Any = module.weight
    stored: Any = node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    start, results = 0, []
    for group, source in enumerate(sources):
        end = start + int(source.meta["val"].shape[1])
        half = weight.detach()[:, start:end].contiguous()
        with graph.graph.inserting_before(node):
            part = hold_weight(graph, half_name(name, group), half, stored)
            arguments = (source, part, None if group else bias, *node.args[3:])
            result = add_call(graph, node.target, arguments, node, kwargs=node.kwargs)
            result.meta[HALF] = group
        results.append(result)
        start = end
    with graph.graph.inserting_before(node):
        total = add_call(graph, _aten.add.Tensor, tuple(results), node)
    node.replace_all_uses_with(total)
    graph.graph.erase_node(node)
    graph.graph.erase_node(stored)
    del module.weight
