"""Biases in whole steps of an integer kernel's sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import lower

DEAD = "unet.mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def artifact(tiny_artifacts: dict[str, Artifact]) -> Artifact:
    """w4a4 with a channel that has a bias and no weights."""
    given = tiny_artifacts["w4a4"]
    codes, scales = given.codes[DEAD].clone(), given.scales[DEAD].clone()
    codes[3], scales[3] = 0, torch.finfo(torch.float32).tiny
    return dataclasses.replace(
        given, codes={**given.codes, DEAD: codes}, scales={**given.scales, DEAD: scales}
    )


def test_a_bias_is_a_whole_number_of_steps_and_hardly_moved(artifact: Artifact) -> None:
    graph = lower(artifact, "onnxruntime").graph
    state = {name: value.detach() for name, value in graph.named_parameters()}
    widths = {d.node: d.scheme.bits for d in artifact.manifest.decisions if d.port == "input" and d.scheme}
    rounded = 0
    for name, scale in artifact.scales.items():
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
