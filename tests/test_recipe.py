"""Recipes: what they are named, and which are refused."""

from __future__ import annotations

import pytest

from flatq.errors import UsageError
from flatq.recipe import PRESETS, recipe_for_bits


def test_presets_are_named_by_their_widths() -> None:
    assert list(PRESETS) == ["w8a8", "w4a8", "w4a4", "w8", "w4"]
    assert all(not recipe.split_shortcuts for recipe in PRESETS.values())
    assert recipe_for_bits(4) == PRESETS["w4a8"]


def test_names_tell_recipes_apart() -> None:
    assert recipe_for_bits(3, 6, granularity="per_tensor", symmetric=True).name == "w3a6-tensor-sym"
    assert recipe_for_bits(4, edges="same").name == "w4a8-same"
    assert recipe_for_bits(8, edges="same").name == "w8a8-same"
    assert recipe_for_bits(8, edges="8").name == "w8a8-edges8"
    assert [recipe_for_bits(4, 32, edges=edges).name for edges in ("8", "same")] == ["w4", "w4-same"]
    everything = recipe_for_bits(4, 4, activation_range="minmax", weight_range="mse", split_shortcuts=True)
    assert everything.name == "w4a4-minmax-wmse-split"
    assert recipe_for_bits(8, 32, edges="same", split_shortcuts=True, activation_range="minmax").name == "w8"
    assert recipe_for_bits(4, 4, split_shortcuts=True, low_rank=16).name == "w4a4-split-lr16"


@pytest.mark.parametrize(("bits", "activation_bits"), [(8, 4), (4, 8), (4, 32)])
def test_a_branch_that_no_layer_gets_is_refused(bits: int, activation_bits: int) -> None:
    with pytest.raises(UsageError, match="no layer to put a float branch beside"):
        recipe_for_bits(bits, activation_bits, low_rank=16)
    with pytest.raises(UsageError, match="--low-rank is not valid"):
        recipe_for_bits(4, 4, low_rank=-1)


def test_attention_alone_keeps_what_ranges_are_asked_for() -> None:
    recipe = recipe_for_bits(8, 32, attention_bits=8, activation_range="minmax", equalize=0.5)
    assert recipe.name == "w8-att8-minmax"
    assert recipe.activation_range == "minmax"
    assert recipe.equalize is None
    with pytest.raises(UsageError, match="--attention-bits is not valid"):
        recipe_for_bits(8, attention_bits=3)


@pytest.mark.parametrize("arguments", [(1,), (9,), (8, 3), (8, 16)])
def test_widths_that_are_not_offered_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="is not valid"):
        recipe_for_bits(*arguments)
