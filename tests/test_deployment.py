"""A deployment folder away from where it was made: without torch, changed, in the wrong place."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from packaging.requirements import Requirement

from flatq.backends import EXPORT_FLAGS, RuntimeSettings
from flatq.checkpoint import Checkpoint
from flatq.deployment import Target, read_deployment
from flatq.errors import ArtifactError, MissingRuntimeError, ModelError, UsageError
from flatq.export.deploy import export_checkpoint
from flatq.models import open_model
from flatq.quantize.artifact import Artifact
from flatq.runtime.onnxruntime import OnnxRuntime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings

ROOT = Path(__file__).resolve().parent.parent
BASE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino", "tensorrt", "generic")


@pytest.fixture(scope="module")
def artifact(tiny_export: Callable[[str, str], Path]) -> Path:
    """w4a8 of `tiny`, exported for every target."""
    targets = [target for target in TARGETS if target != "openvino" or find_spec("openvino")]
    *_, last = (tiny_export("w4a8", target) for target in targets)
    return last.parent


@pytest.fixture(scope="module")
def fp32(tiny_export: Callable[[str, str], Path]) -> Path:
    return tiny_export("fp32", "onnxruntime")


def _link(names: list[str], site: Path) -> set[str]:
    """Link installed distributions and all that they require into a folder; their names."""
    linked: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        extras = wanted.extras or {""}
        if name in linked or (
            wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in extras)
        ):
            continue
        linked.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
        waiting += map(Requirement, found.requires or ())
    return linked


_BODY = """
import sys
sys.path.insert(0, {site!r})
from importlib.util import find_spec
for absent in ("torch", "torchao", "diffusers", "onnx", "safetensors"):
    assert find_spec(absent) is None, absent
sys.argv = ["flatq", "sample", {folder!r}, "-n", "5", "--steps", "3", "--threads", "1", "-o", {out!r}]
from flatq.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code

import numpy as np
from pathlib import Path
from flatq.backends import RuntimeSettings
from flatq.models import open_model
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings
model = open_model(Path({folder!r}), RuntimeSettings(threads=1))
with model.runtime as runtime:
    images = sample(runtime, model.process, SamplingSettings(steps=3), range(5), model.image_shape)
np.save({array!r}, images)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_the_folder_samples_without_torch(package: Target, artifact: Path, tmp_path: Path) -> None:
    """Only the base install and one runtime can be imported there, and the images are the same."""
    pytest.importorskip(package)
    site = tmp_path / "site"
    site.mkdir()
    linked = _link([*BASE, package], site)
    assert {"numpy", "pydantic", package} <= linked
    assert not {"torch", "onnx", "safetensors"} & linked
    # What a wheel would install: the package, and the folders beside it under their own names.
    shutil.copytree(ROOT / "flatq", site / "flatq", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train", "calib", "export"):
        shutil.copytree(ROOT / name, site / "flatq" / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "moved"
    shutil.copytree(artifact / package, folder)
    names = {"site": site, "folder": folder, "out": tmp_path / "a.npz", "array": tmp_path / "a.npy"}
    code = _BODY.format(**{name: str(path) for name, path in names.items()})
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    model = open_model(artifact, RuntimeSettings(runtime=package, threads=1))
    with model.runtime as runtime:
        here = sample(runtime, model.process, SamplingSettings(steps=3), range(5), model.image_shape)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), here)
    pixels = np.load(tmp_path / "a.npz")["arr_0"]
    assert pixels.shape == (5, 16, 16, 3)
    assert np.abs(pixels - np.clip((here.transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255)).max() <= 1


def test_generic_and_symmetric_graphs_sample_close_to_the_others(artifact: Path) -> None:
    """The four placements are one artifact: run by one runtime, they differ by rounding alone."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((4, 3, 16, 16)).astype(np.float32), np.array([0, 300, 600, 999])
    outputs = {}
    for target in ("onnxruntime", "tensorrt", "generic"):
        with OnnxRuntime(artifact / target / "model.onnx", threads=1) as runtime:
            outputs[target] = runtime(x, t)
    with open_model(artifact / "generic", RuntimeSettings(threads=1)).runtime as runtime:
        np.testing.assert_array_equal(runtime(x, t), outputs["generic"])
    size = np.sqrt(np.mean(outputs["generic"] ** 2))
    for target in ("onnxruntime", "tensorrt"):
        error = np.sqrt(np.mean((outputs[target] - outputs["generic"]) ** 2))
        assert 0 < error < 0.1 * size, target


def test_the_generic_file_is_plain_onnx(artifact: Path, tiny_artifacts: dict[str, Artifact]) -> None:
    model = onnx.load(artifact / "generic" / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 21)]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    stored = [i for i in model.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) > 1]
    assert len(stored) == len(tiny_artifacts["w4a8"].integers)
    assert TensorProto.INT4 not in {i.data_type for i in model.graph.initializer}
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    planned = [d for d in tiny_artifacts["w4a8"].manifest.decisions if d.port == "input" and d.scheme]
    assert 0 < len(quantizers) <= len(planned)  # layers that read one tensor share its quantizer


@pytest.mark.parametrize("target", [pytest.param("generic", marks=pytest.mark.slow), "openvino"])
def test_a_float_export_is_the_network_for_every_label(
    target: Target, labelled: Checkpoint, tmp_path: Path
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    export_checkpoint(labelled, target, tmp_path)
    x = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    t, label = np.array([0, 1, 200, 500, 900, 999]), np.arange(6)
    with torch.no_grad():
        inputs = (torch.from_numpy(value) for value in (x, t, label))
        expected = labelled.network()(*inputs).numpy()
    with open_model(
        tmp_path, RuntimeSettings(threads=1, precision="fp32" if target == "openvino" else None)
    ).runtime as runtime:
        np.testing.assert_allclose(runtime(x, t, {"label": label}), expected, atol=2e-5)
        with pytest.raises(ModelError, match="conditions"):
            runtime(x, t)


def test_only_onnx_runtime_gets_a_group_normalization(artifact: Path) -> None:
    """The operator of opset 21 is one that other parsers refuse, or take for that of opset 18."""
    for target in ("tensorrt", "generic"):
        model = onnx.load(artifact / target / "model.onnx")
        assert "GroupNormalization" not in {node.op_type for node in model.graph.node}
        assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.slow
def test_fp16_of_a_float_checkpoint_is_a_deployment_like_others(tiny: Checkpoint, tmp_path: Path) -> None:
    export_checkpoint(tiny, "onnxruntime", tmp_path, float_precision="fp16")
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    t = np.array([0, 500, 999])
    with torch.no_grad():
        expected = tiny.network()(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    model = open_model(tmp_path, RuntimeSettings(threads=1))
    with model.runtime as runtime:
        error = runtime(x, t) - expected
    assert model.precision == "fp16"
    assert 0 < np.sqrt(np.mean(error**2)) < 5e-3 * np.sqrt(np.mean(expected**2))


_BUILD = """
import sys
from pathlib import Path
from flatq.errors import MissingRuntimeError
from flatq.export.engine import build_engine
try:
    build_engine(Path({folder!r}))
except MissingRuntimeError as error:
    assert "model.onnx is what to take" in str(error), error
assert "torch" not in sys.modules
"""


def test_an_engine_is_built_without_torch(artifact: Path) -> None:
    """As far as this machine goes: on the one with the GPU a copied folder needs no more than this."""
    code = _BUILD.format(folder=str(artifact / "tensorrt"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("target", "settings", "right"),
    [
        ("onnxruntime", {"runtime": "openvino"}, "openvino"),
        ("onnxruntime", {"device": "tensorrt"}, "tensorrt"),
        ("onnxruntime", {"runtime": "tensorrt"}, "tensorrt"),
        ("onnxruntime", {"device": "cuda"}, "tensorrt"),
        ("tensorrt", {"runtime": "onnxruntime"}, "onnxruntime"),
        ("generic", {"runtime": "openvino"}, "openvino"),
        ("generic", {"device": "cuda"}, "tensorrt"),
    ],
)
def test_a_graph_in_the_wrong_place_names_the_right_target(
    target: Target, settings: dict[str, str], right: Target, artifact: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        open_model(artifact / target, RuntimeSettings(**settings))
    assert EXPORT_FLAGS[right] in str(caught.value)


def test_an_artifact_that_was_not_exported_names_the_command(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "a", ignore=shutil.ignore_patterns(*TARGETS))
    for runtime, flag in (("onnxruntime", "--onnx"), ("openvino", "--openvino"), ("tensorrt", "--trt")):
        with pytest.raises(ArtifactError, match=f"flatq export .* {flag}"):
            open_model(tmp_path / "a", RuntimeSettings(runtime=runtime))


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_missing_provider_is_an_error(device: str, fp32: Path) -> None:
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this ONNX Runtime has providers for NVIDIA")
    with pytest.raises(MissingRuntimeError, match=r"has no .*ExecutionProvider"):
        open_model(fp32, RuntimeSettings(device=device, runtime="onnxruntime"))


def test_a_provider_that_does_not_start_is_an_error(fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with the CPU where CUDA's libraries are missing: its session says so."""
    import onnxruntime

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession

    def start(path: str, options: object, providers: list[str]) -> object:
        assert providers == offered
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(MissingRuntimeError, match="did not start its CUDAExecutionProvider"):
        OnnxRuntime(fp32 / "model.onnx", device="cuda")


def test_the_tensorrt_provider_is_allowed_the_integers(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its flag TensorRT refuses to build a network with Q/DQ nodes that is not strongly typed."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    asked = []

    class Started(real):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, options: object, providers: list[object]) -> None:
            asked.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider", *super().get_providers()]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    for path in (artifact, artifact / "tensorrt"):
        asked.clear()
        with open_model(path, RuntimeSettings(device="tensorrt")).runtime as runtime:
            assert runtime.identity["device"] == "tensorrt"
        assert asked[0] == ("TensorrtExecutionProvider", {"trt_int8_enable": "1"})
        assert asked[1:] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_bound_memory_gives_what_a_plain_run_gives(fp32: Path) -> None:
    """The binding for a GPU's memory, here over the CPU's."""
    import onnxruntime

    from flatq.runtime.onnxruntime import _Bound

    session = onnxruntime.InferenceSession(fp32 / "model.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    bound = None
    kept = []
    for _ in range(3):
        feed = {"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32), "t": np.array([5, 900])}
        bound = bound or _Bound(onnxruntime, session, feed, "cpu")
        kept.append((bound.run(feed), session.run(None, feed)[0]))
    for found, expected in kept:
        np.testing.assert_array_equal(found, expected)


def test_bad_inputs_are_refused(fp32: Path) -> None:
    x, t = np.zeros((2, 3, 16, 16), np.float32), np.zeros(2, np.int64)
    spoiled = x.copy()
    spoiled[1, 0, 0, 0] = np.inf
    with open_model(fp32, RuntimeSettings(threads=1)).runtime as runtime:
        assert runtime(x, t).shape == x.shape
        for bad_x, bad_t, words in (
            (x[:0], t[:0], "N at least 1"),
            (x[:, :1], t, "3 x 16 x 16"),
            (x[..., :8], t, "3 x 16 x 16"),
            (x[0], t[:1], "3 x 16 x 16"),
            (x.astype(np.float64), t, "float32"),
            (x, t[:1], "one for each of 2 images"),
            (x, t.astype(np.float32), "int64"),
            (spoiled, t, "finite"),
        ):
            with pytest.raises(ModelError, match=words):
                runtime(bad_x, bad_t)
        with pytest.raises(ModelError, match="conditions"):
            runtime(x, t, {"label": t})
    with pytest.raises(UsageError, match="no threads"):
        open_model(fp32, RuntimeSettings(threads=0))


def test_a_changed_or_linked_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    folders = [t for t in TARGETS if (artifact / t).is_dir()]
    for target in folders:
        names = [read_deployment(artifact / target)[0].file, *read_deployment(artifact / target)[0].files]
        for name in names:
            copy = tmp_path / f"{target}-{name}"
            shutil.copytree(artifact / target, copy)
            with (copy / name).open("ab") as file:
                file.write(b"\0")
            with pytest.raises(ArtifactError, match="changed after export"):
                read_deployment(copy)
            (copy / name).unlink()
            with pytest.raises(ArtifactError, match="missing"):
                read_deployment(copy)
            (copy / name).symlink_to(artifact / target / name)
            with pytest.raises(ArtifactError, match="a link"):
                read_deployment(copy)


def test_a_manifest_cannot_name_files_outside(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact / "generic", tmp_path / "d")
    path = tmp_path / "d" / "flatq.json"
    manifest = json.loads(path.read_text())
    (tmp_path / "secret").write_text("x")
    manifest["files"] = {"../secret": hashlib.sha256(b"x").hexdigest()}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="missing"):
        read_deployment(tmp_path / "d")
