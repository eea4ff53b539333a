"""What to quantize and how: schemes, rules, and the decisions a recipe makes on a list of layers.

Pure data, no torch: the same types stand in the manifest of an artifact and in a report. How a decision
becomes a graph is `flatq.quantize`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import UsageError

__all__ = [
    "ACTIVATION_BITS",
    "PRESETS",
    "WEIGHT_BITS",
    "Candidate",
    "Decision",
    "QuantRecipe",
    "Rule",
    "Scheme",
    "plan",
    "recipe_for_bits",
]

Kind = Literal["conv2d", "linear", "attention"]
Port = Literal["weight", "input", "output", "products"]

WEIGHT_BITS = (4, 8)
ACTIVATION_BITS = (4, 8, 32)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scheme(_Frozen):
    """How the values of one tensor become integers.

    Attributes:
        bits: width of the code, 4 or 8.
        granularity: one scale for the tensor or one for each output channel (axis 0, weights only).
        symmetric: True fixes the zero point at 0. Weights are always symmetric. For activations it is a
            floor, not the last word: a target that knows only symmetric integers lowers them so.
    """

    bits: int
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    symmetric: bool = False

    def describe(self) -> str:
        """A short form such as `int4 per-channel symmetric`."""
        form = "symmetric" if self.symmetric else "affine"
        return f"int{self.bits} {self.granularity.replace('_', '-')} {form}"


class Rule(_Frozen):
    """Applies its schemes to the candidates whose kind and name it matches.

    Attributes:
        kinds: the kinds of layer it speaks of.
        match: shell pattern over the layer's dotted name.
        weight, activation: the schemes; None leaves that side in float.
        reason: said of every decision the rule makes.
    """

    kinds: tuple[Kind, ...]
    match: str = "*"
    weight: Scheme | None = None
    activation: Scheme | None = None
    reason: str


class QuantRecipe(_Frozen):
    """An ordered list of rules; the first that matches a candidate decides it."""

    name: str
    rules: tuple[Rule, ...]


class Candidate(_Frozen):
    """A place in the traced network that could be quantized.

    Attributes:
        node: dotted module name, e.g. `down_blocks.0.resnets.0.conv1`.
        kind: what it computes.
        shape: of the weight ([out, in, kh, kw] or [out, in]); empty for an attention product.
        macs: multiply-accumulates for one image.
    """

    node: str
    kind: Kind
    shape: tuple[int, ...] = ()
    macs: int = 0


class Decision(_Frozen):
    """What happens to one port of one candidate, and why.

    Attributes:
        node, kind, shape, macs: of the candidate.
        port: the tensor spoken of. A layer has its `weight`, the activation at its `input` and the one at
            its `output` (quantized only by targets that place Q/DQ there); attention has its two `products`.
        group: index of the range group (timestep group, or half of a split shortcut); 0 where there is one.
        scheme: None leaves the port in float.
        reason: one clause.
    """

    node: str
    kind: Kind
    port: Port
    shape: tuple[int, ...] = ()
    macs: int = 0
    group: int = Field(default=0, ge=0)
    scheme: Scheme | None
    reason: str


def _preset(name: str, weight_bits: int, activation_bits: int | None) -> QuantRecipe:
    weight = Scheme(bits=weight_bits, granularity="per_channel", symmetric=True)
    activation = None if activation_bits is None else Scheme(bits=activation_bits)
    return QuantRecipe(
        name=name,
        rules=(
            Rule(
                kinds=("conv2d", "linear"),
                weight=weight,
                activation=activation,
                reason=f"preset {name} quantizes every convolution and linear layer",
            ),
            Rule(
                kinds=("attention",),
                reason="attention products stay float: integer softmax and products cost CPU runtimes "
                "more time than they save",
            ),
        ),
    )


PRESETS: dict[str, QuantRecipe] = {
    name: _preset(name, weight, activation)
    for name, weight, activation in (
        ("w8a8", 8, 8),
        ("w4a8", 4, 8),
        ("w4a4", 4, 4),
        ("w8", 8, None),
        ("w4", 4, None),
    )
}


def recipe_for_bits(bits: int, activation_bits: int = 8) -> QuantRecipe:
    """The preset for a pair of widths.

    Args:
        bits: width of the weights.
        activation_bits: width of the activations; 32 leaves them in float.

    Raises:
        UsageError: a width, or a pair of widths, that is not offered.
    """
    name = f"w{bits}" if activation_bits == 32 else f"w{bits}a{activation_bits}"
    if name not in PRESETS:
        raise UsageError(
            f"{bits}-bit weights with {activation_bits}-bit activations are not offered",
            expected="one of " + ", ".join(PRESETS),
            got=name,
            next_step=f"use --bits {' or '.join(map(str, WEIGHT_BITS))} "
            f"with --act-bits {', '.join(map(str, ACTIVATION_BITS))}",
        )
    return PRESETS[name]


def plan(recipe: QuantRecipe, candidates: Sequence[Candidate]) -> list[Decision]:
    """Decide every candidate; the first matching rule wins, and none is left out.

    Returns:
        For each layer its weight, input and output, for each attention its products, in the order of the
        candidates. A layer whose activations are quantized but whose weight is not has no integer kernel
        anywhere, so that combination is not planned.
    """
    decisions = []
    for candidate in candidates:
        rule = next(
            (r for r in recipe.rules if candidate.kind in r.kinds and fnmatchcase(candidate.node, r.match)),
            None,
        )
        reason = rule.reason if rule else f"no rule of recipe {recipe.name} matches"
        weight = rule.weight if rule else None
        activation = rule.activation if rule and weight else None
        ports: dict[Port, Scheme | None] = {"weight": weight, "input": activation, "output": activation}
        if candidate.kind == "attention":
            ports = {"products": None}
        for port, scheme in ports.items():
            # What leaves a layer is stored at 8 bits: the width is the consumer's to narrow, at its input.
            stored = scheme.model_copy(update={"bits": 8}) if scheme and port == "output" else scheme
            decisions.append(Decision(**candidate.model_dump(), port=port, scheme=stored, reason=reason))
    return decisions
