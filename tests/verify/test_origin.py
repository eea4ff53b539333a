"""A deployment is verified against the artifact that it was exported from, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from networks import checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.errors import UsageError
from flatq.export import export_artifact
from flatq.quantize.artifact import read_artifact, write_artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS
from flatq.verify.audit import audit_deployment
from flatq.verify.parity import verify_parity


def test_an_artifact_of_other_weights_by_the_same_recipe_is_refused(tmp_path: Path) -> None:
    given = checkpoint("digits", tmp_path)
    averaged = {name: 0.5 * value for name, value in given.weights["raw"].items()}
    both = replace(given, weights={"raw": given.weights["raw"], "ema": averaged})
    few = CalibrationPlan(images=1, steps=1)
    for weights in ("raw", "ema"):
        made = quantize_checkpoint(both, PRESETS["w8a8"], average=weights, calibration=few, threads=1)
        write_artifact(made, tmp_path / weights)
    deployment = export_artifact(tmp_path / "ema", "generic", tmp_path / "deployed")
    other = read_artifact(tmp_path / "raw")
    assert other.manifest.precision == deployment.precision
    for refusing in (audit_deployment, verify_parity):
        with pytest.raises(UsageError, match="was not exported from this artifact") as caught:
            refusing(other, tmp_path / "deployed", threads=1)
        assert "w8a8, raw weights" in str(caught.value.got)
