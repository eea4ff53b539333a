"""OpenVINO: what stands in the IR, which kernels run, and what comes out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import checkpoint

from flatq.backends import RuntimeSettings
from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.deployment import read_deployment
from flatq.errors import ArtifactError, MissingRuntimeError, ModelError, UsageError
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.models import open_model
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import recipe_for_bits
from flatq.runtime.openvino import OpenVinoRuntime
from flatq.verify.audit import audit_deployment

openvino = pytest.importorskip("openvino")

NAMES = ("w8a8", "w4a8", "w4a4")


@pytest.fixture(scope="module")
def folders(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("openvino")
    for name in NAMES:
        write_artifact(tiny_artifacts[name], folder / name)
        export_artifact(folder / name, "openvino", folder / name / "openvino")
    export_checkpoint(tiny, "openvino", folder / "fp32" / "openvino")
    export_checkpoint(tiny, "openvino", folder / "fp16" / "openvino", float_precision="fp16")
    return {name: folder / name / "openvino" for name in (*NAMES, "fp32", "fp16")}


def _inputs(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(7).standard_normal((n, 3, 16, 16)).astype(np.float32)
    return x, np.linspace(0, 999, n).astype(np.int64)


def test_the_folder_holds_an_ir_with_the_digest_of_both_files(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert sorted(p.name for p in folder.iterdir()) == ["flatq.json", "model.bin", "model.xml"]
        deployment, path = read_deployment(folder)
        assert path == folder / "model.xml"
        assert set(deployment.files) == {"model.bin"}
        assert deployment.precision == name
        assert deployment.provenance["versions"]["openvino"] == openvino.__version__
        text = path.read_text()
        assert "site-packages" not in text
        assert str(folder.parent.parent) not in text
        assert f'<precision value="{name}"' in text


def test_4_bit_weights_are_4_bit_constants(
    folders: dict[str, Path], tiny_artifacts: dict[str, Artifact]
) -> None:
    model = openvino.Core().read_model(folders["w4a8"] / "model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    narrow = [c for c in constants if c.get_element_type() == openvino.Type.i4]
    artifact = tiny_artifacts["w4a8"]
    decisions = artifact.manifest.decisions
    four = {d.node for d in decisions if d.port == "weight" and d.scheme is not None and d.scheme.bits == 4}
    codes = {name: value for name, value in artifact.integers.items() if name in four}
    assert len(codes) == len(artifact.integers) - 2  # the first and the last convolution have 8
    assert sorted(tuple(c.shape) for c in narrow) == sorted(tuple(c.shape) for c in codes.values())
    sizes = {name: (folders[name] / "model.bin").stat().st_size for name in folders}
    elements = sum(c.numel() for c in codes.values())
    assert sizes["w8a8"] - sizes["w4a8"] == pytest.approx(elements / 2, abs=len(codes))
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


@pytest.mark.parametrize("name", NAMES)
def test_every_planned_layer_runs_on_an_integer_kernel(
    name: str, folders: dict[str, Path], tiny_artifacts: dict[str, Artifact]
) -> None:
    """By the plugin's own word, on the graph that it compiled; 4-bit weights as well."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(folders[name] / "model.xml"), "CPU")
    found: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kind = info["layerType"]
        if kind in ("Convolution", "FullyConnected") and info["runtimePrecision"] in ("u8", "i8"):
            found[kind] += 1
    weights = [d for d in tiny_artifacts[name].manifest.decisions if d.port == "weight"]
    assert found["Convolution"] == sum(d.kind == "conv2d" for d in weights) - 1  # it reads the image in float
    assert found["FullyConnected"] == sum(d.kind == "linear" for d in weights)


def test_float_export_computes_what_torch_does(tiny: Checkpoint, folders: dict[str, Path]) -> None:
    x, t = _inputs(5)
    with torch.no_grad():
        expected = tiny.network()(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with OpenVinoRuntime(folders["fp32"] / "model.xml", threads=1, precision="fp32") as runtime:
        assert runtime.identity["float precision"] == "fp32"
        np.testing.assert_allclose(runtime(x, t), expected, atol=2e-5)
    with OpenVinoRuntime(folders["fp16"] / "model.xml", threads=1, precision="fp32") as runtime:
        # Weights rounded to 11 bits: 2^-12 relative each.
        error = runtime(x, t) - expected
        assert 0 < np.sqrt(np.mean(error**2)) < 3e-3 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_the_export_computes_what_the_lowered_graph_does(
    name: str, folders: dict[str, Path], tiny_artifacts: dict[str, Artifact]
) -> None:
    x, t = _inputs(5)
    with torch.no_grad():
        expected = lower(tiny_artifacts[name], "openvino").graph(torch.from_numpy(x), torch.from_numpy(t))
    with OpenVinoRuntime(folders[name] / "model.xml", threads=1, precision="fp32") as runtime:
        error = runtime(x, t) - expected.numpy()
    # As for ONNX Runtime: a code on an edge may be rounded either way, and the network amplifies it.
    assert np.sqrt(np.mean(error**2)) < 0.08 * float(expected.square().mean().sqrt())


def test_an_image_does_not_depend_on_its_batch(folders: dict[str, Path]) -> None:
    x, t = _inputs(20)
    with OpenVinoRuntime(folders["w8a8"] / "model.xml", threads=1, precision="fp32") as runtime:
        together = runtime(x, t)
        kept = together.copy()
        apart = np.concatenate([runtime(x[i : i + 7], t[i : i + 7]) for i in range(0, 20, 7)])
    np.testing.assert_array_equal(together, kept)
    # Another batch may sum in another order, which flips codes on an edge in a few images.
    assert np.sqrt(np.mean((together - apart) ** 2)) < 0.05 * np.sqrt(np.mean(together**2))


def test_the_identity_says_what_moves_the_numbers(folders: dict[str, Path]) -> None:
    path = folders["fp32"] / "model.xml"
    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with OpenVinoRuntime(path, threads=1, hint="throughput") as runtime:
        identity = runtime.identity
        assert identity["float precision"] == ("bf16" if "BF16" in capable else "fp32")
        assert (identity["hint"], identity["threads"]) == ("throughput", 1)
        assert identity["version"] == openvino.get_version()
    for precision, name in (("bf16", "BF16"), ("fp16", "FP16")):
        if name in capable:
            with OpenVinoRuntime(path, precision=precision) as runtime:  # type: ignore[arg-type]
                assert runtime.identity["float precision"] == precision
        else:
            with pytest.raises(MissingRuntimeError, match="does not compute"):
                OpenVinoRuntime(path, precision=precision)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_artifact_gives_the_same_files(folders: dict[str, Path], tmp_path: Path) -> None:
    export_artifact(folders["w4a8"].parent, "openvino", tmp_path / "again")
    for name in ("model.xml", "model.bin", "flatq.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders["w4a8"] / name).read_bytes(), name


def test_bad_inputs_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    x, t = _inputs(2)
    with open_model(folders["w8a8"], RuntimeSettings(threads=1)).runtime as runtime:
        assert runtime.identity["runtime"] == "openvino"
        for bad in (x[:0], x[:, :1], x.astype(np.float64), x * np.float32("nan")):
            with pytest.raises(ModelError):
                runtime(bad, t[: len(bad)])
        with pytest.raises(ModelError, match="t does not fit"):
            runtime(x, t.astype(np.int32))
    (tmp_path / "model.xml").write_text("<net")
    with pytest.raises(ArtifactError, match="refuses"):
        OpenVinoRuntime(tmp_path / "model.xml")
    with pytest.raises(UsageError, match="lowered for openvino"):
        open_model(folders["w8a8"], RuntimeSettings(runtime="onnxruntime"))
    with pytest.raises(UsageError, match="--device cuda is not offered"):
        open_model(folders["w8a8"], RuntimeSettings(device="cuda"))


def test_layers_whose_bias_is_zero_compute_what_torch_does_and_are_found(tmp_path: Path) -> None:
    """OpenVINO leaves such a bias out; where the result is concatenated, it then went wrong."""
    given = checkpoint("digits", tmp_path)
    weights = {name: value.clone() for name, value in given.weights["raw"].items()}
    for name, value in weights.items():
        if name.endswith(".bias") and "norm" not in name:
            value.zero_()
    artifact = quantize_checkpoint(
        dataclasses.replace(given, weights={"raw": weights}),
        recipe_for_bits(8, symmetric=True, edges="8"),
        calibration=CalibrationPlan(images=2, steps=2),
        threads=1,
    )
    write_artifact(artifact, tmp_path / "a")
    kept: list[Lowered] = []
    export_artifact(tmp_path / "a", "openvino", tmp_path / "d", check=lambda _, __, graph: kept.append(graph))
    (lowered,) = kept
    audit = audit_deployment(read_artifact(tmp_path / "a"), tmp_path / "d", lowered=lowered, threads=1)
    assert audit.integer_share == 1
    assert audit.unmatched == ()
    x = np.random.default_rng(7).standard_normal((4, 1, 8, 8)).astype(np.float32)
    t = np.array([0, 300, 600, 999])
    with torch.no_grad():
        expected = lowered.graph(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    with OpenVinoRuntime(tmp_path / "d" / "model.xml", threads=1, precision="fp32") as runtime:
        error = runtime(x, t) - expected
    # A value on the edge of two codes may be rounded either way; a wrong network is further off than zeros.
    assert float(np.sqrt(np.mean(error**2))) < 0.05 * float(np.sqrt(np.mean(expected**2)))
