"""The key of cached samples: by construction, whatever changes them changes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flatq.backends import RuntimeSettings
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.evaluate.cache import Cache
from flatq.evaluate.features import open_features
from flatq.evaluate.samples import Sampling, sample_key
from flatq.export.deploy import export_checkpoint
from flatq.models import Opening, deployment_folder, open_model
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.sampling_settings import SamplingSettings

TORCH = RuntimeSettings("torch", threads=1)
OPENVINO = RuntimeSettings("openvino", threads=1)
PAIRS: dict[str, Callable[[Path], tuple[Opening, Opening]]] = {
    "weights": lambda at: (Opening(at / "c.pt", TORCH, "raw"), Opening(at / "c.pt", TORCH, "ema")),
    "lowered_for": lambda at: (Opening(at / "q", TORCH), Opening(at / "q", TORCH, lowered_for="openvino")),
    "runtime.runtime": lambda at: _on(at, TORCH, replace(TORCH, runtime="onnxruntime")),
    "runtime.device": lambda at: _on(at, TORCH, replace(TORCH, device="meta")),
    "runtime.threads": lambda at: _on(at, TORCH, replace(TORCH, threads=2)),
    "runtime.precision": lambda at: _on(at, replace(OPENVINO, precision="fp32"), _in_bf16()),
    "runtime.hint": lambda at: _on(at, OPENVINO, replace(OPENVINO, hint="throughput")),
}
"""For each field two openings that differ in it alone, and whose samples may differ."""
CANNOT_CHANGE_SAMPLES = {"path"}  # what lies there does, and its digest is in the key


def _on(at: Path, *settings: RuntimeSettings) -> Any:
    return tuple(Opening(at / "c.pt", setting) for setting in settings)


def _in_bf16() -> RuntimeSettings:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has one float precision, so that there is no other to choose")
    return replace(OPENVINO, precision="bf16")


@pytest.fixture(scope="module")
def at(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the checkpoint c.pt of two kinds of weights, its float exports, and an artifact q."""
    folder = tmp_path_factory.mktemp("samples")
    raw = tiny.weights["raw"]
    weights = {"raw": raw, "ema": {name: value / 2 for name, value in raw.items()}}
    checkpoint = save_checkpoint(replace(tiny, weights=weights), folder / "c.pt")
    for target, module in (("onnxruntime", "onnxruntime"), ("openvino", "openvino")):
        pytest.importorskip(module)
        export_checkpoint(checkpoint, target, deployment_folder(folder / "c.pt", target))
    write_artifact(tiny_artifacts["w8a8"], folder / "q")
    return folder


@pytest.fixture
def key(feature_net: Path, tmp_path: Path) -> Callable[[Opening], dict[str, Any]]:
    net = open_features(feature_net, image_shape=(3, 16, 16))
    sampling = Sampling(SamplingSettings(), 0, 8, "round", net, Cache(tmp_path, pytest.fail))

    def of(opening: Opening) -> dict[str, Any]:
        model = open_model(**vars(opening))
        with model.runtime:
            return sample_key(model, sampling)

    return of


def test_every_field_of_an_opening_is_accounted_for() -> None:
    names = {field.name for field in fields(Opening)} - {"runtime"}
    names |= {f"runtime.{field.name}" for field in fields(RuntimeSettings)}
    assert names == PAIRS.keys() | CANNOT_CHANGE_SAMPLES


@pytest.mark.parametrize("field", PAIRS)
def test_a_field_of_the_opening_changes_the_key(
    field: str, at: Path, key: Callable[[Opening], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatq.models.check_settings", lambda _: None)  # a second device that is everywhere
    one, other = PAIRS[field](at)
    for name in {each.name for each in fields(Opening)} - {field.partition(".")[0]}:
        assert getattr(one, name) == getattr(other, name)
    assert key(one) != key(other)


@pytest.mark.parametrize(
    "change",
    [{"rounding": "truncate"}, {"first": 1}, {"batch_size": 4}, {"settings": SamplingSettings(seed=1)}],
)
def test_how_images_are_drawn_changes_the_key(
    change: dict[str, Any], at: Path, feature_net: Path, tmp_path: Path
) -> None:
    net = open_features(feature_net, image_shape=(3, 16, 16))
    sampling = Sampling(SamplingSettings(), 0, 8, "round", net, Cache(tmp_path, pytest.fail))
    model = open_model(at / "c.pt", TORCH)
    assert sample_key(model, replace(sampling, **change)) != sample_key(model, sampling)


def test_a_default_spelled_out_keeps_the_key(at: Path, key: Callable[[Opening], dict[str, Any]]) -> None:
    spelled = Opening(at / "c.pt", replace(TORCH, device="cpu"), "ema")
    assert key(spelled) == key(Opening(at / "c.pt", RuntimeSettings(threads=1)))


@pytest.mark.parametrize(
    "name",
    [
        "flatq.evaluate.samples.__version__",
        "flatq.evaluate.samples.NOISE_VERSION",
        "flatq.evaluate.samples.instruction_set",
        "numpy.__version__",
    ],
)
def test_the_machine_and_the_versions_change_the_key(
    name: str, at: Path, key: Callable[[Opening], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(Opening(at / "c.pt", TORCH))
    monkeypatch.setattr(name, (lambda: "other") if name.endswith("set") else "other")
    assert key(Opening(at / "c.pt", TORCH)) != before
