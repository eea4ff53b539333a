"""Channels of a layer's input brought to one size, where a group normalization takes the factors up exactly.

Xiao et al. 2023, "SmoothQuant": s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); the input's channel j is divided
by s_j, the weights' column j multiplied by it. A U-Net has one kind of place for that without a nonlinearity
between: what an attention's query, key and value read is a group normalization's output, whose own weight
and bias are divided. Behind a SiLU nothing can be folded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from flatq.calib.inputs import CalibrationSet
from flatq.quantize.methods.stream import Stream, execute
from flatq.quantize.trace import Layer, find_layers

__all__ = ["equalize"]

_aten = torch.ops.aten
_MOVES = (
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.transpose.int,
    _aten.view.default,
)
_OUTLIER = 4.0
"""A channel this many times as large as the median one is an outlier. Trained networks had up to 2.1, and
equalizing those made some layers worse."""


def equalize(
    network: nn.Module, graph: fx.GraphModule, inputs: CalibrationSet, alpha: float
) -> dict[str, str]:
    """Fold factors into a network's group normalizations and the layers that read them, in place.

    Args:
        graph: traced from the network.
        alpha: of the formula above, 0 to 1.

    Returns:
        Layer -> what was done, or why nothing was, for every layer that reads a group normalization alone.
    """
    groups = _groups(graph)
    done: dict[str, str] = {}
    for (norm, layers), largest in zip(groups.items(), _largest(graph, groups, inputs), strict=True):
        ratio = float(largest.max() / largest.median().clamp_min(torch.finfo(torch.float32).tiny))
        found = f"its largest channel is {ratio:.3g} times the median one"
        if ratio >= _OUTLIER:
            _fold(network, norm, layers, largest, alpha)
            found = f"channels equalized with alpha {alpha:g} into {_stem(norm)}: {found}"
        else:
            found = f"channels not equalized: {found}, below {_OUTLIER:g}"
        done.update((layer.candidate.node, found) for layer in layers)
    return done


def _groups(graph: fx.GraphModule) -> dict[fx.Node, list[Layer]]:
    """Group normalization -> the linear layers that are all that reads it."""
    found: dict[fx.Node, list[Layer]] = {}
    for layer in find_layers(graph):
        source: Any = layer.node.args[0]
        while source.target in _MOVES:
            source = source.args[0]
        if layer.candidate.kind == "linear" and source.target is _aten.group_norm.default:
            found.setdefault(source, []).append(layer)
    return {
        norm: layers
        for norm, layers in found.items()
        if set(_readers(norm)) == {layer.node for layer in layers}
        and len(norm.args) > 3
        and None not in norm.args[2:4]
    }


def _readers(node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        if user.target in _MOVES:
            yield from _readers(user)
        else:
            yield user


def _stem(norm: fx.Node) -> str:
    return str(norm.args[2].target).removesuffix(".weight")  # type: ignore[union-attr]


def _largest(
    graph: fx.GraphModule, groups: dict[fx.Node, list[Layer]], inputs: CalibrationSet
) -> list[torch.Tensor]:
    """The largest magnitude in each channel of each normalization's output, float32 [channels]."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    found: dict[fx.Node, torch.Tensor] = {}
    for values_of_step in inputs.batches():
        batch = tuple(map(torch.from_numpy, values_of_step))
        values = Stream(graph, [batch]).batches[0]
        with torch.no_grad():
            execute(nodes, values)
        for norm in groups:
            now = values[norm].abs().transpose(0, 1).flatten(1).amax(1)
            found[norm] = torch.maximum(found[norm], now) if norm in found else now
    return [found[norm] for norm in groups]


def _fold(
    network: nn.Module, norm: fx.Node, layers: list[Layer], largest: torch.Tensor, alpha: float
) -> None:
    weights = [network.get_parameter(f"{layer.candidate.node}.weight") for layer in layers]
    columns = torch.cat([weight.detach() for weight in weights]).abs().amax(0)
    factors = largest.double() ** alpha / columns.double() ** (1 - alpha)
    factors = torch.where((largest > 0) & (columns > 0), factors, 1.0)
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = network.get_parameter(f"{_stem(norm)}.{name}")
            value.copy_(value.double() / factors)
        for weight in weights:
            weight.copy_(weight.double() * factors)
