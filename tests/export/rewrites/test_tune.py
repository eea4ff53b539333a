"""Networks tuned as a whole: what was applied, what stays, and that each place computes what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_graphs import copy, operators, region, run

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.export.onnx import to_onnx
from flatq.export.rewrites import Applied, summary, tune
from flatq.network import build_network
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.trace import trace
from flatq.recipe import QuantRecipe, recipe_for_bits

INTEGER = ("QLinearConv", "QGemm", "MatMulIntegerToFloat")


@dataclass(frozen=True)
class Tuned:
    """A network's export before and after, and what there was to rewrite in it."""

    plain: onnx.ModelProto
    tuned: onnx.ModelProto
    done: list[Applied]
    norms: int
    attentions: int
    modulated: bool


def _checkpoint(tiny: Checkpoint, classes: int | None, **unet: Any) -> Checkpoint:
    config = ModelConfig(
        image_size=16,
        image_channels=3,
        out_channels=3,
        num_classes=classes,
        unet={**tiny.model.unet, **unet},
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = build_network(config).unet.state_dict()
        for name, value in state.items():
            if "norm" in name:
                value += 0.3 * torch.randn_like(value)
    return Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": state}, {"method": "none"})


def _tuned(checkpoint: Checkpoint, model: onnx.ModelProto) -> Tuned:
    modules = [type(module).__name__ for module in checkpoint.network().modules()]
    tuned = copy(model)
    return Tuned(
        model,
        tuned,
        tune(tuned, "onnxruntime"),
        norms=modules.count("GroupNorm"),
        attentions=modules.count("Attention"),
        modulated=checkpoint.model.unet.get("resnet_time_scale_shift") == "scale_shift",
    )


def _float(checkpoint: Checkpoint) -> Tuned:
    return _tuned(checkpoint, to_onnx(trace(checkpoint.network(), checkpoint.model), checkpoint.model))


def _quantized(checkpoint: Checkpoint, recipe: QuantRecipe) -> Tuned:
    artifact = quantize_checkpoint(
        checkpoint, recipe, calibration=CalibrationPlan(images=2, steps=2), threads=1
    )
    return _tuned(checkpoint, to_onnx(lower(artifact, "onnxruntime").graph, checkpoint.model))


@pytest.fixture(scope="module")
def networks(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tuned]:
    folder = tmp_path_factory.mktemp("networks")
    shifted = _checkpoint(tiny, 6, resnet_time_scale_shift="scale_shift")
    shifted = save_checkpoint(shifted, folder / "shifted.pt")
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    bare = _checkpoint(tiny, None, **blocks, add_attention=False)
    return {
        "scale and shift, classes": _float(shifted),
        "scale and shift, classes, w8a8": _quantized(shifted, recipe_for_bits(8, edges="8")),
        "no attention": _float(bare),
    }


FLOAT = ("scale and shift, classes", "no attention")
QUANTIZED = ("scale and shift, classes, w8a8",)


def _feeds(model: onnx.ModelProto, n: int) -> dict[str, np.ndarray]:
    feeds = {
        "x": np.random.default_rng(n).standard_normal((n, 3, 16, 16)).astype(np.float32),
        "t": np.linspace(0, 999, n).astype(np.int64),
        "label": np.arange(n, dtype=np.int64) % 6,
    }
    return {value.name: feeds[value.name] for value in model.graph.input}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


@pytest.mark.parametrize("name", FLOAT + QUANTIZED)
def test_every_normalization_and_attention_is_rewritten(name: str, networks: dict[str, Tuned]) -> None:
    network = networks[name]
    assert [entry.refused for entry in network.done if entry.refused] == []
    counts = Counter(entry.rule for entry in network.done)
    assert counts == {"group-norm": network.norms, **({"attention": a} if (a := network.attentions) else {})}
    assert (network.attentions > 0) == (name != "no attention")
    modulated = sum(len(entry.inputs) == 3 for entry in network.done if entry.rule == "group-norm")
    assert (modulated > 0) == network.modulated
    onnx.checker.check_model(network.tuned, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(network.tuned, strict_mode=True).graph
    known = {value.name for value in (*inferred.value_info, *inferred.output)}
    assert known >= {name for node in network.tuned.graph.node for name in node.output}
    left = operators(network.tuned)
    assert left.count("InstanceNormalization") == network.norms
    assert left.count("MultiHeadAttention") == network.attentions
    assert not {"GroupNormalization", "Softmax"} & set(left)


@pytest.mark.parametrize("name", FLOAT + QUANTIZED)
def test_layers_and_their_quantizers_stay_as_they_were(name: str, networks: dict[str, Tuned]) -> None:
    def kept(model: onnx.ModelProto) -> list[tuple[str, ...]]:
        kinds = ("Conv", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear", "Cast", "Clip")
        weights = {value.name for value in model.graph.initializer}
        return sorted(
            (node.op_type, *node.input, *node.output)
            for node in model.graph.node
            if node.op_type in kinds and (node.op_type != "MatMul" or weights & _sources(model, node))
        )

    def _sources(model: onnx.ModelProto, node: onnx.NodeProto) -> set[str]:
        """The weight that a product reads, through its dequantizer and Transpose."""
        producers = {name: entry for entry in model.graph.node for name in entry.output}
        second = node.input[1]
        while second in producers and producers[second].op_type in ("Transpose", "DequantizeLinear"):
            second = producers[second].input[0]
        return {second}

    network = networks[name]
    assert kept(network.tuned) == kept(network.plain)
    assert len(kept(network.plain)) > 20

    def large(model: onnx.ModelProto) -> dict[str, bytes]:
        return {
            value.name: numpy_helper.to_array(value).tobytes()
            for value in model.graph.initializer
            if len(value.dims) > 1 and not value.name.endswith("_axes")
        }

    assert large(network.tuned) == large(network.plain)


@pytest.mark.parametrize("name", FLOAT + QUANTIZED)
def test_each_place_computes_what_it_did(name: str, networks: dict[str, Tuned]) -> None:
    """The replaced nodes and the new ones alone, on the same random inputs, at two batches."""
    network = networks[name]
    plain = onnx.shape_inference.infer_shapes(_without_norms(network.plain)).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*plain.value_info, *plain.input, *plain.output)
    }
    rng = np.random.default_rng(5)
    for n in (1, 3):
        for entry in network.done:
            feeds = {
                value: (rng.standard_normal((n, *shapes[value][1:])) + 0.5).astype(np.float32)
                for value in entry.inputs
            }
            expected, found = (
                run(region(model, entry.inputs, entry.output), feeds)[0]
                for model in (network.plain, network.tuned)
            )
            assert found.shape == expected.shape
            np.testing.assert_allclose(
                found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=str(entry)
            )


def _without_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnx infers no shapes behind a GroupNormalization."""
    made = copy(model)
    for node in made.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return made


@pytest.mark.parametrize("n", [1, 5, 64])
@pytest.mark.parametrize("name", FLOAT)
def test_a_float_network_computes_what_it_did(name: str, n: int, networks: dict[str, Tuned]) -> None:
    network = networks[name]
    feeds = _feeds(network.plain, n)
    expected, found = (run(model, feeds)[0] for model in (network.plain, network.tuned))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_network_differs_by_codes_on_an_edge(name: str, networks: dict[str, Tuned]) -> None:
    network = networks[name]
    feeds = _feeds(network.plain, 5)
    results = {}
    for kind, model in (("plain", network.plain), ("tuned", network.tuned)):
        probed = copy(model)
        for value in _first_codes(network.plain):
            probed.graph.output.append(
                onnx.helper.make_tensor_value_info(value, onnx.TensorProto.UINT8, None)
            )
        results[kind] = run(probed, feeds)
    (plain, first, second), (tuned, *others) = results["plain"], results["tuned"]
    # Before the first rewritten place nothing differs; behind it a value on the edge of two codes goes
    # either way.
    np.testing.assert_array_equal(others[0], first)
    steps = np.abs(others[1].astype(int) - second)
    assert steps.max() <= 1
    assert np.mean(steps > 0) < 1e-3
    # The network amplifies such codes: end to end it is about the 8-bit quantization error itself.
    assert _rms(tuned - plain) < 0.08 * _rms(plain)


def _first_codes(model: onnx.ModelProto) -> list[str]:
    """Codes at the inputs of the first two convolutions."""
    producers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    return [producers[node.input[0]].input[0] for node in convolutions]


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_integer_kernels_and_silu_stay(name: str, networks: dict[str, Tuned], tmp_path: Path) -> None:
    network = networks[name]
    counts = {}
    for kind in ("plain", "tuned"):
        run(getattr(network, kind), _feeds(network.plain, 1), tmp_path / f"{kind}.onnx")
        counts[kind] = Counter(operators(onnx.load(tmp_path / f"{kind}.onnx")))
    plain, tuned = counts["plain"], counts["tuned"]
    for kernel in (*INTEGER, "QuickGelu"):
        assert tuned[kernel] == plain[kernel] > 0, kernel
    assert "ReduceMean" not in tuned
    assert "Softmax" not in tuned
    # GroupNormalization alone is 22 nodes in ONNX Runtime, and so few are left of them.
    assert tuned.total() < plain.total() - 12 * network.norms


@pytest.mark.parametrize("name", FLOAT + QUANTIZED)
def test_tuning_again_changes_nothing(name: str, networks: dict[str, Tuned]) -> None:
    again = copy(networks[name].tuned)
    assert tune(again, "onnxruntime") == []
    assert again == networks[name].tuned


@pytest.mark.parametrize("name", FLOAT[:1])
def test_the_same_model_gives_the_same_bytes(name: str, networks: dict[str, Tuned]) -> None:
    again = copy(networks[name].plain)
    tune(again, "onnxruntime")
    assert again.SerializeToString(deterministic=True) == networks[name].tuned.SerializeToString(
        deterministic=True
    )


def test_the_summary_counts_and_keeps_the_reasons() -> None:
    done = [
        Applied("a", "n1", ("x",), "y"),
        Applied("a", "n2", ("x",), "y"),
        Applied("b", "n3", refused="why (n3)"),
    ]
    assert summary(done) == {
        "a": {"applied": 2, "refused": {}},
        "b": {"applied": 0, "refused": {"n3": "why (n3)"}},
    }
