"""A deployment is verified against the artifact that it was exported from, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from networks import checkpoint

from flatq.calib.inputs import CalibrationPlan
from flatq.errors import UsageError
from flatq.export.deploy import export_artifact
from flatq.quantize.artifact import read_artifact, write_artifact
from flatq.quantize.lowering import lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS
from flatq.verify.audit import audit_deployment
from flatq.verify.parity import verify_parity


@pytest.mark.slow
def test_an_artifact_of_other_weights_by_the_same_recipe_is_refused(tmp_path: Path) -> None:
    given = checkpoint("digits", tmp_path)
    made = quantize_checkpoint(given, PRESETS["w8a8"], calibration=CalibrationPlan(images=1, steps=1))
    averaged = made.manifest.model_copy(update={"parent": {**made.manifest.parent, "weights": "ema"}})
    write_artifact(made, tmp_path / "raw")
    write_artifact(replace(made, manifest=averaged), tmp_path / "ema")
    deployment = export_artifact(tmp_path / "ema", "generic", tmp_path / "deployed")
    assert deployment.provenance["artifact"] == read_artifact(tmp_path / "ema").digest
    other = read_artifact(tmp_path / "raw")
    assert other.manifest.precision == deployment.precision
    for refusing in (audit_deployment, verify_parity):
        with pytest.raises(UsageError, match="was not exported from this artifact") as caught:
            refusing(other, tmp_path / "deployed", lowered=lower(other, "generic"), threads=1)
        assert "w8a8, raw weights" in str(caught.value.got)
