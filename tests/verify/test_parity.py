"""Parity: sound exports pass, and a fault in one layer is found and named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import faults
import numpy as np
import onnx
import pytest
import torch
from exports import Deployments

from flatq.checkpoint import Checkpoint
from flatq.deployment import read_deployment
from flatq.errors import ArtifactError, ModelError
from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import Lowered
from flatq.verify import Parity, read_parity
from flatq.verify.parity import VerifyInputs, sqnr_db, verify_parity
from flatq.verify.reference import Reference, away_from_edges, find_references
from flatq.verify.results import EndToEnd

INTEGER = {"QLinearConv", "QGemm", "MatMulIntegerToFloat"}


def _verify(deployments: Deployments, name: str, folder: Path | None = None) -> Parity:
    return verify_parity(
        deployments.artifacts[name],
        folder or deployments.folder(name),
        lowered=deployments.lowered(name),
        inputs=VerifyInputs(images=1, steps=2),
        threads=1,
    )


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w4a4", pytest.param("labelled", marks=pytest.mark.slow)])
def test_a_sound_export_passes_in_integers(name: str, deployments: Deployments) -> None:
    parity = _verify(deployments, name)
    parity.check()
    assert parity.passed
    assert [layer.layer for layer in parity.layers] == deployments.artifacts[name].manifest.planned
    for layer in parity.layers:
        assert layer.elements >= 2**15
        if layer.layer in ("unet.conv_in", "unet.conv_out"):  # of the image, and of the prediction, in float
            assert layer.step == "rounding"
            continue
        assert len(INTEGER & set(layer.kernels)) == 1, layer
        assert layer.step == ("accumulator" if "MatMulIntegerToFloat" in layer.kernels else "output")
    # Far beyond what is asked: the integer sums are exact on both sides.
    assert min(layer.equal for layer in parity.layers) > 0.9999
    assert parity.end_to_end.deployed_to_lowered > 20


@pytest.mark.slow
def test_weights_alone_are_compared_in_float(deployments: Deployments) -> None:
    parity = _verify(deployments, "w8")
    parity.check()
    for layer in parity.layers:
        assert layer.step == "rounding"
        assert not INTEGER & set(layer.kernels)
        assert 0 < layer.max_steps < 1
    # MatMulNBits would quantize its input by default.
    assert any("MatMulNBits" in layer.kernels for layer in parity.layers)
    assert parity.end_to_end.deployed_to_lowered > 100


@pytest.mark.slow
def test_the_generic_form_is_verified_in_float(deployments: Deployments) -> None:
    """ONNX Runtime runs its convolutions in float: the reference allows what float32 moves, and no more."""
    artifact, lowered = deployments.artifacts["w8a8"], deployments.lowered("w8a8", "generic")
    folder = deployments.folder("w8a8", "generic")
    parity = verify_parity(artifact, folder, lowered=lowered, inputs=VerifyInputs(steps=2), threads=1)
    parity.check()
    assert {layer.step for layer in parity.layers} >= {"accumulator", "rounding"}
    for layer in parity.layers:
        if layer.step == "rounding":
            assert not INTEGER & set(layer.kernels)


def _named(parity: Parity) -> set[str]:
    return {layer.layer for layer in parity.failed}


def test_every_fault_is_found_and_its_layer_named(deployments: Deployments, tmp_path: Path) -> None:
    planted = {
        "unet.down_blocks.0.resnets.0.conv1": faults.swap_scales,
        "unet.mid_block.attentions.0.to_out.0": faults.swap_scales,
        "unet.time_embedding.linear_1": faults.swap_weights,
        "unet.up_blocks.0.attentions.1.to_k": faults.swap_weights,
        "unet.mid_block.resnets.1.conv2": faults.drop_clip,
        "unet.up_blocks.1.resnets.0.conv1": faults.shift_output_zero_point,
    }
    biases = {f"{layer}.bias": mutation for layer, mutation in planted.items()}
    folder = faults.mutated(deployments.folder("w4a4"), tmp_path / "w4a4", biases)
    parity = _verify(deployments, "w4a4", folder)
    assert _named(parity) == set(planted)
    swapped = next(layer for layer in parity.failed if layer.layer.endswith("resnets.0.conv1"))
    assert swapped.worst_channel in (0, 1)
    with pytest.raises(ModelError, match="6 of 51 layers") as caught:
        parity.check()
    assert "unet.time_embedding.linear_1: " in str(caught.value)
    assert "and 1 more" in str(caught.value)


def test_faults_at_8_bits_are_found(deployments: Deployments, tmp_path: Path) -> None:
    planted = {
        "unet.down_blocks.0.resnets.0.conv1": faults.shift_input_zero_point,
        "unet.down_blocks.0.resnets.0.time_emb_proj": faults.swap_scales,
        "unet.mid_block.attentions.0.to_out.0": faults.shift_input_zero_point,
        "unet.mid_block.resnets.1.conv2": faults.shift_output_zero_point,
    }
    biases = {f"{layer}.bias": mutation for layer, mutation in planted.items()}
    # The layers that read the timestep's embedding share its quantizer; a swapped scale is the layer's own.
    folder = faults.mutated(deployments.folder("w8a8"), tmp_path / "w8a8", biases)
    assert _named(_verify(deployments, "w8a8", folder)) == set(planted)


def test_a_layer_that_cannot_be_compared_fails(deployments: Deployments, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto, bias: str) -> None:
        dequantize = faults._weight_dequantize(model, bias)
        stored = next(i for i in model.graph.initializer if i.name == dequantize.input[0])
        stored.name = dequantize.input[0] = "elsewhere"

    folder = faults.mutated(deployments.folder("w8a8"), tmp_path / "w8a8", {"unet.conv_in.bias": rename})
    parity = _verify(deployments, "w8a8", folder)
    assert [layer.problem for layer in parity.failed] == [
        "the exported model holds no integers for unet.conv_in"
    ]


def test_the_ratios_against_the_float_network(deployments: Deployments, tiny: Checkpoint) -> None:
    artifact, folder = deployments.artifacts["w4a8"], deployments.folder("w4a8")
    few = VerifyInputs(images=1, steps=2)
    lowered = deployments.lowered("w4a8")
    seen = []
    found = verify_parity(
        artifact,
        folder,
        lowered=lowered,
        inputs=few,
        baseline=tiny,
        threads=1,
        progress=lambda *done: seen.append(done),
    ).end_to_end
    assert found.lowered_to_float is not None
    assert found.deployed_to_float is not None
    assert found.deployed_to_lowered > found.lowered_to_float + 10
    assert found.deployed_to_float == pytest.approx(found.lowered_to_float, abs=1)
    assert seen[-1] == ("verifying layers", 51, 51)


def test_a_whole_that_is_noise_is_broken(deployments: Deployments) -> None:
    parity = _verify(deployments, "w4a4")
    for ratio in (-3.0, float("nan")):
        broken = parity.model_copy(update={"end_to_end": EndToEnd(deployed_to_lowered=ratio)})
        assert not broken.passed
        with pytest.raises(ModelError, match="as a whole"):
            broken.check()


def test_the_file_reads_back(deployments: Deployments, tmp_path: Path) -> None:
    parity = _verify(deployments, "w4a4")
    deployment, _ = read_deployment(deployments.folder("w4a4"))
    assert read_parity(tmp_path, deployment) is None
    (tmp_path / "verify.json").write_text(parity.model_dump_json())
    assert read_parity(tmp_path, deployment) == parity
    other, _ = read_deployment(deployments.folder("w8a8"))
    with pytest.raises(ArtifactError, match="another model"):
        read_parity(tmp_path, other)


def _fields(lowered: Lowered) -> dict[str, float]:
    return {reference.layer: float(reference.bias.abs().sum()) for reference in find_references(lowered)}


def test_references_are_the_layers_of_the_plan(deployments: Deployments) -> None:
    artifact, lowered = deployments.artifacts["w4a8"], deployments.lowered("w4a8")
    references = find_references(lowered)
    assert [reference.layer for reference in references] == artifact.manifest.planned
    for reference in references:
        assert torch.equal(reference.integers, artifact.integers[reference.layer])
        assert (reference.inputs == (None,)) == (reference.layer == "unet.conv_in")
    missing = dataclasses.replace(lowered, layers={**lowered.layers, "unet.nothing": "nothing"})
    with pytest.raises(AssertionError, match=r"unet\.nothing"):
        find_references(missing)


def test_a_reference_is_the_torch_graphs_own_layer(deployments: Deployments) -> None:
    """Against the nodes of the lowered graph, run as they are: they differ by float32's rounding alone."""
    lowered = deployments.lowered("w8a8")
    reference = next(r for r in find_references(lowered) if r.layer == "unet.mid_block.resnets.0.conv1")
    values: dict[torch.fx.Node, torch.Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            values[node] = super().run_node(node)
            return values[node]

    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        Keep(lowered.graph).run(x, torch.tensor([10, 900]))
    dequantize = next(iter(next(iter(reference.node.users)).users))
    assert reference.output is not None
    steps, equal = reference.evaluate(values[reference.sources[0]]).compare(values[dequantize].numpy())
    assert steps.max() <= 1.001
    assert equal.mean() > 0.99


def test_codes_and_edges_are_the_closed_form() -> None:
    grid = QuantGrid(torch.tensor(0.5), zero_point=3, low=0, high=15)
    value = torch.tensor([-9.0, -1.5, 0.0, 0.2, 0.3, 1.0, 99.0])
    assert grid.quantize(value).tolist() == [0, 0, 3, 3, 4, 5, 15]
    moved = away_from_edges(torch.tensor([0.25, 0.2501, 0.26, -0.75, 0.5]), grid)
    assert moved.tolist() == pytest.approx([0.0, 0.0, 0.26, -1.0, 0.5])


def test_on_the_edge_of_two_output_codes_either_is_right_and_nowhere_else() -> None:
    nodes = torch.fx.Graph()
    x = nodes.placeholder("x")
    product = nodes.call_function(torch.ops.aten.linear.default, (x, x))
    one = torch.ones(1, dtype=torch.float64)
    first, second = QuantGrid(one[0], 0, 255), QuantGrid(2 * one[0], 0, 255)
    weight = torch.ones(1, 1, dtype=torch.int8)
    layer = Reference("layer", (x,), product, (first,), second, weight, one, 0 * one)
    result = layer.evaluate(torch.tensor([[2.0], [3.0], [4.0]]))  # 1, 1.5 and 2 output codes
    for code, wanted in ((1.0, [True, True, False]), (2.0, [False, True, True])):
        _, equal = result.compare(np.full((3, 1), 2 * code))
        assert equal.ravel().tolist() == wanted


def test_sqnr_is_the_closed_form() -> None:
    signal = np.full(100, 2.0, dtype=np.float32)
    assert sqnr_db(signal, signal * np.float32(1.1)) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(signal, signal) == float("inf")
    assert np.isnan(sqnr_db(signal, signal * np.float32("nan")))
    assert sqnr_db(np.zeros(3, np.float32), np.ones(3, np.float32)) == float("-inf")


@pytest.mark.slow
def test_a_channel_without_weights_keeps_its_bias(deployments: Deployments, tmp_path: Path) -> None:
    """Its scale is the smallest there is, in which ONNX Runtime could not hold the bias."""
    given, layer = deployments.artifacts["w8a8"], "unet.down_blocks.0.resnets.0.conv1"
    integers, scale = given.integers[layer].clone(), given.grids[layer].scale.clone()
    integers[3], scale[3] = 0, torch.finfo(torch.float32).tiny
    grid = dataclasses.replace(given.grids[layer], scale=scale)
    artifact = dataclasses.replace(
        given, integers={**given.integers, layer: integers}, grids={**given.grids, layer: grid}
    )
    own = Deployments({"dead": artifact}, tmp_path)
    parity = _verify(own, "dead")
    parity.check()
    found = next(entry for entry in parity.layers if entry.layer == layer)
    assert found.worst_equal > 0.999
