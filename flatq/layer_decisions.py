"""The decisions that a recipe makes on a list of layers, each with its reason. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import prod

from flatq.recipe import (
    ATTENTION_PORTS,
    EDGES_FROM,
    Candidate,
    Decision,
    Port,
    QuantRecipe,
    Rule,
    Scheme,
    branch_of,
    whole_name,
)

__all__ = ["branch_rank", "decide_layers"]


def decide_layers(recipe: QuantRecipe, candidates: Sequence[Candidate]) -> list[Decision]:
    """Decide every candidate; the first matching rule wins, and none is left out.

    Returns:
        For each layer its weight, input and output, for each attention its products or their factors, in the
        order of the candidates. A layer whose activations are quantized but whose weight is not has no
        integer kernel anywhere, so that combination is not planned. A rule that matches a split convolution
        speaks of both its halves. The layers of a float branch are float.
    """
    decisions = []
    for candidate in candidates:
        name = whole_name(candidate.node, candidate.group)
        rule = next(
            (r for r in recipe.rules if candidate.kind in r.kinds and fnmatchcase(name, r.match)), None
        )
        reason = rule.reason if rule else f"no rule of recipe {recipe.name} matches"
        if candidate.kind == "attention":
            ports, reason = _attention_ports(candidate, rule, reason)
        else:
            ports, reason = _layer_ports(recipe, candidate, rule, reason)
        about = candidate.model_dump(exclude={"obstacle", "reads_image", "predicts"})
        for port, scheme in ports.items():
            why = _why_float(candidate, port) if scheme and recipe.edges == "float" else None
            decisions.append(
                Decision(**about, port=port, scheme=None if why else scheme, reason=why or reason)
            )
    return decisions


def _why_float(candidate: Candidate, port: Port) -> str | None:
    """Why a port of a first or a last layer stays float; None for any other port."""
    if candidate.predicts and port == "output":
        return "what the network predicts is not rounded (--first-last 8 rounds it)"
    if candidate.reads_image and port == "input":
        return (
            "the image reaches the network in float: at low noise its rounding looks like the noise that is "
            "to be predicted (--first-last 8 rounds it)"
        )
    if candidate.reads_image and port == "output":
        return "a layer that reads a float image yields float"
    return None


def _layer_ports(
    recipe: QuantRecipe, candidate: Candidate, rule: Rule | None, reason: str
) -> tuple[dict[Port, Scheme | None], str]:
    """The ports of a layer, and why they are what they are."""
    weight = rule.weight if rule else None
    activation = rule.activation if rule and weight else None
    if candidate.node != whole_name(candidate.node, candidate.group):
        reason += f"; half {candidate.group} of a skip connection that joins two tensors"
    if (candidate.reads_image or candidate.predicts) and recipe.edges != "same" and weight:
        given = (weight, activation)
        weight, activation = _widened(weight, EDGES_FROM), activation and _widened(activation, 8)
        if (weight, activation) != given:
            end = "last" if candidate.predicts else "first"
            reason = (
                f"the {end} layer has 8 bits where the rest has fewer: few multiplications, much error "
                "(--first-last same leaves it like the rest)"
            )
    if (owner := branch_of(candidate.node)) is not None:
        weight, activation = None, None
        reason = f"part of the float branch beside {owner}, which takes the largest part of its weight"
    rank, why = branch_rank(recipe, candidate.shape, weight, activation)
    words = (f"beside a float branch of rank {rank}" if rank else "", why)
    reason = "; ".join([reason, ", ".join(word for word in words if word)]).removesuffix("; ")
    # What leaves a layer is stored at 8 bits: the width is the consumer's to narrow, at its input.
    stored = activation and activation.model_copy(update={"bits": 8})
    return {"weight": weight, "input": activation, "output": stored}, reason


def branch_rank(
    recipe: QuantRecipe, shape: Sequence[int], weight: Scheme | None, activation: Scheme | None
) -> tuple[int, str]:
    """Rank of the float branch beside a layer, 0 for none, and why, where it is not the one asked for.

    The layer has out x columns multiplications at each place, the branch rank x (out + columns).

    Args:
        shape: of the weight, as in `Candidate`.
        weight, activation: the layer's schemes.
    """
    if not recipe.low_rank or weight is None or activation is None:
        return 0, ""
    if max(weight.bits, activation.bits) >= 8:
        return 0, "no float branch: its weight or its input has 8 bits"
    out, columns = shape[0], prod(shape[1:])
    most = out * columns // (out + columns)
    if most == 0:
        return 0, "no float branch: one of rank 1 would multiply more than the layer does"
    if most < recipe.low_rank:
        return most, f"not {recipe.low_rank}, which would multiply more than the layer does"
    return recipe.low_rank, ""


def _attention_ports(
    candidate: Candidate, rule: Rule | None, reason: str
) -> tuple[dict[Port, Scheme | None], str]:
    """The ports of an attention, and why they are what they are."""
    scheme = rule.activation if rule else None
    if scheme is None or candidate.obstacle:
        return {"products": None}, candidate.obstacle if scheme else reason
    around_zero = scheme.model_copy(update={"symmetric": True})
    # The softmax's weights are positive, so that an affine scheme has the zero point 0, too, and all codes.
    return {port: scheme if port == "probabilities" else around_zero for port in ATTENTION_PORTS}, reason


def _widened(scheme: Scheme, enough: int) -> Scheme:
    return scheme if scheme.bits >= enough else scheme.model_copy(update={"bits": 8})
