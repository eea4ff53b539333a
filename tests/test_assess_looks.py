"""An evaluation that goes on until the gate decides, with plain numpy in the networks' place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_runtime import Toy

from flatq.assess import EvaluateSettings, assess
from flatq.backends import RuntimeSettings
from flatq.errors import UsageError
from flatq.evaluate.drift import beyond_relative_tolerance, fid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.models import Model, Opening
from flatq.process import ProcessConfig
from flatq.report.model import Report, read_report
from flatq.report.planning import plan_text
from flatq.runtime.base import UNCONDITIONED, Condition
from flatq.sampling_settings import SamplingSettings


class Off(Toy):
    """A toy that is a little off; `sampled` counts images."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off, self.sampled = off, 0
        self.stop_after: int | None = None

    def __call__(
        self, x: NDArray[np.float32], t: NDArray[np.int64], cond: Condition = UNCONDITIONED
    ) -> NDArray[np.float32]:
        if self.sampled == self.stop_after:
            raise KeyboardInterrupt
        self.sampled += len(x) if t[0] == 0 else 0  # the last step of an image
        return super().__call__(x, t, cond) + np.float32(self.off)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> dict[str, Off]:
    """By the name of a model's file."""
    found = {"float.pt": Off(0.0), "near.pt": Off(0.002), "far.pt": Off(-1.0)}

    def open_toy(path: Path, *_: Any, **__: Any) -> Model:
        process = ProcessConfig(schedule="cosine")
        opened = (path.name, "fp32", "raw", path.name, 1, None, Opening(path))
        return Model(found[path.name], process, (3, 16, 16), None, *opened)

    monkeypatch.setattr("flatq.assess.open_model", open_toy)
    return found


@pytest.fixture
def task(toys: dict[str, Off], feature_net: Path, tmp_path: Path) -> EvaluateSettings:
    for name in toys:
        (tmp_path / name).touch()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", pixels)
    return EvaluateSettings(
        models=(tmp_path / "near.pt", tmp_path / "far.pt"),
        baseline=tmp_path / "float.pt",
        data=str(tmp_path / "data.npz"),
        out=tmp_path / "out",
        sampling=SamplingSettings(steps=4),
        images=40,
        batch_size=20,
        features=str(feature_net),
        runtime=RuntimeSettings(threads=1),
        cache=False,
    )


def test_it_draws_until_the_gate_decides(task: EvaluateSettings, toys: dict[str, Off]) -> None:
    pilot = assess(task)
    drifts = [entry.drift for entry in pilot.models]
    assert drifts[0] is not None
    assert drifts[1] is not None
    assert drifts[0].high is not None
    assert drifts[1].low is not None
    assert drifts[1].low > 2 * abs(drifts[0].high)
    for toy in toys.values():
        toy.sampled = 0
    between = (abs(drifts[0].high) + drifts[1].low) / 2
    task = dataclasses.replace(task, max_drift=between, max_samples=160, looks=3)
    report = assess(task)
    near, far = report.models
    assert near.looks is not None
    assert near.looks.planned == (40, 80, 160)
    assert near.drift is not None
    assert near.drift.confidence == pytest.approx(1 - 0.05 / 3)
    assert near.verdict is not None
    assert far.verdict is not None
    assert (near.verdict.outcome, far.verdict.outcome) == ("pass", "fail")
    sampled = {name: toy.sampled for name, toy in toys.items()}
    assert sampled["near.pt"] == near.drift.n == near.looks.planned[near.looks.taken - 1]
    assert sampled["float.pt"] == report.n == max(sampled["near.pt"], sampled["far.pt"])
    assert report.gate is not None
    assert read_report(task.out) == report
    assert (
        "look 1 of 3 planned (at n = 40, 80, 160), together at 95 %" in (task.out / "report.md").read_text()
    )


def test_the_last_look_is_the_evaluation_of_as_many(task: EvaluateSettings, toys: dict[str, Off]) -> None:
    """A tolerance at the drift itself is never decided on; the samples are those of one evaluation of 160."""
    task = dataclasses.replace(task, models=task.models[:1])
    whole = assess(dataclasses.replace(task, images=160)).models[0].drift
    assert whole is not None
    assert whole.corrected is not None
    tau = max(whole.corrected, 0.0)
    grown = assess(dataclasses.replace(task, max_drift=tau, max_samples=160, looks=3))
    found = grown.models[0].drift
    assert found is not None
    if found.n == 160:
        assert found.corrected == pytest.approx(whole.corrected, rel=1e-9)
        assert found.raw == pytest.approx(whole.raw, rel=1e-9)
    sidecar = np.load(task.out / str(grown.models[0].sidecar))
    assert sidecar["indices"].tolist() == list(range(found.n))
    assert toys["near.pt"].sampled == 160 + found.n


def test_a_pilot_is_a_plan(task: EvaluateSettings) -> None:
    report = assess(task)
    text = plan_text(report, task.out, 5.0, None)
    assert "near.pt: 40 images resolve" in text
    assert "far.pt: 40 images resolve" in text
    assert "to pass with 80% power if there is no drift" in text
    assert report.baseline.seconds_per_image is not None
    assert "10 samples per feature rank" in plan_text(report, task.out, None, 0.1)
    few = assess(dataclasses.replace(task, images=4))
    assert "4 images give no interval" in plan_text(few, task.out, None, None)


def test_relative_tolerance_at_evaluation(task: EvaluateSettings) -> None:
    """The report keeps the plain drift; the verdict is that of the drift beyond the tolerance."""
    report = assess(dataclasses.replace(task, max_drift_rel=0.2))
    entry = report.models[1]
    assert entry.drift is not None
    assert entry.drift.relative_tolerance is None
    kept = np.load(task.out / str(entry.sidecar))
    x, q = kept["features_float"], kept["features_quantized"]
    data = np.load(str(task.data))["arr_0"]
    weights = np.random.default_rng(1).standard_normal((3 * 16 * 16, 4)).astype(np.float32)
    real = np.moveaxis(data, 3, 1).reshape(len(data), -1).astype(np.float32) @ weights
    plain = fid_drift(x, q, reference_from_features(real.astype(np.float64)))
    influences = kept["influence_float"], kept["influence_quantized"]
    expected = beyond_relative_tolerance(plain, 0.2, *influences)
    assert expected.low is not None
    assert expected.high is not None
    assert entry.verdict is not None
    outcome = "pass" if expected.high <= 0 else "fail" if expected.low > 0 else "inconclusive"
    assert entry.verdict.outcome == outcome
    assert f"{expected.corrected:+.4g}"[:5] in entry.verdict.reason


def test_it_refuses(task: EvaluateSettings) -> None:
    with pytest.raises(UsageError, match="no tolerance"):
        assess(dataclasses.replace(task, max_samples=100))
    with pytest.raises(UsageError, match="looks"):
        assess(dataclasses.replace(task, max_drift=1.0, max_samples=20))


def _but_for_times(report: Report) -> dict[str, Any]:
    content = report.model_dump()
    for part in (content["baseline"], *content["models"]):
        part["latency_ms"] = part["seconds_per_image"] = None
    return content


def _drawn(toys: dict[str, Off]) -> dict[str, int]:
    found = {name: toy.sampled for name, toy in toys.items()}
    for toy in toys.values():
        toy.sampled = 0
    return found


def test_a_second_evaluation_samples_nothing(
    task: EvaluateSettings, toys: dict[str, Off], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    bare = assess(task)
    assert _drawn(toys) == dict.fromkeys(toys, 40)
    task = dataclasses.replace(task, cache=True)
    first = assess(task)
    assert _but_for_times(first) == _but_for_times(bare)
    assert _drawn(toys) == dict.fromkeys(toys, 40)
    again = assess(dataclasses.replace(task, max_drift=1.0))
    assert _drawn(toys) == dict.fromkeys(toys, 0)
    assert [entry.drift for entry in again.models] == [entry.drift for entry in first.models]
    assert again.models[0].latency_ms == first.models[0].latency_ms is not None
    assert again.models[0].seconds_per_image == first.models[0].seconds_per_image
    more = assess(dataclasses.replace(task, images=70))  # two batches are there, one full and half a one not
    assert _drawn(toys) == dict.fromkeys(toys, 30)
    assert _but_for_times(more) == _but_for_times(assess(dataclasses.replace(task, images=70, cache=False)))
    _drawn(toys)
    other = dataclasses.replace(task, sampling=SamplingSettings(steps=4, seed=1))
    assess(other)
    assert _drawn(toys) == dict.fromkeys(toys, 40)
    assess(dataclasses.replace(other, batch_size=8))
    assert _drawn(toys) == dict.fromkeys(toys, 40)


def test_an_interrupted_evaluation_goes_on(
    task: EvaluateSettings, toys: dict[str, Off], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    whole = assess(dataclasses.replace(task, images=100))
    _drawn(toys)
    task = dataclasses.replace(task, images=100, cache=True)
    toys["near.pt"].stop_after = 60
    with pytest.raises(KeyboardInterrupt):
        assess(task)
    toys["near.pt"].stop_after = None
    _drawn(toys)
    assert _but_for_times(assess(task)) == _but_for_times(whole)
    assert _drawn(toys) == {"float.pt": 0, "near.pt": 40, "far.pt": 100}


def test_damaged_samples_are_drawn_again(
    task: EvaluateSettings, toys: dict[str, Off], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    task = dataclasses.replace(task, cache=True)
    whole = assess(task)
    _drawn(toys)
    files = sorted((tmp_path / "cache" / "samples").glob("*/*.npz"))
    assert len(files) == 6  # two batches of three models
    files[0].write_bytes(b"no npz")
    files[2].write_bytes(files[1].read_bytes())  # of another place
    said: list[str] = []
    assert _but_for_times(assess(task, note=said.append)) == _but_for_times(whole)
    damaged = [line for line in said if "is damaged and is made again" in line]
    assert len(damaged) == 2
    assert sum(_drawn(toys).values()) == 40


def test_another_feature_network_samples_nothing(
    task: EvaluateSettings,
    toys: dict[str, Off],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnx

    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    task = dataclasses.replace(task, cache=True)
    first = assess(task)
    assert _drawn(toys) == dict.fromkeys(toys, 40)
    net = onnx.load(str(task.features))
    net.doc_string = "the same numbers, another digest"
    onnx.save(net, tmp_path / "other.onnx")
    other = assess(dataclasses.replace(task, features=str(tmp_path / "other.onnx")))
    assert _drawn(toys) == dict.fromkeys(toys, 0)
    assert other.extractor.digest != first.extractor.digest
    assert [entry.drift for entry in other.models] == [entry.drift for entry in first.models]


def test_images_are_kept_as_bytes(
    task: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    report = assess(dataclasses.replace(task, cache=True))
    for file in (tmp_path / "cache" / "samples").glob("*/*.npz"):
        with np.load(file) as kept:
            assert kept["images"].dtype == np.uint8
            assert kept["images"].shape == (20, 3, 16, 16)
    with np.load(task.out / str(report.models[1].sidecar)) as sidecar:
        rows = sidecar["kept"] - task.first
        pairs = sidecar["kept_float"].astype(np.float64) - sidecar["kept_quantized"]
        expected = np.sqrt(np.mean((pairs / 127.5) ** 2, axis=(1, 2, 3)))
        assert sidecar["image_distance"][rows] == pytest.approx(expected, rel=1e-5)
        assert report.models[1].rms_distance_mean == pytest.approx(sidecar["image_distance"].mean())


def test_samples_that_are_not_finite(task: EvaluateSettings, toys: dict[str, Off]) -> None:
    toys["near.pt"].off = np.nan
    near, far = assess(dataclasses.replace(task, max_drift=1.0)).models
    assert (near.not_finite, far.not_finite) == (40, 0)
    assert near.verdict is not None
    assert (near.verdict.outcome, near.verdict.metric) == ("fail", "samples")
    assert "40 of 40 images" in near.verdict.reason
    data = np.load(str(task.data))["arr_0"]
    weights = np.random.default_rng(1).standard_normal((3 * 16 * 16, 4)).astype(np.float32)
    real = np.moveaxis(data, 3, 1).reshape(len(data), -1).astype(np.float32) @ weights
    grey = np.full((40, 3 * 16 * 16), 128, np.float32) @ weights
    with np.load(task.out / str(near.sidecar)) as sidecar:
        assert (sidecar["kept_quantized"] == 128).all()
        assert sidecar["image_distance"].mean() == pytest.approx(near.rms_distance_mean)
        assert sidecar["features_quantized"] == pytest.approx(grey, rel=1e-4)
        expected = fid_drift(sidecar["features_float"], grey, reference_from_features(real))
    assert near.drift.raw == pytest.approx(expected.raw, rel=1e-4)
    page = (task.out / "report.html").read_text(encoding="utf-8")
    assert "40 of 40 images were not finite and count as mid-grey" in page
