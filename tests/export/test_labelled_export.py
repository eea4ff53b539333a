"""A network with classes from checkpoint to deployment: quantized, exported and sampled by label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flatq.backends import RuntimeSettings
from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.deployment import read_deployment
from flatq.errors import ModelError, UsageError
from flatq.export.deploy import export_artifact, export_checkpoint
from flatq.labels import Classes
from flatq.models import Model, open_model
from flatq.noise import NoiseStream, normal
from flatq.quantize.artifact import read_manifest, write_artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sampling_settings import SamplingSettings


@pytest.fixture(scope="module")
def folder(labelled: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact w8a8 with its deployment inside, and the float deployment beside it."""
    out = tmp_path_factory.mktemp("labels")
    calibration = CalibrationPlan(images=5, steps=2, guidance=2.0)
    artifact = quantize_checkpoint(labelled, PRESETS["w8a8"], calibration=calibration, threads=1)
    write_artifact(artifact, out / "w8a8")
    export_artifact(out / "w8a8", "onnxruntime", out / "w8a8" / "onnxruntime")
    export_checkpoint(labelled, "onnxruntime", out / "fp32")
    return out


def _sample(model: Model, plan: SamplingSettings, batch_size: int = 64) -> np.ndarray:
    with model.runtime as runtime:
        return sample(
            runtime,
            model.process,
            plan,
            range(7),
            model.image_shape,
            classes=model.classes,
            batch_size=batch_size,
        )


def test_the_manifests_know_the_classes(folder: Path) -> None:
    classes = Classes(count=6, null=5)
    assert read_deployment(folder / "w8a8" / "onnxruntime")[0].classes == classes
    assert read_deployment(folder / "fp32")[0].classes == classes
    assert read_manifest(folder / "w8a8").model.classes == classes


def test_the_float_export_is_the_network_for_every_label(folder: Path, labelled: Checkpoint) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    t, label = np.full(6, 500), np.arange(6)
    with open_model(folder / "fp32").runtime as runtime:
        found = runtime(x, t, {"label": label})
        same = runtime(x, t, {"label": np.zeros(6, dtype=np.int64)})
        with pytest.raises(ModelError, match="conditions"):
            runtime(x, t)
    with torch.no_grad():
        expected = labelled.network()(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(label))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert float(np.abs(found - same)[1:].max()) > 1e-3


def test_guided_samples_of_the_deployment_and_its_torch_graph_agree(folder: Path) -> None:
    plan = SamplingSettings(steps=3, guidance=1.5)
    deployed = _sample(open_model(folder / "w8a8", RuntimeSettings(threads=1)), plan)
    again = _sample(
        open_model(folder / "w8a8" / "onnxruntime", RuntimeSettings(threads=1)), plan, batch_size=3
    )
    np.testing.assert_allclose(deployed, again, atol=1e-5)
    in_torch = _sample(open_model(folder / "w8a8", RuntimeSettings(runtime="torch", threads=1)), plan)
    assert float(np.abs(deployed - in_torch).mean()) < 0.02
    for other in (SamplingSettings(steps=3), SamplingSettings(steps=3, guidance=1.5, label=3)):
        changed = _sample(open_model(folder / "w8a8", RuntimeSettings(threads=1)), other)
        assert float(np.abs(changed - deployed).max()) > 1e-3


def test_a_label_that_the_deployment_does_not_have(folder: Path) -> None:
    with pytest.raises(UsageError, match="out of range"):
        _sample(open_model(folder / "w8a8"), SamplingSettings(steps=1, label=6))


def test_calibration_sees_every_class_and_with_guidance_the_null_label(labelled: Checkpoint) -> None:
    classes = labelled.model.classes
    with TorchRuntime(labelled.network(), inputs=labelled.model.inputs, threads=1) as runtime:
        for guidance, n in ((1.0, 6), (3.0, 12)):
            plan = CalibrationPlan(images=6, steps=2, guidance=guidance)
            found = collect_inputs(runtime, labelled.process, plan, (3, 16, 16), classes=classes)
            label = found.conditions["label"]
            assert found.x.shape == (2, n, 3, 16, 16)
            assert label.shape == (2, n)
            start = normal(0, range(6), 0, (3, 16, 16), stream=NoiseStream.CALIBRATION)
            np.testing.assert_array_equal(found.x[-1, :6], start)
            assert (set(label[0]) == {0, 1, 2, 3, 4, 5}) == (guidance != 1)
            assert {0, 1, 2, 3, 4} <= set(label[0])
