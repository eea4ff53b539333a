"""ONNX files that are too new, damaged, or keep their data elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from flatq.checkpoint import Checkpoint
from flatq.errors import ArtifactError
from flatq.export.deploy import export_checkpoint
from flatq.models import open_model
from flatq.runtime.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def fp32(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "fp32"
    export_checkpoint(tiny, "onnxruntime", folder)
    return folder


def _change(folder: Path, out: Path, model: onnx.ModelProto) -> Path:
    """The deployment with another model, its digest made right."""
    shutil.copytree(folder, out)
    content = model.SerializeToString()
    (out / "model.onnx").write_bytes(content)
    manifest = json.loads((out / "flatq.json").read_text())
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (out / "flatq.json").write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize(("ir_version", "opset"), [(99, 21), (10, 999)])
def test_a_model_that_is_too_new_says_so(ir_version: int, opset: int, fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32 / "model.onnx")
    model.ir_version = ir_version
    next(o for o in model.opset_import if not o.domain).version = opset
    folder = _change(fp32, tmp_path / "new", model)
    with pytest.raises(ArtifactError, match="too new for ONNX Runtime") as caught:
        open_model(folder)
    assert str(max(ir_version, opset)) in str(caught.value)
    assert "pip install -U onnxruntime" in str(caught.value)


@pytest.mark.parametrize("location", ["missing.bin", "../outside.bin", "link.bin", "/etc/passwd"])
def test_external_data_outside_the_folder_is_refused(location: str, fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32 / "model.onnx")
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    folder = _change(fp32, tmp_path / "external", model)
    (tmp_path / "outside.bin").write_bytes(content)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ArtifactError, match="xternal data"):
        open_model(folder)


def test_external_data_inside_the_folder_is_read(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32 / "model.onnx")
    # Only weights: ONNX Runtime infers shapes from small tensors, and wants those in the file.
    file = tmp_path / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="model.data", size_threshold=1024)
    x, t = np.ones((1, 3, 16, 16), np.float32), np.array([7])
    with OnnxRuntime(tmp_path / "model.onnx") as split, OnnxRuntime(fp32 / "model.onnx") as whole:
        np.testing.assert_array_equal(split(x, t), whole(x, t))


def test_a_damaged_model_is_refused(fp32: Path, tmp_path: Path) -> None:
    content = (fp32 / "model.onnx").read_bytes()
    for number, part in enumerate((b"", content[: len(content) // 2], b"\xff" * 40, b"not onnx")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(part)
        with pytest.raises(ArtifactError, match="refuses"):
            OnnxRuntime(path)
