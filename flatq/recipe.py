"""What to quantize and how: schemes, rules, recipes, and the decisions that `flatq.layer_decisions` makes.

Pure data, no torch: the same types stand in the manifest of an artifact and in a report. How a decision
becomes a graph is `flatq.quantize`'s work.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from flatq.errors import UsageError

__all__ = [
    "ACTIVATION_BITS",
    "ATTENTION_PORTS",
    "EDGES_FROM",
    "PRESETS",
    "WEIGHT_BITS",
    "ActivationRange",
    "Candidate",
    "Decision",
    "Edges",
    "Granularity",
    "Port",
    "QuantRecipe",
    "Rule",
    "Scheme",
    "WeightRange",
    "branch_names",
    "branch_of",
    "half_name",
    "recipe_for_bits",
    "whole_name",
]

Kind = Literal["conv2d", "linear", "attention"]
Port = Literal["weight", "input", "output", "products", "query", "key", "probabilities", "value"]

ATTENTION_PORTS: tuple[Port, ...] = ("query", "key", "probabilities", "value")
"""The factors of an attention's two products, in the order in which they are multiplied."""

ActivationRange = Literal["minmax", "percentile", "mse"]
WeightRange = Literal["minmax", "mse"]
Granularity = Literal["per_tensor", "per_channel"]
Edges = Literal["float", "8", "same"]

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 32)

EDGES_FROM = 7
"""First and last layers keep weights of so many bits: 7 bits are taken for CPUs on which 8 saturate."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scheme(_Frozen):
    """How the values of one tensor become integers.

    Attributes:
        bits: width of the code, 2 to 8.
        granularity: one scale for the tensor or one for each output channel (axis 0, weights only).
        symmetric: True fixes the zero point at 0. Weights are always symmetric. For activations it is a
            floor, not the last word: a target that knows only symmetric integers lowers them so.
    """

    bits: int = Field(ge=2, le=8)
    granularity: Granularity = "per_tensor"
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
        weight, activation: the schemes; None leaves that side in float. An attention has no weight; the
            activation speaks of the factors of both its products.
        reason: said of every decision the rule makes.
    """

    kinds: tuple[Kind, ...]
    match: str = "*"
    weight: Scheme | None = None
    activation: Scheme | None = None
    reason: str


class QuantRecipe(_Frozen):
    """An ordered list of rules; the first that matches a candidate decides it. And how ranges are found.

    Attributes:
        edges: the first and the last layers, which read the image and yield the prediction. "8" gives them 8
            bits where the rest has fewer (weights of 7 bits stay 7). "float" does so, too, and rounds neither
            the image nor what either layer yields: at low noise a rounded image looks like one with more
            noise, and noise is what the network predicts. "same" treats them as the rest.
        activation_range: which range of the values that calibration sees a scale covers: all of them, all but
            the outermost on either side, or the one with the least squared error.
        percentile: of the values that a `percentile` range leaves below its upper end, and above its lower.
        weight_range: the same for weights, each scale by its own values.
        split_shortcuts: a convolution that reads two concatenated tensors becomes one for each, with ranges
            and weight scales of their own (Li et al. 2023, Q-Diffusion, section 4.2), where its input is
            quantized.
        low_rank: rank of the float branch beside every layer whose weight and input have less than 8 bits
            (Li et al. 2024, SVDQuant); 0 for none.
        equalize: alpha of SmoothQuant's equalization across channels (Xiao et al. 2023), where outliers
            dominate and the factors fold exactly; None leaves it out.
    """

    name: str
    rules: tuple[Rule, ...]
    edges: Edges = "float"
    activation_range: ActivationRange = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    weight_range: WeightRange = "minmax"
    split_shortcuts: bool = False
    low_rank: int = Field(default=0, ge=0)
    equalize: float | None = Field(default=None, ge=0, le=1)


class Candidate(_Frozen):
    """A place in the traced network that could be quantized.

    Attributes:
        node: dotted module name, e.g. `down_blocks.0.resnets.0.conv1`; or `half_name` of one.
        kind: what it computes.
        shape: of the weight ([out, in, kh, kw] or [out, in]); empty for an attention product.
        macs: multiply-accumulates for one image.
        group: which half of a split convolution it is, 0 or 1; else 0.
        obstacle: why it can only be float; empty where nothing stands in the way.
        reads_image: whether the layer's input is the image, with no other layer in between.
        predicts: whether the layer's output is the network's prediction, or a part of it.
    """

    node: str
    kind: Kind
    shape: tuple[int, ...] = ()
    macs: int = 0
    group: int = Field(default=0, ge=0)
    obstacle: str = ""
    reads_image: bool = False
    predicts: bool = False


class Decision(_Frozen):
    """What happens to one port of one candidate, and why.

    Attributes:
        node, kind, shape, macs: of the candidate.
        port: the tensor spoken of. A layer has its `weight`, the activation at its `input` and the one at
            its `output` (quantized only by targets that place Q/DQ there). An attention has its two
            `products` where they are float; else the `ATTENTION_PORTS`, in front of each its own Q/DQ.
        group: index of the range group: half of a split convolution, 0 or 1; else 0.
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

    @property
    def range_name(self) -> str:
        """Under which the port's ranges stand in an artifact, those of all groups together."""
        return f"{whole_name(self.node, self.group)}.{self.port}"


def half_name(node: str, group: int) -> str:
    """The name of half a split convolution: it is a layer of its own."""
    return f"{node}.half{group}"


def whole_name(node: str, group: int = 0) -> str:
    """The name of the convolution that a layer is half of; its own, where it is no half."""
    return node.removesuffix(f".half{group}")


def branch_names(node: str) -> tuple[str, str]:
    """Names of the two layers that the float branch beside a layer is made of."""
    return f"{node}.low_rank.down", f"{node}.low_rank.up"


def branch_of(node: str) -> str | None:
    """The layer beside which a layer is part of the float branch; None for any other."""
    owner, mark, _ = node.rpartition(".low_rank.")
    return owner if mark else None


def recipe_for_bits(
    bits: int = 8,
    activation_bits: int = 8,
    *,
    granularity: Granularity = "per_channel",
    symmetric: bool = False,
    edges: Edges = "float",
    activation_range: ActivationRange = "mse",
    percentile: float = 99.99,
    weight_range: WeightRange = "minmax",
    split_shortcuts: bool = False,
    low_rank: int = 0,
    equalize: float | None = None,
    attention_bits: int = 32,
) -> QuantRecipe:
    """One scheme for every convolution and linear layer, and maybe one for attention's products.

    Args:
        bits: width of the weights.
        activation_bits: width of the activations; 32 leaves them in float.
        granularity: of the weights.
        symmetric: activations with zero point 0 for every target.
        edges, activation_range, percentile, weight_range, split_shortcuts, low_rank, equalize: as in
            `QuantRecipe`.
        attention_bits: width of the factors of attention's products; 32 leaves them in float. Queries, keys
            and values are symmetric: OpenVINO wants it of a second factor, TensorRT of both.

    Returns:
        A recipe named by its widths, as `w4a8`, and by what else is not as the presets have it.

    Raises:
        UsageError: a width, or another value, that is not offered; a branch that no layer would get.
    """
    choices = {
        "--bits": (bits, WEIGHT_BITS),
        "--act-bits": (activation_bits, ACTIVATION_BITS),
        "--attention-bits": (attention_bits, ACTIVATION_BITS),
        "--granularity": (granularity, get_args(Granularity)),
        "--first-last": (edges, get_args(Edges)),
        "--act-range": (activation_range, get_args(ActivationRange)),
        "--weight-range": (weight_range, get_args(WeightRange)),
    }
    checks: list[tuple[str, Any, bool, str]] = [
        (option, value, value in offered, "one of " + ", ".join(map(str, offered)))
        for option, (value, offered) in choices.items()
    ]
    checks += [
        ("--percentile", percentile, 50 < percentile <= 100, "above 50, at most 100"),
        ("--equalize", equalize, 0 <= (equalize or 0) <= 1, "an alpha of 0 to 1"),
        ("--low-rank", low_rank, low_rank >= 0, "a rank, or 0 for no branch"),
    ]
    for option, value, fits, expected in checks:
        if not fits:
            raise UsageError(f"{option} is not valid", expected=expected, got=str(value))
    if low_rank and max(bits, activation_bits) >= 8:
        raise UsageError(
            "--low-rank has no layer to put a float branch beside",
            expected="weights and activations of less than 8 bits",
            got=f"--bits {bits}, --act-bits {activation_bits}",
            next_step="leave --low-rank out, or take --bits 4 --act-bits 4",
        )
    floats, attends = activation_bits == 32, attention_bits != 32
    ranged = not floats or attends
    variations = {
        f"att{attention_bits}": attends,
        "tensor": granularity == "per_tensor",
        "sym": symmetric and ranged,
        "same": edges == "same" and not (floats and bits >= EDGES_FROM),
        "edges8": edges == "8" and not floats,
        activation_range: activation_range != "mse" and ranged,
        f"w{weight_range}": weight_range != "minmax",
        "split": split_shortcuts and not floats,
        f"lr{low_rank}": low_rank > 0,
        "eq": equalize is not None and not floats,
    }
    base = f"w{bits}" if floats else f"w{bits}a{activation_bits}"
    name = "-".join([base, *(word for word, varies in variations.items() if varies)])
    return QuantRecipe(
        name=name,
        rules=(
            Rule(
                kinds=("conv2d", "linear"),
                weight=Scheme(bits=bits, granularity=granularity, symmetric=True),
                activation=None if floats else Scheme(bits=activation_bits, symmetric=symmetric),
                reason=f"recipe {name} quantizes every convolution and linear layer",
            ),
            Rule(
                kinds=("attention",),
                activation=Scheme(bits=attention_bits, symmetric=symmetric) if attends else None,
                reason=f"recipe {name} quantizes the factors of attention's products"
                if attends
                else "attention products stay float: CPU runtimes gain no time by integers there "
                "(--attention-bits quantizes them)",
            ),
        ),
        edges=edges,
        activation_range=activation_range,
        percentile=percentile,
        weight_range=weight_range,
        split_shortcuts=split_shortcuts and not floats,
        low_rank=low_rank,
        equalize=None if floats else equalize,
    )


PRESETS: dict[str, QuantRecipe] = {
    recipe.name: recipe
    for recipe in (
        recipe_for_bits(8),
        recipe_for_bits(4),
        recipe_for_bits(4, 4),
        recipe_for_bits(8, 32),
        recipe_for_bits(4, 32),
    )
}
