"""GroupNormalization (opset 21) as InstanceNormalization between reshapes, times and plus one tensor each.

ONNX Runtime's CPU provider has no kernel for GroupNormalization and expands it into some twenty nodes, ten of
which go over the whole tensor. InstanceNormalization over [batch, groups, rest] is one kernel: mean, then
squared deviations, in float32. Weight and bias by channel are left for a Mul and an Add; where a scale and a
shift by image and channel follow (`resnet_time_scale_shift="scale_shift"`), they are folded into these two:

    (n * weight + bias) * scale + shift  =  n * (weight * scale) + (bias * scale + shift)

[8, 64, 32, 32] float32 in 32 groups, one thread, ms of CPU time: expanded 0.84, so 0.19 and 0.25. The kernel
of InstanceNormalization runs in one thread however many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from flatq.export.graph import OnnxGraph, RefusalError, Replacement, attribute

__all__ = ["instance_normalization"]


def _modulation(graph: OnnxGraph, norm: str) -> tuple[str, str, str] | None:
    """Names of a scale and a shift [batch, C, 1, ...] behind a normalization, and of what comes out."""
    shape = graph.shape(norm)
    if shape is None:
        return None
    found = []
    name = norm
    for operator in ("Mul", "Add"):
        readers = graph.consumers.get(name, [])
        if graph.is_output(name) or len(readers) != 1 or readers[0].op_type != operator:
            return None
        other = [value for value in readers[0].input if value != name]
        if len(other) != 1 or graph.shape(other[0]) != (None, shape[1], *[1] * (len(shape) - 2)):
            return None
        found.append(other[0])
        name = readers[0].output[0]
    return found[0], found[1], name


def _sizes(graph: OnnxGraph, node: NodeProto) -> list[int]:
    """Channels and places of the input, all axes but the batch's; raises where the rewrite does not hold."""
    shape = graph.shape(node.input[0])
    if shape is None or len(shape) < 3:
        raise RefusalError("the shape of the input is not known", node.name)
    sizes = [size for size in shape[1:] if size is not None]
    if len(sizes) < len(shape) - 1:
        raise RefusalError("a size other than the batch's is not fixed", node.name)
    for name in node.input[1:3]:
        value = graph.constant(name)
        if value is None:
            raise RefusalError("weight or bias is computed, not a constant", node.name)
        if value.dtype != np.float32 or value.shape != (sizes[0],):
            raise RefusalError(
                f"weight or bias is {value.dtype} {list(value.shape)}, not float32 [C]", node.name
            )
    if attribute(node, "stash_type") not in (None, 1):
        raise RefusalError("the statistics are not wanted in float32", node.name)
    return sizes


def instance_normalization(graph: OnnxGraph, node: NodeProto) -> Replacement:
    """The rule for a GroupNormalization."""
    sizes = _sizes(graph, node)
    groups = int(attribute(node, "num_groups"))
    source, weight, bias = node.input
    columns = (1, sizes[0], *[1] * (len(sizes) - 1))

    def by_channel(name: str) -> str:
        value = graph.constant(name)
        assert value is not None
        return graph.add_constant(f"{name}.of_{len(columns)}_axes", value.reshape(columns))

    def int64(name: str, *values: int) -> str:
        return graph.add_constant(name, np.array(values, np.int64))

    ones = graph.add_constant(f"instances.{groups}.ones", np.ones(groups, np.float32))
    zeros = graph.add_constant(f"instances.{groups}.zeros", np.zeros(groups, np.float32))
    # In a Reshape 0 stands for the size that was there: the batch's.
    instances = int64(f"instances.{groups}.shape", 0, groups, -1)
    back = int64("instances.back." + "x".join(str(size) for size in sizes), 0, *sizes)

    nodes: list[NodeProto] = []

    def add(operator: str, part: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{node.output[0]}.{part}"
        nodes.append(helper.make_node(operator, inputs, [name], name=f"{node.name}.{part}", **attributes))
        return name

    output = node.output[0]
    scale, shift = by_channel(weight), by_channel(bias)
    inputs = [source]
    modulation = _modulation(graph, output)
    if modulation is not None:
        by_image, moved, output = modulation
        inputs += [by_image, moved]
        shift = add("Add", "shift", add("Mul", "scaled_bias", shift, by_image), moved)
        scale = add("Mul", "scale", scale, by_image)
    epsilon = attribute(node, "epsilon")
    grouped = add("Reshape", "instances", source, instances)
    normal = add(
        "InstanceNormalization", "normal", grouped, ones, zeros, epsilon=1e-5 if epsilon is None else epsilon
    )
    scaled = add("Mul", "scaled", add("Reshape", "back", normal, back), scale)
    add("Add", "shifted", scaled, shift, output=output)
    return Replacement(tuple(inputs), output, tuple(nodes))
