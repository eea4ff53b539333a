"""Attention decomposed into its two products around a softmax, so that their factors can be quantized.

softmax(q k^T / sqrt(d)) v, the scale at the queries: there it is a factor of the smallest tensor, in front of
the quantizer, and nothing stands between the integer sums and the softmax. In float nothing changes but
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable

import torch
from torch import fx

from flatq.layer_decisions import decide_layers
from flatq.quantize.trace import DECOMPOSED, Layer, add_call, find_layers, rewrite_layers
from flatq.recipe import Decision, QuantRecipe

__all__ = ["decompose", "planned_attentions", "quantized_attentions"]

_aten = torch.ops.aten


def planned_attentions(graph: fx.GraphModule, recipe: QuantRecipe) -> list[str]:
    """The attentions of a traced graph whose products the recipe quantizes."""
    return quantized_attentions(decide_layers(recipe, [layer.candidate for layer in find_layers(graph)]))


def quantized_attentions(decisions: Iterable[Decision]) -> list[str]:
    """Names of the attentions whose products are quantized, in order of execution."""
    return [d.node for d in decisions if d.port == "query" and d.scheme is not None]


def decompose(graph: fx.GraphModule, names: Container[str]) -> None:
    """Decompose the named attentions of a traced graph, in place."""
    rewrite_layers(graph, names, _decompose)


def _decompose(graph: fx.GraphModule, layer: Layer) -> None:
    assert not layer.candidate.obstacle, layer.candidate
    node = layer.node
    query, key, value = node.args[:3]
    queries, keys = (source.meta["val"] for source in (query, key))  # type: ignore[union-attr]
    scale = node.kwargs.get("scale")
    weights = queries.new_empty([*queries.shape[:-1], keys.shape[-2]])
    with graph.graph.inserting_before(node):
        factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
        scaled = add_call(graph, _aten.mul.Tensor, (query, factor), node, queries)
        transposed = add_call(graph, _aten.transpose.int, (key, -2, -1), node, keys.transpose(-2, -1))
        scores = add_call(graph, _aten.matmul.default, (scaled, transposed), node, weights)
        probabilities = add_call(graph, _aten.softmax.int, (scores, -1), node, weights)
        attended = add_call(graph, _aten.matmul.default, (probabilities, value), node)
    attended.meta[DECOMPOSED] = True
    node.replace_all_uses_with(attended)
    graph.graph.erase_node(node)
