"""A float branch of low rank beside a layer of few bits: W = (W - L2 L1) + L2 L1.

After Li et al. 2024, "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models": the
layer keeps the residual W - L2 L1 and stays an integer kernel; the branch reads the layer's input in float,
before any quantizer, and its result is added behind whatever quantizer a target places at the layer's output.
So nothing comes between a kernel and its Q/DQ nodes. In float nothing changes but the order of a sum.

The factors are the plain singular value decomposition. They need no calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from flatq.layer_decisions import branch_rank, decide_layers
from flatq.quantize.trace import Layer, add_call, find_layers, hold_weight, rewrite_layers
from flatq.recipe import Decision, QuantRecipe, branch_names, branch_of

__all__ = ["Factors", "add_branches", "branched", "factor", "planned_branches", "split_branches"]

Factors = tuple[torch.Tensor, torch.Tensor]
"""L1 and L2, float32, as weights of the branch's two layers: [rank, in, kh, kw] and [out, rank, 1, 1], or
[rank, in] and [out, rank]."""

_aten = torch.ops.aten


def planned_branches(graph: fx.GraphModule, recipe: QuantRecipe) -> dict[str, int]:
    """The layers of a traced graph that get a branch by the recipe -> its rank."""
    if not recipe.low_rank:
        return {}
    layers = find_layers(graph)
    schemes = {
        (d.node, d.port): d.scheme for d in decide_layers(recipe, [layer.candidate for layer in layers])
    }
    ranks = {}
    for layer in layers:
        name, shape = layer.candidate.node, layer.candidate.shape
        rank, _ = branch_rank(recipe, shape, schemes.get((name, "weight")), schemes.get((name, "input")))
        if rank:
            ranks[name] = rank
    return ranks


def branched(decisions: Iterable[Decision]) -> list[str]:
    """Names of the layers that have a branch, in order of execution."""
    owners = (branch_of(decision.node) for decision in decisions)
    return list(dict.fromkeys(owner for owner in owners if owner is not None))


def factor(weight: torch.Tensor, rank: int) -> Factors:
    """The product of this rank that is nearest to a weight (Eckart, Young 1936), its scale shared evenly.

    Args:
        weight: float32, [out, in, kh, kw] or [out, in].
        rank: at least 1; one above that of the weight gives factors with zeros in them.
    """
    matrix = weight.detach().double().flatten(1)
    rank = min(rank, *matrix.shape)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    ones = [1] * (weight.ndim - 2)
    first = (root[:, None] * vt[:rank]).reshape(rank, *weight.shape[1:])
    second = (u[:, :rank] * root).reshape(len(weight), rank, *ones)
    return first.float().contiguous(), second.float().contiguous()


def split_branches(graph: fx.GraphModule, ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Give layers of a traced graph a branch and leave them the residual, in place.

    Returns:
        The branches' weights by their parameters' names.
    """
    factors = {}
    for name, rank in ranks.items():
        module = graph.get_submodule(name)
        weight: Any = module.weight
        first, second = factors[name] = factor(weight, rank)
        product = second.double().flatten(1) @ first.double().flatten(1)
        rest = weight.detach().double() - product.reshape(weight.shape)
        # A parameter of its own: the traced one is the network's.
        module.weight = nn.Parameter(rest.float(), requires_grad=False)
    add_branches(graph, factors)
    return {
        f"{part}.weight": value
        for name, pair in factors.items()
        for part, value in zip(branch_names(name), pair, strict=True)
    }


def add_branches(graph: fx.GraphModule, factors: Mapping[str, Factors]) -> None:
    """Add to each named layer's output what its branch makes of the layer's input, in place."""
    rewrite_layers(graph, factors, lambda graph, layer: _add(graph, layer, factors[layer.candidate.node]))


def _add(graph: fx.GraphModule, layer: Layer, factors: Factors) -> None:
    node = layer.node
    value: torch.Tensor = node.meta["val"]
    axis = 1 if factors[0].ndim == 4 else value.ndim - 1
    inner = value.new_empty([*value.shape[:axis], len(factors[0]), *value.shape[axis + 1 :]])
    second = _aten.conv2d.default if factors[1].ndim == 4 else _aten.linear.default
    with graph.graph.inserting_after(node):
        total = add_call(graph, _aten.add.Tensor, (node, node), node)
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    with graph.graph.inserting_before(total):
        names = branch_names(layer.candidate.node)
        first, last = (hold_weight(graph, *held, node) for held in zip(names, factors, strict=True))
        reads = (node.args[0], first, None, *node.args[3:])
        down = add_call(graph, node.target, reads, node, inner, node.kwargs)
        up = add_call(graph, second, (down, last), node)
    total.args = (node, up)
