"""Exported models: what stands in the file, what ONNX Runtime makes of it, and what it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.deployment import read_deployment
from flatq.errors import ArtifactError, UsageError
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.models import open_model
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import recipe_for_bits
from flatq.runtime.onnxruntime import OnnxRuntime

NAMES = ("w8a8", "w4a8", "w4a4")


@pytest.fixture(scope="module")
def files(tiny_export: Callable[[str, str], Path]) -> dict[str, Path]:
    return {name: tiny_export(name, "onnxruntime") / "model.onnx" for name in (*NAMES, "fp32")}


@pytest.fixture(scope="module")
def optimized(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("optimized")
    models = {}
    for name in ("w8a8", "w4a8"):
        with OnnxRuntime(files[name], threads=1, optimized_path=folder / f"{name}.onnx"):
            models[name] = onnx.load(folder / f"{name}.onnx")
    return models


def _inputs(n: int, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(7).standard_normal((n, 3, 16, 16)).astype(np.float32) * np.float32(size)
    return x, np.linspace(0, 999, n).astype(np.int64)


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", [*NAMES, "fp32"])
def test_the_file_is_valid_and_free_of_paths(name: str, files: dict[str, Path]) -> None:
    onnx.checker.check_model(onnx.load(files[name]), full_check=True)
    content = files[name].read_bytes()
    for text in (
        str(Path(__file__).resolve().parents[2]),
        "site-packages",
        str(files[name].parents[2]),
        ".py",
    ):
        assert text.encode() not in content, text


@pytest.mark.parametrize("name", [*NAMES, "fp32"])
def test_the_file_says_where_it_comes_from(name: str, files: dict[str, Path], tiny: Checkpoint) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(files[name]).metadata_props}
    provenance = json.loads(metadata["flatq.provenance"])
    assert metadata["flatq.precision"] == name
    assert provenance["parent"]["sha256"] == tiny.digest
    deployment, path = read_deployment(files[name].parent)
    assert path == files[name]
    assert deployment.provenance == provenance
    assert deployment.image_shape == (3, 16, 16)


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_every_planned_layer_but_the_edges_runs_as_integers(
    name: str, optimized: dict[str, onnx.ModelProto], tiny_artifacts: dict[str, Artifact]
) -> None:
    operators = _operators(optimized[name])
    weights = [d for d in tiny_artifacts[name].manifest.decisions if d.port == "weight"]
    convolutions = sum(d.kind == "conv2d" for d in weights)
    linears = sum(d.kind == "linear" for d in weights)
    assert operators.count("QLinearConv") == convolutions - 2
    assert operators.count("Conv") == 2  # of the image, and of the prediction
    assert "FusedConv" not in operators
    integer = ("QGemm", "MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")
    assert sum(operators.count(kind) for kind in integer) == linears, sorted(set(operators))
    assert "Gemm" not in operators


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_attention_products_stay_float(
    name: str, optimized: dict[str, onnx.ModelProto], tiny_artifacts: dict[str, Artifact]
) -> None:
    operators = _operators(optimized[name])
    attentions = sum(d.kind == "attention" for d in tiny_artifacts[name].manifest.decisions)
    assert attentions > 0
    assert operators.count("MultiHeadAttention") == attentions
    assert not {"MatMul", "FusedMatMul", "Softmax"} & set(operators)


@pytest.mark.slow
def test_a_plain_export_is_as_torch_writes_it(
    files: dict[str, Path], tiny: Checkpoint, tmp_path: Path
) -> None:
    plain = export_checkpoint(tiny, "onnxruntime", tmp_path / "plain", plain=True)
    tuned, _ = read_deployment(files["fp32"].parent)
    names = [type(module).__name__ for module in tiny.network().modules()]
    attentions, norms = names.count("Attention"), names.count("GroupNorm")
    assert plain.provenance["rewrites"] == {}
    assert tuned.provenance["rewrites"] == {
        "attention": {"applied": attentions, "refused": {}},
        "group-norm": {"applied": norms, "refused": {}},
    }
    model = onnx.load(tmp_path / "plain" / plain.file)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert _operators(model).count("GroupNormalization") == norms
    x, t = _inputs(5)
    with OnnxRuntime(files["fp32"], threads=1) as runtime:
        expected = runtime(x, t)
    with OnnxRuntime(tmp_path / "plain" / plain.file, threads=1) as runtime:
        np.testing.assert_allclose(runtime(x, t), expected, atol=1e-5)


def test_int4_weights_are_int4_in_the_file(
    files: dict[str, Path], tiny_artifacts: dict[str, Artifact]
) -> None:
    artifact = tiny_artifacts["w4a8"]
    stored = {i.name: i for i in onnx.load(files["w4a8"]).graph.initializer}
    narrow = {k.removesuffix(".int4"): v for k, v in stored.items() if v.data_type == TensorProto.INT4}
    assert len(narrow) == len(artifact.integers) - 2
    # What is left in INT8 are the first and the last convolution, and zero points, one for each channel.
    wide = [i for i in stored.values() if i.data_type == TensorProto.INT8 and len(i.dims) > 1]
    assert len(wide) == 2
    found = sorted(numpy_helper.to_array(v).astype(np.int8).tobytes() for v in [*narrow.values(), *wide])
    assert found == sorted(codes.numpy().tobytes() for codes in artifact.integers.values())
    for value in narrow.values():
        assert len(value.raw_data) == (int(np.prod(value.dims)) + 1) // 2
    sizes = {name: files[name].stat().st_size for name in ("w4a8", "w8a8", "fp32")}
    assert sizes["w4a8"] < sizes["w8a8"] < sizes["fp32"]


def test_float_export_computes_what_torch_does(tiny: Checkpoint, files: dict[str, Path]) -> None:
    x, t = _inputs(5)
    with torch.no_grad():
        expected = tiny.network()(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with OnnxRuntime(files["fp32"], threads=1) as runtime:
        np.testing.assert_allclose(runtime(x, t), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_the_export_computes_what_the_lowered_graph_does(
    name: str, files: dict[str, Path], tiny_artifacts: dict[str, Artifact]
) -> None:
    x, t = _inputs(5)
    with torch.no_grad():
        graph = lower(tiny_artifacts[name], "onnxruntime").graph
        expected = graph(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with OnnxRuntime(files[name], threads=1) as runtime:
        error = runtime(x, t) - expected
    # Codes on an edge are rounded either way by the two runtimes, and the network amplifies it: end to end
    # they differ by about the 8-bit quantization error itself (5 % here). A wrong scale is far beyond.
    assert np.sqrt(np.mean(error**2)) < 0.08 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("name", [*NAMES, "fp32"])
def test_an_image_does_not_depend_on_its_batch(name: str, files: dict[str, Path]) -> None:
    x, t = _inputs(64)
    with OnnxRuntime(files[name], threads=1) as runtime:
        together = runtime(x, t)
        apart = np.concatenate([runtime(x[i : i + 7], t[i : i + 7]) for i in range(0, 64, 7)])
    assert together.shape == x.shape
    np.testing.assert_allclose(together, apart, atol=1e-6)


@pytest.mark.slow
def test_4_bit_activations_have_16_codes_in_onnx_runtime(tiny: Checkpoint, tmp_path: Path) -> None:
    """Values far out of range, at the inputs of the integer kernels of the graph that it optimized itself."""
    recipe, few = recipe_for_bits(4, 4, edges="8"), CalibrationPlan(images=2, steps=2)
    artifact = quantize_checkpoint(tiny, recipe, calibration=few, threads=1)
    write_artifact(artifact, tmp_path / "a")
    deployment = export_artifact(tmp_path / "a", "onnxruntime", tmp_path / "d")
    path = tmp_path / "d" / deployment.file
    with OnnxRuntime(path, threads=1, optimized_path=tmp_path / "optimized.onnx"):
        model = onnx.load(tmp_path / "optimized.onnx")
    kernels = [n for n in model.graph.node if n.op_type in ("QLinearConv", "QGemm", "MatMulIntegerToFloat")]
    assert len(kernels) == len(artifact.manifest.planned)
    inputs = sorted({node.input[0] for node in kernels})
    for name in inputs:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, t = _inputs(4, size=50.0)
    results = dict(zip(inputs, session.run(inputs, {"x": x, "t": t}), strict=True))
    convolutions = [node.input[0] for node in kernels if node.op_type == "QLinearConv"]
    for name, values in results.items():
        found = np.unique(values)
        assert values.dtype == np.uint8
        if name in (convolutions[0], convolutions[-1]):  # the edges have 8 bits
            assert len(found) > 16, name
            continue
        assert len(found) <= 16, name
        assert found.min() >= 0, name
        assert found.max() <= 15, name
    assert sum(len(np.unique(values)) == 16 for values in results.values()) > 1

    # The codes of the first layer, exactly: the closed form on the range that calibration found.
    low, high = artifact.ranges["unet.conv_in.input"][0].tolist()
    scale = np.float32((max(high, 0.0) - min(low, 0.0)) / 255)
    zero = round(-min(low, 0.0) / float(scale))
    expected = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    assert len(np.unique(expected)) > 2
    first = next(values for values in results.values() if values.shape == (4, 16, 16, 3))  # NHWC kernels
    np.testing.assert_array_equal(first.transpose(0, 3, 1, 2), expected)


@pytest.mark.slow
def test_4_bit_attention_has_16_codes_in_onnx_runtime(
    tiny: Checkpoint, files: dict[str, Path], tmp_path: Path
) -> None:
    """At both factors of both products, in the graph that it optimized itself, on values far out of range."""
    recipe = recipe_for_bits(8, attention_bits=4)
    artifact = quantize_checkpoint(tiny, recipe, calibration=CalibrationPlan(images=2, steps=2), threads=1)
    write_artifact(artifact, tmp_path / "a")
    deployment = export_artifact(tmp_path / "a", "onnxruntime", tmp_path / "d")
    refused = deployment.provenance["rewrites"]["attention"]["refused"]
    assert len(refused) == 4
    assert all("the weights go to Clip, not to one MatMul" in reason for reason in refused.values())
    with OnnxRuntime(tmp_path / "d" / "model.onnx", threads=1, optimized_path=tmp_path / "optimized.onnx"):
        model = onnx.load(tmp_path / "optimized.onnx")
    stored = {initializer.name for initializer in model.graph.initializer}
    kinds = {"MatMulIntegerToFloat": (0, 1), "QLinearMatMul": (0, 3)}
    factors = [
        [node.input[i] for i in kinds[node.op_type]]
        for node in model.graph.node
        if node.op_type in kinds and node.input[kinds[node.op_type][1]] not in stored
    ]
    assert len(factors) == 8
    names = [name for pair in factors for name in pair]
    for name in dict.fromkeys(names):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, t = _inputs(4, size=50.0)
    for name, values in zip(names, session.run(names, {"x": x, "t": t}), strict=True):
        assert values.dtype == np.uint8
        assert 1 < len(np.unique(values)) <= 16, name
        assert values.max() <= 15, name


@pytest.mark.slow
def test_the_same_artifact_gives_the_same_file(files: dict[str, Path], tmp_path: Path) -> None:
    export_artifact(files["w4a8"].parents[1], "onnxruntime", tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == files["w4a8"].read_bytes()
    assert (tmp_path / "again" / "flatq.json").read_bytes() == (
        files["w4a8"].parent / "flatq.json"
    ).read_bytes()


def test_a_folder_with_other_files_is_left_alone(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="something else"):
        export_artifact(files["w8a8"].parents[1], "onnxruntime", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_model_file_is_refused(tiny: Checkpoint, files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model.onnx", "flatq.json"):
        (tmp_path / name).write_bytes((files["w8a8"].parent / name).read_bytes())
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="changed after export"):
        open_model(tmp_path)
