"""Plans: what a recipe decides on a list of layers, and the reasons it gives."""

from __future__ import annotations

import pytest

from flatq.layer_decisions import decide_layers
from flatq.recipe import (
    ATTENTION_PORTS,
    PRESETS,
    Candidate,
    QuantRecipe,
    Rule,
    Scheme,
    branch_names,
    branch_of,
    half_name,
    recipe_for_bits,
)

LAYERS = [
    Candidate(node="embed", kind="linear", shape=(8, 4), macs=32),
    Candidate(node="first", kind="conv2d", shape=(8, 3, 3, 3), reads_image=True),
    Candidate(node="middle", kind="conv2d", shape=(8, 8, 3, 3)),
    Candidate(node="attention", kind="attention"),
    Candidate(node=half_name("shortcut", 0), kind="conv2d", shape=(8, 4, 1, 1)),
    Candidate(node=half_name("shortcut", 1), kind="conv2d", shape=(8, 4, 1, 1), group=1),
    Candidate(node="last", kind="conv2d", shape=(3, 8, 3, 3), predicts=True),
]


def _widths(recipe: QuantRecipe) -> dict[str, tuple[int | None, ...]]:
    found: dict[str, list[int | None]] = {}
    for decision in decide_layers(recipe, LAYERS):
        found.setdefault(decision.node, []).append(decision.scheme and decision.scheme.bits)
    return {node: tuple(bits) for node, bits in found.items()}


@pytest.mark.parametrize(
    ("bits", "activation_bits", "edge", "rest"),
    [
        (8, 8, (8, 8, 8), (8, 8, 8)),
        (4, 8, (8, 8, 8), (4, 8, 8)),
        (2, 4, (8, 8, 8), (2, 4, 8)),
        (7, 8, (7, 8, 8), (7, 8, 8)),  # 8 would saturate where 7 were asked for
        (7, 6, (7, 8, 8), (7, 6, 8)),
        (3, 32, (8, None, None), (3, None, None)),
    ],
)
def test_the_first_and_the_last_layer_have_8_bits(
    bits: int, activation_bits: int, edge: tuple[int | None, ...], rest: tuple[int | None, ...]
) -> None:
    found = _widths(recipe_for_bits(bits, activation_bits, edges="8"))
    assert found["first"] == found["last"] == edge
    assert all(found[node] == rest for node in found if node not in ("first", "last", "attention"))
    same = _widths(recipe_for_bits(bits, activation_bits, edges="same"))
    assert all(same[node] == rest for node in same if node != "attention")
    image = _widths(recipe_for_bits(bits, activation_bits))
    assert image == found | {"first": (edge[0], None, None), "last": (*edge[:2], None)}


def test_the_plan_says_why_the_image_and_the_prediction_are_not_rounded() -> None:
    reasons = {(d.node, d.port): d.reason for d in decide_layers(PRESETS["w8a8"], LAYERS) if d.scheme is None}
    assert "at low noise its rounding looks like the noise" in reasons["first", "input"]
    assert "what the network predicts is not rounded" in reasons["last", "output"]
    assert set(reasons) == {
        ("first", "input"),
        ("first", "output"),
        ("attention", "products"),
        ("last", "output"),
    }


def test_the_plan_says_why_an_edge_is_wider() -> None:
    reasons = {d.node: d.reason for d in decide_layers(PRESETS["w4a8"], LAYERS) if d.port == "weight"}
    assert "the first layer has 8 bits" in reasons["first"]
    assert "the last layer has 8 bits" in reasons["last"]
    assert "recipe w4a8" in reasons["middle"]
    assert "half 1" in reasons["shortcut.half1"]
    assert all(
        "has 8 bits" not in d.reason for d in decide_layers(PRESETS["w8a8"], LAYERS) if d.port == "weight"
    )


def test_a_rule_speaks_of_both_halves_and_ranges_stand_together() -> None:
    rule = Rule(
        kinds=("conv2d",), match="shortcut", weight=Scheme(bits=4), activation=Scheme(bits=8), reason="r"
    )
    decisions = [d for d in decide_layers(QuantRecipe(name="one", rules=(rule,)), LAYERS) if d.scheme]
    assert {d.node for d in decisions} == {"shortcut.half0", "shortcut.half1"}
    assert [(d.range_name, d.group) for d in decisions if d.port == "input"] == [
        ("shortcut.input", 0),
        ("shortcut.input", 1),
    ]


def test_a_float_branch_stands_beside_layers_of_few_bits_and_costs_no_more_than_they_do() -> None:
    recipe = recipe_for_bits(4, 4, low_rank=16)
    down, up = branch_names("middle")
    candidates = [
        Candidate(node="first", kind="conv2d", shape=(32, 3, 3, 3), reads_image=True),
        Candidate(node="middle", kind="conv2d", shape=(32, 32, 3, 3)),
        Candidate(node=down, kind="conv2d", shape=(16, 32, 3, 3)),
        Candidate(node=up, kind="conv2d", shape=(32, 16, 1, 1)),
        Candidate(node="thin", kind="linear", shape=(24, 24)),
        Candidate(node="row", kind="linear", shape=(1, 24)),
        Candidate(node="last", kind="conv2d", shape=(3, 32, 3, 3), predicts=True),
    ]
    decisions = {d.node: d for d in decide_layers(recipe, candidates) if d.port == "input"}
    bits = {name: decision.scheme and decision.scheme.bits for name, decision in decisions.items()}
    assert bits == {"first": None, "middle": 4, down: None, up: None, "thin": 4, "row": 4, "last": 8}
    assert decisions["middle"].reason.endswith("; beside a float branch of rank 16")
    assert "part of the float branch beside middle" in decisions[down].reason
    assert "last layer has 8 bits" in decisions["last"].reason
    # 12 x (24 + 24) multiplications, as many as the layer's own 24 x 24.
    assert "rank 12, not 16, which would multiply more" in decisions["thin"].reason
    assert "no float branch: one of rank 1 would multiply more" in decisions["row"].reason
    assert (branch_of(down), branch_of(up), branch_of("middle")) == ("middle", "middle", None)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_attention_has_a_scheme_for_each_factor_of_its_products(bits: int) -> None:
    recipe = recipe_for_bits(8, attention_bits=bits)
    assert recipe.name == f"w8a8-att{bits}"
    found = [d for d in decide_layers(recipe, LAYERS) if d.kind == "attention"]
    assert tuple(d.port for d in found) == ATTENTION_PORTS
    for decision in found:
        # Positive values have the zero point 0 in an affine scheme, too, and twice as many codes.
        assert decision.scheme == Scheme(bits=bits, symmetric=decision.port != "probabilities")
        assert f"w8a8-att{bits}" in decision.reason
        assert decision.range_name == f"attention.{decision.port}"
    symmetric = decide_layers(recipe_for_bits(8, attention_bits=bits, symmetric=True), LAYERS)
    assert all(d.scheme and d.scheme.symmetric for d in symmetric if d.kind == "attention")
    others = [d for d in decide_layers(PRESETS["w8a8"], LAYERS) if d.kind != "attention"]
    assert [d.scheme for d in decide_layers(recipe, LAYERS) if d.kind != "attention"] == [
        d.scheme for d in others
    ]


def test_attention_is_float_by_default_and_where_something_stands_in_the_way() -> None:
    (plain,) = (d for d in decide_layers(PRESETS["w8a8"], LAYERS) if d.kind == "attention")
    assert (plain.port, plain.scheme) == ("products", None)
    assert "attention products stay float" in plain.reason
    masked = Candidate(node="attention", kind="attention", obstacle="it has a mask")
    (found,) = decide_layers(recipe_for_bits(8, attention_bits=8), [masked])
    assert (found.port, found.scheme, found.reason) == ("products", None, "it has a mask")
    assert "obstacle" not in found.model_dump()


def test_one_layer_may_read_the_image_and_predict() -> None:
    only = Candidate(node="only", kind="linear", shape=(3, 3), reads_image=True, predicts=True)
    found = {d.port: d.scheme and d.scheme.bits for d in decide_layers(PRESETS["w4a4"], [only])}
    assert found == {"weight": 8, "input": None, "output": None}
    assert all(d.scheme for d in decide_layers(recipe_for_bits(4, 4, edges="same"), [only]))
