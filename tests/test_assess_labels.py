"""An evaluation of a network with classes, from end to end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flatq.assess import EvaluateSettings, assess
from flatq.backends import RuntimeSettings
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.errors import ArtifactError, UsageError
from flatq.sampling_settings import SamplingSettings


@pytest.fixture
def task(labelled: Checkpoint, feature_net: Path, tmp_path: Path) -> EvaluateSettings:
    np.savez(
        tmp_path / "data.npz", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    )
    assert labelled.source is not None
    return EvaluateSettings(
        models=(labelled.source,),
        baseline=labelled.source,
        data=str(tmp_path / "data.npz"),
        out=tmp_path / "out",
        sampling=SamplingSettings(steps=1, guidance=2.0),
        images=12,
        features=str(feature_net),
        runtime=RuntimeSettings(threads=1),
        cache=False,
    )


def test_the_report_says_how_images_were_labelled(task: EvaluateSettings) -> None:
    said: list[str] = []
    report = assess(task, note=said.append)
    assert report.labels == "image index modulo 5 classes"
    assert report.models[0].drift is not None
    assert report.models[0].drift.identical
    page = (task.out / "report.md").read_text()
    assert "- labels: image index modulo 5 classes" in page
    assert "- guidance: 2.0" in page
    assert "weights of the baseline: raw (the default)" in said


def test_a_label_out_of_range_is_refused_before_anything_is_sampled(task: EvaluateSettings) -> None:
    with pytest.raises(UsageError, match="out of range"):
        assess(dataclasses.replace(task, sampling=SamplingSettings(steps=1, label=6)))
    assert not task.out.exists()


def test_models_of_other_labels_are_refused(
    task: EvaluateSettings, labelled: Checkpoint, tmp_path: Path
) -> None:
    model = labelled.model.model_copy(update={"null_label": None})
    save_checkpoint(dataclasses.replace(labelled, model=model), tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match="does not take the labels"):
        assess(
            dataclasses.replace(task, models=(tmp_path / "other.pt",), sampling=SamplingSettings(steps=1)),
        )
