"""Graphs for TensorRT: our check of them, and its real parser and builder, which need no GPU.

`tools/tensorrt_on_cpu.sh` sets TensorRT up on a machine without one; without it those tests are skipped.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import NETWORKS, assert_symmetric_int8, checkpoint
from onnx import TensorProto, numpy_helper

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.deployment import FloatPrecision
from flatq.errors import MissingRuntimeError, ModelError, UsageError
from flatq.export.deploy import export_artifact
from flatq.export.engine import build_engine, build_serialized, parse
from flatq.quantize.artifact import Artifact, read_manifest, write_artifact
from flatq.quantize.low_rank import branched
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS, recipe_for_bits
from flatq.runtime.cuda import open_device

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None,
    reason="no tensorrt here; tools/tensorrt_on_cpu.sh sets it up without a GPU",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: checkpoint(name, folder) for name in NETWORKS}


@pytest.fixture(scope="module")
def exported(tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment of `tiny` at w4a8."""
    folder = tmp_path_factory.mktemp("exported")
    write_artifact(tiny_artifacts["w4a8"], folder / "w4a8")
    export_artifact(folder / "w4a8", "tensorrt", folder / "w4a8" / "tensorrt")
    return folder / "w4a8" / "tensorrt"


def _makers(network: Any) -> dict[str, Any]:
    """The layer that makes each tensor of a parsed network, by the tensor's name."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}


def _source(tensor: Any, makers: dict[str, Any], trt: Any) -> Any:
    """The type of the layer behind a tensor, past those that only move data."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type == trt.LayerType.SHUFFLE:
        maker = makers.get(maker.get_input(0).name)
    return maker and maker.type


@pytest.mark.slow
@needs_tensorrt
@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize("recipe", PRESETS)
def test_every_recipe_and_network_builds(
    recipe: str, network_name: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    calibration = CalibrationPlan(images=2, steps=1)
    artifact = quantize_checkpoint(
        checkpoints[network_name], PRESETS[recipe], calibration=calibration, threads=1
    )
    write_artifact(artifact, tmp_path / "a")
    export_artifact(tmp_path / "a", "tensorrt", tmp_path / "d")
    parsed = parse(tmp_path / "d" / "model.onnx")
    trt, network = parsed.trt, parsed.network

    planned = [d for d in read_manifest(tmp_path / "a").decisions if d.port == "weight" and d.scheme]
    quantized_inputs = PRESETS[recipe].rules[0].activation is not None
    counts, images = {"conv2d": 0, "linear": 0}, 0
    makers = _makers(network)
    kinds = {trt.LayerType.CONVOLUTION: "conv2d", trt.LayerType.MATRIX_MULTIPLY: "linear"}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = kinds.get(layer.type)
        if kind is None:
            continue
        data, weight = (_source(layer.get_input(i), makers, trt) == trt.LayerType.DEQUANTIZE for i in (0, 1))
        if kind == "linear" and not data and not weight:
            continue  # a product of attention, which no preset quantizes
        assert weight, layer.name
        images += kind == "conv2d" and not data
        assert data == quantized_inputs or kind == "conv2d", layer.name
        counts[kind] += 1
    assert images == (1 if quantized_inputs else counts["conv2d"])  # the image is not rounded
    assert counts == {kind: sum(d.kind == kind for d in planned) for kind in counts}

    plan, *_ = build_serialized(tmp_path / "d" / "model.onnx", (1, 2, 8))
    assert len(plan) > 1000


@needs_tensorrt
@pytest.mark.parametrize(("network_name", "bits"), [("rgb32", 8), ("imported64", 4)])
def test_integer_attention_builds(
    network_name: str, bits: int, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    calibration = CalibrationPlan(images=2, steps=1)
    recipe = recipe_for_bits(8, attention_bits=bits)
    artifact = quantize_checkpoint(checkpoints[network_name], recipe, calibration=calibration, threads=1)
    write_artifact(artifact, tmp_path / "a")
    export_artifact(tmp_path / "a", "tensorrt", tmp_path / "d")
    parsed = parse(tmp_path / "d" / "model.onnx")
    trt, network = parsed.trt, parsed.network
    makers = _makers(network)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    for layer in products:
        for i in (0, 1):
            assert _source(layer.get_input(i), makers, trt) == trt.LayerType.DEQUANTIZE, layer.name
    kinds = {d.node: d.kind for d in artifact.manifest.decisions}
    linears, attentions = (sum(k == kind for k in kinds.values()) for kind in ("linear", "attention"))
    assert attentions == 4
    assert len(products) == linears + 2 * attentions
    assert len(build_serialized(tmp_path / "d" / "model.onnx", (1, 2, 8))[0]) > 1000


@pytest.mark.slow
@needs_tensorrt
def test_float_branches_and_split_shortcuts_build(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    recipe = recipe_for_bits(4, 4, split_shortcuts=True, low_rank=4)
    artifact = quantize_checkpoint(
        checkpoints["digits"], recipe, calibration=CalibrationPlan(images=2, steps=1), threads=1
    )
    write_artifact(artifact, tmp_path / "a")
    branches = len(branched(artifact.manifest.decisions))
    assert branches > 10
    choices: tuple[FloatPrecision, ...] = ("fp32", "fp16")
    for floats in choices:
        export_artifact(tmp_path / "a", "tensorrt", tmp_path / floats, float_precision=floats)
        parsed = parse(tmp_path / floats / "model.onnx")
        trt, network = parsed.trt, parsed.network
        makers = _makers(network)
        kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
        products = [n for n in map(network.get_layer, range(network.num_layers)) if n.type in kinds]
        # A float convolution holds its weight itself.
        weights = [layer.get_input(1) if layer.num_inputs > 1 else None for layer in products]
        integer = [w is not None and _source(w, makers, trt) == trt.LayerType.DEQUANTIZE for w in weights]
        assert sum(integer) == len(artifact.manifest.planned)
        assert len(integer) - sum(integer) == 2 * branches
        assert len(build_serialized(tmp_path / floats / "model.onnx", (1, 2, 8))[0]) > 1000


@needs_tensorrt
def test_the_profile_spans_the_batch_of_every_input(exported: Path) -> None:
    parsed = parse(exported / "model.onnx")
    shapes = {
        parsed.network.get_input(i).name: tuple(parsed.network.get_input(i).shape)
        for i in range(parsed.network.num_inputs)
    }
    assert shapes == {"x": (-1, 3, 16, 16), "t": (-1,)}


@needs_tensorrt
def test_the_timing_cache_is_taken_up_again(exported: Path) -> None:
    _, cache, build = build_serialized(exported / "model.onnx", (1, 2, 4))
    assert build["timing_cache_reused"] is False
    *_, build = build_serialized(exported / "model.onnx", (1, 2, 4), timing_cache=cache)
    assert build["timing_cache_reused"] is True
    assert build_serialized(exported / "model.onnx", (1, 2, 4), timing_cache=b"not a cache")[0]


@needs_tensorrt
def test_what_the_parser_refuses_is_one_error(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    _shift_zero_point(model)
    onnx.save(model, tmp_path / "asymmetric.onnx")
    with pytest.raises(ModelError, match=r"TensorRT .* refuses") as caught:
        parse(tmp_path / "asymmetric.onnx")
    assert "zero point" in str(caught.value).lower()
    (tmp_path / "no.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ModelError, match=r"TensorRT .* refuses"):
        parse(tmp_path / "no.onnx")


@needs_tensorrt
def test_without_a_gpu_the_onnx_file_stays_and_is_named(exported: Path) -> None:
    try:
        open_device()
    except MissingRuntimeError:
        pass
    else:
        pytest.skip("there is a GPU here")
    before = sorted(p.name for p in exported.iterdir())
    with pytest.raises(MissingRuntimeError, match="the engine was not built") as caught:
        build_engine(exported)
    assert str(exported / "model.onnx") in str(caught.value)
    assert 'pip install "flatq[tensorrt]"' in str(caught.value)
    assert sorted(p.name for p in exported.iterdir()) == before == ["flatq.json", "model.onnx"]


def test_our_own_graphs_are_symmetric_int8(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    assert_symmetric_int8(model)
    kinds = {i.data_type for i in model.graph.initializer if "zero_point" not in i.name}
    assert TensorProto.INT4 not in kinds
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert quantizers
    # 8-bit activations need no Clip in front of the quantizer: the codes use the whole of int8.
    makers = {o: n.op_type for n in model.graph.node for o in n.output}
    assert "Clip" not in {makers.get(n.input[0]) for n in quantizers}


def _shift_zero_point(model: onnx.ModelProto) -> None:
    """Give the first quantizer and its dequantizers the zero point 3."""
    quantizer = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int8), "shifted"))
    quantizer.input[2] = "shifted"
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantizer.output[0]:
            node.input[2] = "shifted"


def test_a_folder_of_another_target_is_not_built(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "d")
    manifest = tmp_path / "d" / "flatq.json"
    manifest.write_text(manifest.read_text().replace('"target": "tensorrt"', '"target": "generic"'))
    with pytest.raises(UsageError, match="exported for generic"):
        build_engine(tmp_path / "d")
