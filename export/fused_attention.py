"""Scaled dot-product attention as one operator: com.microsoft's MultiHeadAttention.

torch's exporter writes it out as two products around a Softmax, with the heads transposed to the front and
back, and the keys through two reshapes whose sizes are computed at run time. MultiHeadAttention takes
queries, keys and values [batch, tokens, heads * size] as the linear layers leave them, and its CPU kernel
goes over the scores in blocks that stay in the cache.

The biases of the projections stay with them. MultiHeadAttention could add them (0.1 ms less), but then the
output of a layer would stand nowhere, and could not be compared with what torch computes.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from flatq.export.graph import OnnxGraph, RefusalError, Replacement, Shape, attribute

__all__ = ["one_attention"]

_TO_HEADS = [0, 2, 1, 3]
"""[batch, tokens, heads, size] <-> [batch, heads, tokens, size]"""


def one_attention(graph: OnnxGraph, softmax: NodeProto) -> Replacement:
    """The rule for a Softmax."""
    name, scale = _unscaled(graph, softmax.input[0])
    scores = _up(graph, name, "MatMul", "the scores", softmax)
    query, query_factor = _unscaled(graph, scores.input[0])
    turned, key_factor = _unscaled(graph, scores.input[1])
    product = _down(graph, softmax, "MatMul", "the weights")
    if product.input[0] != softmax.output[0]:
        raise RefusalError("the weights are the product's second factor", product.name)
    back = _down(graph, product, "Transpose", "the attended values")
    if attribute(back, "perm") != _TO_HEADS:
        raise RefusalError("the attended values are transposed otherwise", back.name)
    # The Reshapes that split the last axis into heads, and the one that undoes it.
    queries = _heads(graph, query, "the queries", scores)
    keys = _heads(graph, _straight(graph, turned, scores), "the keys", scores)
    values = _heads(graph, product.input[1], "the values", product)
    joined = _down(graph, back, "Reshape", "the attended values")
    if attribute(softmax, "axis") not in (None, -1, 3):
        raise RefusalError("the weights do not sum to 1 over the keys", softmax.name)
    (_, heads, size), key, value = (_split(graph, node) for node in (queries, keys, values))
    if not (heads, size) == key[1:] == value[1:]:
        raise RefusalError("queries, keys and values have heads of different number or size", softmax.name)
    if (graph.shape(turned) or ())[1:] != (key[1], key[2], key[0]):
        raise RefusalError("the keys are not turned to [batch, heads, size, tokens]", softmax.name)
    _split(graph, joined)
    if len(graph.consumers[scores.output[0]]) != 1 or graph.is_output(scores.output[0]):
        raise RefusalError("the scores are read elsewhere too", scores.name)
    inputs = tuple(node.input[0] for node in (queries, keys, values))
    output = joined.output[0]
    node = helper.make_node(
        "MultiHeadAttention",
        inputs,
        [output],
        name=f"{softmax.name}.attention",
        domain="com.microsoft",
        num_heads=heads,
        scale=float(np.float32(scale * query_factor * key_factor)),
    )
    return Replacement(inputs, output, (node,))


def _up(graph: OnnxGraph, name: str, operator: str, what: str, at: NodeProto) -> NodeProto:
    """The node that makes a tensor."""
    node = graph.producers.get(name)
    if node is None:
        raise RefusalError(f"{what} are an input or a constant", at.name)
    if node.op_type != operator:
        raise RefusalError(f"{what} come from {node.op_type}, not {operator}", node.name)
    return node


def _down(graph: OnnxGraph, node: NodeProto, operator: str, what: str) -> NodeProto:
    """The one node that reads what a node makes."""
    readers = graph.consumers.get(node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != operator or graph.is_output(node.output[0]):
        got = " and ".join(reader.op_type for reader in readers) or "the model's output"
        raise RefusalError(f"{what} go to {got}, not to one {operator}", node.name)
    return readers[0]


def _unscaled(graph: OnnxGraph, name: str) -> tuple[str, float]:
    """What a Mul or Div by a constant number reads, and the factor; (name, 1.0) where there is none."""
    node = graph.producers.get(name)
    if node is None or node.op_type not in ("Mul", "Div"):
        return name, 1.0
    factor = graph.constant(node.input[1])
    if factor is None or factor.size != 1:
        return name, 1.0
    number = float(factor.item())
    return node.input[0], number if node.op_type == "Mul" else 1 / number


def _heads(graph: OnnxGraph, name: str, what: str, at: NodeProto) -> NodeProto:
    """The Reshape before the Transpose that brings the heads to the front."""
    turn = _up(graph, name, "Transpose", what, at)
    if attribute(turn, "perm") != _TO_HEADS:
        raise RefusalError(f"{what} are transposed otherwise", turn.name)
    return _up(graph, turn.input[0], "Reshape", what, turn)


def _straight(graph: OnnxGraph, turned: str, at: NodeProto) -> str:
    """Keys [batch, heads, tokens, size] before their last two axes were exchanged, in either of two forms."""
    node = graph.producers.get(turned)
    if node is not None and node.op_type == "Transpose" and attribute(node, "perm") == [0, 1, 3, 2]:
        return str(node.input[0])
    unflat = _up(graph, turned, "Reshape", "the turned keys", at)
    turn = _up(graph, unflat.input[0], "Transpose", "the turned keys", unflat)
    if attribute(turn, "perm") != [0, 2, 1]:
        raise RefusalError("the keys are turned otherwise", turn.name)
    flat = _up(graph, turn.input[0], "Reshape", "the keys", turn)
    source, middle = graph.shape(flat.input[0]), graph.shape(flat.output[0])
    if source is None or middle is None or len(middle) != 3 or None in middle[1:] or middle[1:] != source[2:]:
        raise RefusalError("the keys are not flattened to [batch * heads, tokens, size]", flat.name)
    return str(flat.input[0])


def _split(graph: OnnxGraph, node: NodeProto) -> tuple[int, int, int]:
    """(tokens, heads, size) of a Reshape to or from [batch, tokens, heads, size]."""
    shapes: list[Shape | None] = [graph.shape(node.input[0]), graph.shape(node.output[0])]
    flat, split = sorted(shapes, key=lambda shape: len(shape or ()))
    if flat is None or split is None or len(flat) != 3 or len(split) != 4:
        raise RefusalError("the shapes at the heads are not known", node.name)
    tokens, heads, size = split[1:]
    if tokens is None or heads is None or size is None or flat[1:] != (tokens, heads * size):
        raise RefusalError("the heads do not divide the last axis alone", node.name)
    return tokens, heads, size
