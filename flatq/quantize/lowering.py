"""From an artifact to a Q/DQ graph for one target.

The codes, scales and ranges are the artifact's; the target decides where Q/DQ nodes stand and whether
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

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from flatq.deployment import Target
from flatq.errors import ArtifactError
from flatq.network import build_network
from flatq.network_config import ModelConfig
from flatq.quantize.artifact import Artifact
from flatq.quantize.attention import quantized_attentions, write_out
from flatq.quantize.bias import round_biases
from flatq.quantize.low_rank import add_branches, branched
from flatq.quantize.pt2e import convert_pt2e, prepare_pt2e
from flatq.quantize.quantizer import FlatqQuantizer, Qparams, activation_qparams, code_range, fixed_spec
from flatq.quantize.rounding import weight_codes
from flatq.quantize.shortcuts import split_shortcuts, whole_weights
from flatq.quantize.trace import Layer, find_layers, graph_digest, quiet, trace
from flatq.recipe import Decision, branch_names

__all__ = ["TARGETS", "Lowered", "Placement", "dequantized_weights", "lower"]

_quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default


@dataclass(frozen=True)
class Placement:
    """What a target wants of a Q/DQ graph; inputs and weights always have Q/DQ.

    Attributes:
        outputs: Q/DQ also behind the layers that run as one integer kernel with an integer result.
        symmetric: activations with zero point 0 only.
        unsigned: activations in uint8 only; symmetric ones have the same values with a zero point
            in the middle.
    """

    outputs: bool
    symmetric: bool
    unsigned: bool = False


TARGETS: dict[Target, Placement] = {
    "onnxruntime": Placement(outputs=True, symmetric=False, unsigned=True),
    "openvino": Placement(outputs=False, symmetric=False),
    "tensorrt": Placement(outputs=False, symmetric=True),
    "generic": Placement(outputs=False, symmetric=False),
}


@dataclass(frozen=True)
class Lowered:
    """A graph for one target.

    Attributes:
        graph: `(x, t, label) -> output` with Q/DQ nodes; runs in torch as it is.
        layers: name of each planned layer -> name of its weight's codes in the graph's state.
        products: name of each attention with quantized products -> names of the nodes of the two.
    """

    graph: fx.GraphModule
    layers: dict[str, str]
    products: dict[str, tuple[str, str]] = field(default_factory=dict)


def lower(artifact: Artifact, target: Target) -> Lowered:
    """Build the target's graph from an artifact, without calibrating again.

    Raises:
        ArtifactError: this version of diffusers or torch traces another graph than the artifact's.
    """
    placement = TARGETS[target]
    manifest = artifact.manifest
    graph, layers = _retrace(artifact, manifest.model)

    def spec(decision: Decision, node: fx.Node) -> Any:
        assert decision.scheme is not None
        if decision.port == "weight":
            low, high, dtype = code_range(decision.scheme)
            scale = artifact.scales[decision.node]
            zero_point = torch.zeros_like(scale, dtype=torch.int64)
            return fixed_spec(Qparams(scale, zero_point, low, high, dtype))
        if decision.port == "output" and not (placement.outputs and _is_one_kernel(node)):
            return None
        low_value, high_value = artifact.ranges[decision.range_name][decision.group].tolist()
        scheme = decision.scheme.model_copy(
            update={"symmetric": decision.scheme.symmetric or placement.symmetric}
        )
        qparams = activation_qparams(low_value, high_value, scheme)
        return fixed_spec(qparams.unsigned() if placement.unsigned else qparams)

    with quiet():
        prepared = prepare_pt2e(graph, FlatqQuantizer(list(manifest.decisions), spec))
        converted = convert_pt2e(prepared)
    _clamp_narrow(converted)
    if placement.outputs:
        round_biases(converted)
    products = {
        layer.candidate.node: (layer.scores.name, layer.node.name)
        for layer in layers
        if layer.scores is not None
    }
    return Lowered(converted, _check_codes(converted, layers, artifact), products)


def dequantized_weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Every parameter by its name in the network, integers times their scales; and the low-rank factors."""
    state = dict(artifact.rest)
    for name, codes in artifact.codes.items():
        scale = artifact.scales[name]
        columns = scale.reshape(-1, *[1] * (codes.ndim - 1)) if scale.ndim else scale
        state[f"{name}.weight"] = codes.float() * columns
    for name, parts in whole_weights(artifact.manifest.decisions).items():
        state[f"{name}.weight"] = torch.cat([state.pop(f"{part}.weight") for part in parts], dim=1)
    return state


def _retrace(artifact: Artifact, config: ModelConfig) -> tuple[fx.GraphModule, list[Layer]]:
    network = build_network(config)
    state = dequantized_weights(artifact)
    halves = whole_weights(artifact.manifest.decisions)
    try:
        factors = {
            name: (state.pop(f"{down}.weight"), state.pop(f"{up}.weight"))
            for name in branched(artifact.manifest.decisions)
            for down, up in [branch_names(name)]
        }
        network.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(
            "the artifact's tensors do not fit its configuration",
            expected="every parameter of the network, and of its float branches, once",
            got=" ".join(str(error).split())[:200],
            next_step="quantize again",
        ) from error
    graph = trace(network.eval(), config)
    split_shortcuts(graph, halves)
    add_branches(graph, factors)
    write_out(graph, quantized_attentions(artifact.manifest.decisions))
    digest = graph_digest(graph)
    if digest != artifact.manifest.graph_digest:
        made_with = ", ".join(f"{k} {v}" for k, v in artifact.manifest.versions.items())
        raise ArtifactError(
            "the installed packages trace this network into another graph than the artifact's",
            expected=f"graph {artifact.manifest.graph_digest[:16]}... ({made_with})",
            got=f"graph {digest[:16]}...",
            next_step="install the versions named, or quantize again",
        )
    return graph, find_layers(graph)


def _is_one_kernel(node: fx.Node) -> bool:
    """Convolutions and 2-d linear layers have a kernel with an integer result; batched products do not."""
    value: torch.Tensor = node.meta["val"]
    return node.target is not torch.ops.aten.linear.default or value.ndim == 2


def _clamp_narrow(graph: fx.GraphModule) -> None:
    """Say a narrow code range as a clamp of the value, since ONNX's QuantizeLinear knows only full widths.

    The clamp bounds are those of the codes, so the quantized values do not change.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _quantize:
            continue
        source, scale, zero_point, low, high, dtype = node.args[:6]
        limits = torch.iinfo(dtype)
        if (low, high) == (limits.min, limits.max):
            continue
        with graph.graph.inserting_before(node):
            bounds = ((low - zero_point) * scale, (high - zero_point) * scale)
            clamped = graph.graph.call_function(torch.ops.aten.clamp.default, (source, *bounds))
            clamped.meta = dict(source.meta)
        node.replace_input_with(source, clamped)
    graph.recompile()


def _check_codes(converted: fx.GraphModule, layers: list[Layer], artifact: Artifact) -> dict[str, str]:
    """Names of the integers in the graph, each checked to be exactly the artifact's."""
    nodes = {node.name: node for node in converted.graph.nodes}
    names = {}
    for layer in layers:
        name = layer.candidate.node
        if name not in artifact.codes:
            continue
        codes, _ = weight_codes(converted, layer.node.name)
        if not torch.equal(codes, artifact.codes[name]):
            raise AssertionError(f"lowering changed the integers of {name}")
        names[name] = str(nodes[layer.node.name].args[1].args[0].target)
    return names
