"""From an artifact to a Q/DQ graph for one target.

The integers, scales and ranges are the artifact's; the target decides where Q/DQ nodes stand and whether
activations may have a zero point. The graph comes from torchao's `convert_pt2e`.

- onnxruntime: inputs, weights and outputs, affine uint8. Its CPU kernels write integers, and without the Q/DQ
  behind a convolution it runs in float. With int8 activations version 1.32 refuses a graph that it rewrote
  itself ("output_dtype INT8 does not match y_zero_point type UINT8"). The products of attention need no Q/DQ
  behind them; an int8 factor it would turn into uint8 itself.
- openvino: inputs and weights, affine. Its kernels write floats; Q/DQ at the output is one more pass.
- tensorrt: inputs and weights, symmetric int8. Its parser refuses a zero point other than 0.
- generic: inputs and weights, affine: what the ONNX standard says, and nothing that a runtime would have to
  guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

from flatq.deployment import Target
from flatq.errors import ArtifactError, one_line
from flatq.network import build_network
from flatq.quantize.artifact import Artifact, Manifest
from flatq.quantize.attention import decompose, quantized_attentions
from flatq.quantize.bias import round_biases
from flatq.quantize.grid import QuantGrid, activation_grid
from flatq.quantize.low_rank import Factors, add_branches, branched
from flatq.quantize.quantizer import FlatqQuantizer, convert_pt2e, prepare_pt2e
from flatq.quantize.skip_connections import split_skip_connections, whole_weights
from flatq.quantize.trace import Layer, add_call, find_layers, quiet, stored_value, trace
from flatq.recipe import Decision, branch_names

__all__ = ["Lowered", "dequantized_weights", "grid_of", "lower", "planned_graph"]

_quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default


@dataclass(frozen=True)
class Lowered:
    """A graph for one target.

    Attributes:
        graph: `(x, t, label) -> output` with Q/DQ nodes; runs in torch as it is.
        layers: name of each planned layer -> name of its integer weight in the graph's state.
        products: name of each attention with quantized products -> names of the nodes of the two.
    """

    graph: fx.GraphModule
    layers: dict[str, str]
    products: dict[str, tuple[str, str]] = field(default_factory=dict)


def lower(artifact: Artifact, target: Target) -> Lowered:
    """Build the target's graph from an artifact, without calibrating again.

    Raises:
        ArtifactError: the tensors do not fit the configuration, or the installed packages build the network
            of other layers than the artifact's.
    """
    # ONNX Runtime wants Q/DQ behind integer kernels, too, and uint8; TensorRT the zero point 0.
    outputs = unsigned = target == "onnxruntime"
    manifest = artifact.manifest
    graph, layers = _retrace(artifact)

    def grid(decision: Decision, node: fx.Node) -> QuantGrid | None:
        assert decision.scheme is not None
        if decision.port == "weight":
            return artifact.grids[decision.node]
        if decision.port == "output" and not (outputs and _is_one_kernel(node)):
            return None
        low, high = artifact.ranges[decision.range_name][decision.group].tolist()
        symmetric = decision.scheme.symmetric or target == "tensorrt"
        found = activation_grid(low, high, decision.scheme.model_copy(update={"symmetric": symmetric}))
        return found.unsigned() if unsigned else found

    with quiet():
        prepared = prepare_pt2e(graph, FlatqQuantizer(manifest.decisions, grid))
        converted = convert_pt2e(prepared)
    _clamp_narrow(converted)
    if outputs:
        round_biases(converted)
    products = {
        layer.candidate.node: (layer.scores.name, layer.node.name)
        for layer in layers
        if layer.scores is not None
    }
    return Lowered(converted, _integers(converted, layers, artifact), products)


def dequantized_weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Every parameter by its name in the network, integers times their scales; and the low-rank factors."""
    state = dict(artifact.rest)
    for name, integers in artifact.integers.items():
        state[f"{name}.weight"] = artifact.grids[name].dequantize(integers)
    for name, parts in whole_weights(artifact.manifest.decisions).items():
        state[f"{name}.weight"] = torch.cat([state.pop(f"{part}.weight") for part in parts], dim=1)
    return state


def _retrace(artifact: Artifact) -> tuple[fx.GraphModule, list[Layer]]:
    manifest = artifact.manifest
    network = build_network(manifest.model)
    state = dequantized_weights(artifact)
    try:
        factors = {
            name: (state.pop(f"{down}.weight"), state.pop(f"{up}.weight"))
            for name in branched(manifest.decisions)
            for down, up in [branch_names(name)]
        }
        network.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(
            "the artifact's tensors do not fit its configuration",
            expected="every parameter of the network, and of its float branches, once",
            got=one_line(error),
            next_step="quantize again",
        ) from error
    graph, layers = planned_graph(network.eval(), manifest, factors)
    planned = list(dict.fromkeys((d.node, d.kind, d.shape) for d in manifest.decisions))
    found = [(c.node, c.kind, c.shape) for c in (layer.candidate for layer in layers)]
    if found != planned:
        made_with = ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
        wanted, got = next(pair for pair in zip_longest(planned, found) if pair[0] != pair[1])
        raise ArtifactError(
            "the installed packages build this network of other layers than the artifact's",
            expected=f"{_described(wanted)} ({made_with})",
            got=_described(got),
            next_step="install the versions named, or quantize again",
        )
    return graph, layers


def planned_graph(
    network: nn.Module, manifest: Manifest, factors: Mapping[str, Factors]
) -> tuple[fx.GraphModule, list[Layer]]:
    """A network, traced, with the decisions' changes to its graph: split convolutions, branches, decomposed
    attentions; and its layers.

    Args:
        factors: of the float branches, by layer.
    """
    graph = trace(network, manifest.model)
    split_skip_connections(graph, whole_weights(manifest.decisions))
    add_branches(graph, factors)
    decompose(graph, quantized_attentions(manifest.decisions))
    return graph, find_layers(graph)


def _described(layer: tuple[str, str, tuple[int, ...]] | None) -> str:
    return f"{layer[1]} {layer[0]} {list(layer[2])}" if layer else "no further layer"


def _is_one_kernel(node: fx.Node) -> bool:
    """Convolutions and 2-d linear layers have a kernel with an integer result; batched products do not."""
    value: torch.Tensor = node.meta["val"]
    return node.target is not torch.ops.aten.linear.default or value.ndim == 2


def grid_of(node: fx.Node) -> QuantGrid:
    """The grid of a per-tensor quantize operator."""
    arguments: Any = node.args[1:5]
    scale, zero_point, low, high = arguments
    return QuantGrid(torch.tensor(scale, dtype=torch.float64), low, high, zero_point)


def _clamp_narrow(graph: fx.GraphModule) -> None:
    """Clamp what is quantized to a narrow range of integers, since QuantizeLinear knows only full widths.

    The clamp bounds are those of the grid, so the quantized values do not change.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _quantize:
            continue
        source, grid = node.args[0], grid_of(node)
        limits = torch.iinfo(grid.dtype)
        if (grid.low, grid.high) == (limits.min, limits.max):
            continue
        with graph.graph.inserting_before(node):
            clamped = add_call(graph, torch.ops.aten.clamp.default, (source, *grid.bounds), source)
        node.replace_input_with(source, clamped)
    graph.recompile()


def _integers(converted: fx.GraphModule, layers: list[Layer], artifact: Artifact) -> dict[str, str]:
    """Names of the integer weights in the graph, each checked to be exactly the artifact's."""
    nodes = {node.name: node for node in converted.graph.nodes}
    names = {}
    for layer in layers:
        name = layer.candidate.node
        if name in artifact.integers:
            stored = nodes[layer.node.name].args[1].args[0]
            assert torch.equal(stored_value(converted, stored), artifact.integers[name]), name
            names[name] = str(stored.target)
    return names
