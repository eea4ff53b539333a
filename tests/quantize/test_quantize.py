"""Quantizing a small UNet, and the graph it is lowered to."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, ModelConfig
from flatq.errors import ArtifactError
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.grid import activation_grid
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.trace import find_layers, trace
from flatq.recipe import PRESETS, Scheme

CALIBRATION = CalibrationPlan(images=2, steps=2)


@pytest.fixture(scope="module")
def lowered(tiny_artifacts: dict[str, Artifact]) -> dict[str, Lowered]:
    return {name: lower(tiny_artifacts[name], "onnxruntime") for name in ("w8a8", "w4a8")}


def _inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) * 999 // max(n - 1, 1)


def test_every_convolution_and_linear_layer_is_planned(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact]
) -> None:
    modules = dict(tiny.network().named_modules())
    wanted = {name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)}
    attention = {name for name, module in modules.items() if type(module).__name__ == "Attention"}
    assert len(wanted) > 20
    for artifact in tiny_artifacts.values():
        manifest = artifact.manifest
        assert set(manifest.planned) == set(artifact.integers) == set(artifact.grids) == wanted
        assert len(manifest.planned) == len(wanted)
        floats = [d for d in manifest.decisions if d.scheme is None]
        assert {d.node for d in floats} == attention | {"unet.conv_in", "unet.conv_out"}
        products = [d for d in floats if d.kind == "attention"]
        assert all("stay float" in d.reason and d.macs > 0 for d in products)
        assert {d.port for d in floats if d.kind == "conv2d"} == {"input", "output"}


def test_codes_are_the_nearest_to_the_weights(tiny: Checkpoint, tiny_artifacts: dict[str, Artifact]) -> None:
    state = tiny.network().state_dict()
    for name, narrow in (("w8a8", 127), ("w4a8", 7)):
        artifact = tiny_artifacts[name]
        for layer, codes in artifact.integers.items():
            top = 127 if layer in ("unet.conv_in", "unet.conv_out") else narrow
            scale = artifact.grids[layer].scale
            assert scale.shape == (codes.shape[0],)
            columns = scale.reshape(-1, *[1] * (codes.ndim - 1))
            assert -top - 1 <= int(codes.min()) <= int(codes.max()) <= top
            error = (codes * columns - state[f"{layer}.weight"]).abs()
            assert bool((error <= columns * 0.5001).all()), layer


def test_the_lowered_graph_holds_quantized_operators(
    lowered: dict[str, Lowered], tiny_artifacts: dict[str, Artifact]
) -> None:
    for name, result in lowered.items():
        targets = [str(n.target) for n in result.graph.graph.nodes if n.op == "call_function"]
        counts = {t: targets.count(t) for t in set(targets) if t.startswith("quantized_decomposed")}
        assert counts["quantized_decomposed.dequantize_per_channel.default"] == len(
            tiny_artifacts[name].manifest.planned
        )
        assert counts["quantized_decomposed.quantize_per_tensor.default"] > 10
        assert set(result.layers) == set(tiny_artifacts[name].integers)


def test_the_same_seed_gives_the_same_bytes(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    again = quantize_checkpoint(tiny, PRESETS["w4a8"], calibration=CALIBRATION, threads=1)
    write_artifact(tiny_artifacts["w4a8"], tmp_path / "a")
    write_artifact(again, tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["flatq.json", "ranges.safetensors", "weights.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert json.loads((tmp_path / "a" / "flatq.json").read_text())["parent"]["sha256"] == tiny.digest


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero_point"),
    [
        (-1.0, 1.55, Scheme(bits=8), 0.01, 100),
        (0.0, 2.55, Scheme(bits=8), 0.01, 0),
        (1.0, 2.55, Scheme(bits=8), 0.01, 0),  # widened to hold 0
        (-2.55, -1.0, Scheme(bits=8), 0.01, 255),
        (-0.5, 1.0, Scheme(bits=4), 0.1, 5),
        (0.0, 0.0, Scheme(bits=8), 1.0, 0),
        (0.0, 0.0, Scheme(bits=4, symmetric=True), 1.0, 0),
        (-1.27, 0.3, Scheme(bits=8, symmetric=True), 0.01, 0),
        (-0.2, 0.7, Scheme(bits=4, symmetric=True), 0.1, 0),
    ],
)
def test_activation_parameters_are_the_closed_form(
    low: float, high: float, scheme: Scheme, scale: float, zero_point: int
) -> None:
    found = activation_grid(low, high, scheme)
    assert found.scale.dtype == torch.float32
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert int(found.zero_point) == zero_point
    assert found.low <= zero_point <= found.high


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("high", [1e-45, 1e-40, 3e38])
def test_extreme_ranges_give_a_usable_scale(high: float, symmetric: bool) -> None:
    scale = float(activation_grid(0.0, high, Scheme(bits=8, symmetric=symmetric)).scale)
    assert math.isfinite(scale)
    assert scale > 0


def test_the_error_is_small_at_8_bits_and_larger_at_4(tiny: Checkpoint, lowered: dict[str, Lowered]) -> None:
    x, t = _inputs(8)
    with torch.no_grad():
        exact = tiny.network()(x, t)
        errors = {
            name: float((result.graph(x, t) - exact).norm() / exact.norm())
            for name, result in lowered.items()
        }
    # Random weights, and inputs beyond the few that were calibrated on; a trained network does better.
    assert 0 < errors["w8a8"] < 0.08
    assert 2 * errors["w8a8"] < errors["w4a8"] < 0.7


def test_the_lowered_graph_runs_at_any_batch_size(lowered: dict[str, Lowered]) -> None:
    x, t = _inputs(70)
    with torch.no_grad():
        together = lowered["w8a8"].graph(x, t)
        apart = torch.cat([lowered["w8a8"].graph(x[i : i + 35], t[i : i + 35]) for i in (0, 35)])
        one = lowered["w8a8"].graph(x[:1], t[:1])
    assert together.shape == (70, 3, 16, 16)
    # A value that falls on the edge of two codes may be rounded either way by another summation order.
    np.testing.assert_allclose(together, apart, atol=0.05)
    assert one.shape == (1, 3, 16, 16)


def _upgraded(network: torch.nn.Module, model: ModelConfig) -> fx.GraphModule:
    """The trace as another version of torch or diffusers may make it: other names, and an operator more."""
    graph = trace(network, model)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.name = f"renamed_{node.name}"
    layer = find_layers(graph)[3].node
    with graph.graph.inserting_before(layer):
        copied = graph.graph.call_function(torch.ops.aten.clone.default, (layer.args[0],))
    copied.meta = dict(layer.args[0].meta)
    layer.replace_input_with(layer.args[0], copied)
    graph.recompile()
    return graph


def test_the_same_layers_in_another_graph_are_lowered(
    tiny_artifacts: dict[str, Artifact], lowered: dict[str, Lowered], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lowered["w4a8"]
    monkeypatch.setattr("flatq.quantize.lowering.trace", _upgraded)
    found = lower(tiny_artifacts["w4a8"], "onnxruntime")
    assert found.layers.keys() == expected.layers.keys()
    with torch.no_grad():
        assert torch.equal(found.graph(*_inputs(2)), expected.graph(*_inputs(2)))


@pytest.mark.parametrize("how", ["missing", "reshaped", "in another order"])
def test_other_layers_are_refused(how: str, tiny_artifacts: dict[str, Artifact]) -> None:
    artifact = tiny_artifacts["w8a8"]
    first, *rest = artifact.manifest.decisions
    decisions = {
        "missing": [d for d in rest if d.node != first.node],
        "reshaped": [
            d.model_copy(update={"shape": (1, *d.shape[1:])}) if d.node == first.node else d
            for d in artifact.manifest.decisions
        ],
        "in another order": artifact.manifest.decisions[::-1],
    }[how]
    manifest = artifact.manifest.model_copy(update={"decisions": tuple(decisions)})
    with pytest.raises(ArtifactError, match="other layers") as caught:
        lower(dataclasses.replace(artifact, manifest=manifest), "onnxruntime")
    assert f"torch {version('torch')}" in str(caught.value.expected)


def test_tensors_that_do_not_fit_are_refused(tiny_artifacts: dict[str, Artifact]) -> None:
    artifact = tiny_artifacts["w8a8"]
    rest = dict(artifact.rest)
    rest.popitem()
    with pytest.raises(ArtifactError, match="do not fit"):
        lower(dataclasses.replace(artifact, rest=rest), "onnxruntime")
