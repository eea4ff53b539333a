"""Equalization across channels: the fold is exact, and only outliers are touched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.quantize.equalize import equalize
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.trace import trace
from flatq.recipe import recipe_for_bits
from flatq.runtime.torch import TorchRuntime

NORM = "mid_block.attentions.0.group_norm"
LAYERS = tuple(f"unet.mid_block.attentions.0.to_{letter}" for letter in "qkv")


@pytest.fixture(scope="module")
def planted(tiny: Checkpoint) -> Checkpoint:
    """`tiny` with one channel a hundred times as large between a normalization and what reads it."""
    state = {name: value.clone() for name, value in tiny.weights["raw"].items()}
    state[f"{NORM}.bias"] = torch.linspace(-0.5, 0.5, len(state[f"{NORM}.bias"]))
    for part in ("weight", "bias"):
        state[f"{NORM}.{part}"][3] *= 100
    for layer in LAYERS:
        state[f"{layer.removeprefix('unet.')}.weight"][:, 3] /= 100
    return dataclasses.replace(tiny, weights={"raw": state})


def test_the_fold_is_exact_and_the_integers_are_better(planted: Checkpoint) -> None:
    few = CalibrationPlan(images=2, steps=2)
    plain, equal = (
        quantize_checkpoint(planted, recipe_for_bits(8, equalize=a), calibration=few, threads=1)
        for a in (None, 0.5)
    )
    said = {d.node: d.reason for d in equal.manifest.decisions if d.port == "input"}
    for layer, reason in said.items():
        assert ("channels equalized with alpha 0.5" in reason) == (layer in LAYERS), layer
    assert "channels not equalized" in said["unet.up_blocks.0.attentions.0.to_q"]

    network = planted.network()
    weights = {n: network.get_parameter(f"{n}.weight").detach().double() for n in LAYERS}
    norm = {
        part: network.get_parameter(f"unet.{NORM}.{part}").detach().double() for part in ("weight", "bias")
    }
    factor = norm["weight"] / equal.rest[f"unet.{NORM}.weight"].double()
    # The normalization's bias moves by the same factors: the product with the weights stays, to float32.
    torch.testing.assert_close(norm["bias"], equal.rest[f"unet.{NORM}.bias"].double() * factor)
    for name, weight in weights.items():
        step = equal.grids[name].scale.double()[:, None]
        error = (equal.integers[name] * step - weight * factor).abs()
        assert bool((error <= step * 0.5001).all()), name

    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 300, 600, 999])
    with torch.no_grad():
        exact = network(x, t)
        before, after = (float((lower(a, "generic").graph(x, t) - exact).norm()) for a in (plain, equal))
    assert after < before


def test_in_float_nothing_changes_but_the_last_bits(planted: Checkpoint) -> None:
    network, folded = planted.network(), planted.network()
    with TorchRuntime(network, threads=1) as runtime:
        inputs = collect_inputs(
            runtime, planted.process, CalibrationPlan(images=2, steps=2), planted.model.image_shape
        )
    said = equalize(folded, trace(folded, planted.model), inputs, 0.5)
    assert {name for name, words in said.items() if "not" not in words} == set(LAYERS)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 3, 16, 16, generator=generator).double(), torch.tensor([0, 300, 600, 999])
    for one in (network, folded):
        one.double()
    with torch.no_grad():
        before, after = network(x, t), folded(x, t)
    # The factors are applied in float64 and stored in float32: 2^-24 of each weight.
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="--equalize is not valid"):
        recipe_for_bits(8, equalize=alpha)
