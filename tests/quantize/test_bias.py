"""Biases in whole steps of an integer kernel's sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flatq.quantize.artifact import Artifact
from flatq.quantize.bias import room_for_bias
from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import lower

DEAD = "unet.mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def artifact(tiny_artifacts: dict[str, Artifact]) -> Artifact:
    """w4a4 with a channel that has a bias and no weights."""
    given = tiny_artifacts["w4a4"]
    integers, scale = given.integers[DEAD].clone(), given.grids[DEAD].scale.clone()
    integers[3], scale[3] = 0, torch.finfo(torch.float32).tiny
    grid = dataclasses.replace(given.grids[DEAD], scale=scale)
    return dataclasses.replace(
        given, integers={**given.integers, DEAD: integers}, grids={**given.grids, DEAD: grid}
    )


def test_a_bias_is_a_whole_number_of_steps_and_hardly_moved(artifact: Artifact) -> None:
    graph = lower(artifact, "onnxruntime").graph
    state = {name: value.detach() for name, value in graph.named_parameters()}
    widths = {d.node: d.scheme.bits for d in artifact.manifest.decisions if d.port == "input" and d.scheme}
    rounded = 0
    for name, grid in artifact.grids.items():
        scale = grid.scale
        bias, given = state[f"{name}.bias"].double(), artifact.rest[f"{name}.bias"].double()
        if ".attentions." in name or name.endswith(
            (".conv_in", ".conv_out")
        ):  # a float result: kept as it is
            assert torch.equal(bias, given)
            continue
        low, high = artifact.ranges[f"{name}.input"][0].double().tolist()
        step = scale.double() * (max(high, 0.0) - min(low, 0.0)) / (2 ** widths[name] - 1)
        alive = torch.arange(len(scale)) != 3 if name == DEAD else torch.ones(len(scale), dtype=torch.bool)
        steps = (bias / step)[alive]
        assert float((steps - steps.round()).abs().max()) < 1e-2, name
        assert bool(((bias - given).abs() <= 0.501 * step)[alive].all()), name
        rounded += int((bias != given).any())
    assert rounded > 20


def test_a_channel_without_weights_keeps_its_bias(artifact: Artifact) -> None:
    graph = lower(artifact, "onnxruntime").graph
    bias = graph.get_parameter(f"{DEAD}.bias").detach()[3]
    given = artifact.rest[f"{DEAD}.bias"][3]
    assert float(given) != 0
    assert float(bias) == pytest.approx(float(given), rel=2.0**-20)


def test_a_bias_too_small_for_float32_to_divide_is_still_a_number(artifact: Artifact) -> None:
    rest = {**artifact.rest, f"{DEAD}.bias": torch.full_like(artifact.rest[f"{DEAD}.bias"], 1e-42)}
    graph = lower(dataclasses.replace(artifact, rest=rest), "onnxruntime").graph
    assert bool(graph.get_parameter(f"{DEAD}.bias").isfinite().all())


@pytest.mark.parametrize("granularity", ["per channel", "per tensor"])
def test_every_bias_fits_an_int32_and_no_output_moves_by_more_than_float32_does(granularity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, 3, 3, generator=generator)
    weight[1] *= 1e-12
    weight[2] = 0
    bias, input_scale = torch.tensor([0.1, 0.1, 0.1, 1e6, 0.0]), 0.01
    scale = weight.abs().amax((1, 2, 3)) / 7.5 if granularity == "per channel" else weight.abs().amax() / 7.5
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    codes = (weight / scale.reshape(-1, 1, 1, 1)).round().to(torch.int8)
    found, grid = room_for_bias(codes, QuantGrid(scale, -8, 7), bias, input_scale)
    raised = grid.scale
    assert bool((raised >= scale).all())
    assert bool((bias.abs().double() <= 2.0**28 * (1 + 1e-6) * raised.double() * input_scale).all())
    if granularity == "per channel":
        assert torch.equal(raised[[0, 4]], scale[[0, 4]])
        assert torch.equal(found[[0, 4]], codes[[0, 4]])
    assert not bool(found[1:3].any())
    # Sums of 36 products with 8-bit inputs of any sign.
    before, after = (
        c.double() * s.double().reshape(-1, 1, 1, 1) for c, s in ((codes, scale), (found, raised))
    )
    moved = (after - before).abs().sum((1, 2, 3)) * 255 * input_scale
    assert bool((moved <= 36 * 255 / 2.0**29 * 1.01 * bias.abs().amax()).all())
