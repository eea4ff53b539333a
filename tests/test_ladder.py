"""The ladder, over a network of random weights and its artifact on ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flatq.assess import EvaluateSettings, assess
from flatq.backends import RuntimeSettings
from flatq.checkpoint import Checkpoint
from flatq.errors import DataError, UsageError
from flatq.evaluate.drift import fid_drift
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.ladder import ERRORS, check_ladder, climb
from flatq.evaluate.moments import reference_from_features
from flatq.export.deploy import export_artifact
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.report.model import read_report
from flatq.sampling_settings import SamplingSettings


def test_the_errors_add_up() -> None:
    rng = np.random.default_rng(0)
    reference = reference_from_features(1.2 * rng.normal(size=(2000, 4)))
    x = rng.normal(size=(100, 4))
    b = x + 1e-3 * rng.normal(size=x.shape)
    c, d = x + 0.3 * rng.normal(size=x.shape), x + 0.4
    sides = {rung: frechet_side(f, reference) for rung, f in zip("ABCD", (x, b, c, d), strict=True)}
    ladder = climb(sides, {}, reference, 0.9)  # type: ignore[arg-type]
    for field in ("raw", "corrected"):
        parts = [getattr(getattr(ladder, name), field) for name in ("export", "quantization", "kernel")]
        assert sum(parts) == pytest.approx(getattr(ladder.total, field), rel=1e-9)
    for name, other in (("total", d), ("quantization", c), ("export", b)):
        drift = fid_drift(x, other, reference, 0.9)
        found = getattr(ladder, name)
        assert (found.low, found.high) == pytest.approx((drift.low, drift.high), rel=1e-6, abs=1e-12)
    assert set(ERRORS) == {"export", "quantization", "kernel", "total"}
    same = climb(dict.fromkeys("ABCD", sides["A"]), {}, reference)  # type: ignore[misc]
    assert (same.kernel.corrected, same.kernel.standard_error) == (0.0, 0.0)
    with pytest.raises(DataError, match="no contrast"):
        climb({"A": sides["A"]}, {}, reference)


def test_on_a_runtime(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], feature_net: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    assert tiny.source is not None
    artifact = tmp_path / "q"
    write_artifact(tiny_artifacts["w4a8"], artifact)
    export_artifact(artifact, "onnxruntime", artifact / "onnxruntime")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", pixels)
    task = EvaluateSettings(
        models=(artifact,),
        baseline=tiny.source,
        data=str(tmp_path / "data.npz"),
        out=tmp_path / "out",
        sampling=SamplingSettings(steps=2),
        images=24,
        features=str(feature_net),
        runtime=RuntimeSettings(threads=1),
        cache=False,
        ladder=True,
    )
    entry = assess(task).models[0]
    ladder, drift = entry.ladder, entry.drift
    assert ladder is not None
    assert drift is not None
    assert drift.low is not None
    assert (ladder.total.low, ladder.total.high) == pytest.approx((drift.low, drift.high), rel=1e-6)
    assert ladder.fids["A"] == pytest.approx(drift.fid_float, rel=1e-9)
    assert ladder.fids["D"] == pytest.approx(drift.fid_quantized, rel=1e-9)
    assert [ladder.runtimes[rung]["runtime"] for rung in ("A", "B", "C", "D")] == [
        "torch",
        "onnxruntime",
        "torch",
        "onnxruntime",
    ]
    # what 4 bits do to the images is far above what another order of float32 sums does
    quantization = abs(ladder.quantization.raw)
    assert abs(ladder.export.raw) < 0.05 * quantization
    assert abs(ladder.kernel.raw) < 0.5 * quantization
    assert read_report(task.out).models[0].ladder == ladder
    page = (task.out / "report.md").read_text()
    assert "## Ladder" in page
    assert "| kernel |" in page
    with pytest.raises(UsageError, match="no ladder"):
        assess(dataclasses.replace(task, models=(artifact / "onnxruntime",)))
    with pytest.raises(UsageError, match="no ladder"):
        check_ladder(tiny.source, RuntimeSettings(), (artifact,), RuntimeSettings("torch"))
    with pytest.raises(UsageError, match="starts at the float model"):
        check_ladder(tiny.source, RuntimeSettings("onnxruntime"), (artifact,), RuntimeSettings())
