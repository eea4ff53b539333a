from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatq.errors import DataError
from flatq.evaluate.drift import Drift, fid_drift
from flatq.evaluate.gate import Tolerances
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.evaluate.precision_recall import PrecisionRecall, manifold_of, precision_recall
from flatq.report.gating import regate, with_verdicts
from flatq.report.grids import save_pair_grid
from flatq.report.markdown import render_markdown
from flatq.report.model import (
    Baseline,
    Environment,
    ExtractorEntry,
    ModelEntry,
    ReferenceEntry,
    Report,
    read_report,
)
from flatq.report.write import write_report
from flatq.verify import Audit
from flatq.verify.results import AuditEntry

D = 6
RUNTIME = {"runtime": "onnxruntime", "version": "1.22.0", "device": "cpu", "threads": 1}


def _entry(kind: str, n: int = 400, **more: Any) -> ModelEntry:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(800, D))
    x = rng.normal(size=(n, D)) + 0.1
    q = {
        "identical": x,
        "small": x + 0.05 * rng.normal(size=x.shape),
        "large": 1.5 * x + 0.5,
        "collapse": np.repeat(x[:1], n, axis=0),
        "broken": np.zeros_like(x),
    }[kind]
    base: dict[str, Any] = {
        "name": f"{kind}.onnx",
        "label": kind,
        "precision": "w8a8",
        "digest": "ab" * 32,
        "runtime": RUNTIME,
        "size_bytes": 1_234_567,
        "latency_ms": 1.5,
        "drift": fid_drift(x, q, reference_from_features(real)),
        "kid": kid_drift(x, q, real),
        "not_finite": n if kind == "broken" else 0,
        "prc": precision_recall(manifold_of(q), manifold_of(real)),
        "rms_distance_mean": 0.05,
        "rms_distance_max": 0.2,
        "grid": f"{kind}.png",
    }
    return ModelEntry(**(base | more))


def _report(*models: ModelEntry, **more: Any) -> Report:
    fields: dict[str, Any] = {
        "plan": {"steps": 20, "sampler": "ddim", "eta": 0.0, "seed": 7, "clip": True},
        "n": 400,
        "first_index": 0,
        "last_index": 399,
        "extractor": ExtractorEntry(name="digits48", digest="cd" * 32, dim=48),
        "reference": ReferenceEntry(name="digits:heldout", digest="ef" * 32, n=297),
        "rounding": "round",
        "baseline": Baseline(
            name="float.onnx", digest="01" * 32, precision="fp32", runtime=RUNTIME, size_bytes=4_000_000
        ),
        "models": list(models),
        "environment": Environment(
            python="3.12.1", platform="Linux", versions={"numpy": "2.4.6"}, cpu="Some CPU"
        ),
    }
    return Report(**(fields | more))


def test_roundtrip_is_exact(tmp_path: Path) -> None:
    kinds = ("identical", "small", "large", "collapse", "broken")
    report = _report(*map(_entry, kinds))
    report = with_verdicts(report, regate(report, Tolerances(0.5)), Tolerances(0.5))
    file = write_report(report, tmp_path / "new" / "folder")
    again = read_report(file)
    assert again == report == read_report(file.parent)
    assert isinstance(again.models[0].drift, Drift)
    assert regate(again, Tolerances(0.1)) == regate(report, Tolerances(0.1))
    assert sorted(path.name for path in file.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_infinity_survives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kid = kid_drift(np.ones((20, D)), rng.normal(size=(20, D)), rng.normal(size=(30, D)))
    assert kid.variance_share == math.inf
    file = write_report(_report(_entry("small", kid=kid)), tmp_path)
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read_report(file).models[0].kid == kid


def test_regate() -> None:
    report = _report(*map(_entry, ("identical", "small", "large", "collapse", "broken")), _entry("small", 10))
    outcomes = [verdict.outcome for verdict in regate(report, Tolerances(1.0))]
    assert outcomes == ["pass", "pass", "fail", "fail", "fail", "inconclusive"]
    assert [verdict.metric for verdict in regate(report, Tolerances(1e6))][2:5] == ["fid", "kid", "samples"]
    few = regate(report, Tolerances(1.0, min_samples=1000))
    assert few[1].outcome == "inconclusive"
    assert few[1].samples_to_settle == 1000


def test_markdown() -> None:
    report = _report(
        _entry("small", grid="grids/small one.png", sidecar="small.npz"),
        _entry("small", 10, label="few"),
        _entry("large", precision="w4a8", label="a|b"),
        _entry("broken"),
    )
    text = render_markdown(with_verdicts(report, regate(report, Tolerances(0.5)), Tolerances(0.5)))
    assert text.index("**small: PASS**") < text.index("| model |")
    assert "digits48" in text
    assert "These distances compare with each other, never with Inception FID." in text
    assert "no interval: 10 samples are fewer than 20" in text
    assert "4-bit values run on 8-bit kernels" in text
    assert "![small: float and quantized](grids/small%20one.png)" in text
    assert "broken: 400 of 400 images were not finite and count as mid-grey." in text
    for line in (
        "- steps: 20",
        "- sampler: ddim",
        "- seed: 7",
        "- rounding: round: samples become uint8 by rounding to the nearest level (the convention of diff",
        "n: 400 pairs",
        "297 images",
    ):
        assert line in text
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1 + 4
    assert {row.count("|") for row in rows} == {14}
    drift = report.models[0].drift
    assert drift is not None
    for value in (
        f"{drift.fid_float:.4g}",
        f"{drift.fid_quantized:.4g}",
        f"{drift.corrected:+.4g}",
        "1.23 MB",
    ):
        assert value in rows[3]
    eight = render_markdown(_report(_entry("small", precision="w8a8")))
    assert "4-bit" not in eight
    assert "**small: not gated**" in eight


_INCEPTION: dict[str, Any] = {
    "name": "inception-v3-compat",
    "digest": "cd" * 32,
    "dim": 2048,
    "kind": "inception",
    "preprocessing": "uint8, bilinear to 299 x 299",
}


def test_what_inception_distances_compare_with() -> None:
    def page(published: bool, kind: str = "images", n: int | None = 297, **more: Any) -> str:
        extractor = ExtractorEntry(**_INCEPTION, published=published)
        reference = ReferenceEntry.model_validate({"name": "ref", "digest": "ef" * 32, "n": n, "kind": kind})
        return render_markdown(_report(_entry("small"), extractor=extractor, reference=reference, **more))

    text = page(published=True)
    assert "never with Inception FID" not in text
    assert "raw FIDs are of the standard kind" in text
    assert "400 samples of 20 steps, to uint8 by rounding to the nearest level, against 297 reference" in text
    assert "50,000 samples" in text
    assert f"- extractor: inception-v3-compat, digest `{'cd' * 32}`, uint8, bilinear to 299 x 299" in text
    assert "cannot say that the raw FIDs are of the standard kind" in page(published=False)
    truncated = page(published=True, rounding="truncate")
    assert "dropping the fraction (the convention of guided-diffusion; half a level darker" in truncated
    foreign = page(published=True, kind="foreign-statistics", n=None)
    assert "cannot be checked" in foreign
    assert "statistics of others in ref, an unknown number of images" in foreign


def test_a_reference_that_is_statistics_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, D))
    entry = _entry("small", kid=kid_drift(x, x + 0.3, None), prc=None)
    reference = ReferenceEntry(name="ref.npz", digest="ef" * 32, n=None, kind="foreign-statistics")
    report = _report(entry, reference=reference)
    text = render_markdown(report)
    assert "The reference statistics name no extractor: that digits48 made them" in text
    assert "KID needs the reference's features" in text
    assert "KID from the float samples" in text
    assert "KID drift +" not in text
    assert read_report(write_report(report, tmp_path)) == report


def test_precision_and_recall_name_what_they_are_of() -> None:
    text = render_markdown(_report(_entry("small")))
    found = _entry("small").prc
    assert found is not None
    assert f"| {found.precision:.3f} / {found.recall:.3f} |" in text
    many = ReferenceEntry(name="r", digest="ef" * 32, n=50000)
    text = render_markdown(_report(_entry("small"), reference=many))
    assert "is of all 400 samples against 800 of the 50000 reference images (a fixed random choice)" in text
    base = _report().baseline.model_copy(update={"prc": PrecisionRecall(0.25, 0.75, 3, 400, 800)})
    assert "| 0.250 / 0.750 |" in render_markdown(_report(_entry("small"), baseline=base))


def test_a_report_of_before_these_fields_still_reads(tmp_path: Path) -> None:
    report = _report(_entry("small", prc=None))
    file = write_report(report, tmp_path)
    raw = json.loads(file.read_text())
    for part, names in (
        (raw["extractor"], ("kind", "preprocessing", "published")),
        (raw["reference"], ("kind", "preprocessing")),
        (raw["baseline"], ("prc",)),
        (raw["models"][0], ("prc",)),
        (raw["models"][0]["kid"], ("against",)),
    ):
        for name in names:
            del part[name]
    file.write_text(json.dumps(raw))
    again = read_report(file)
    assert again == report
    assert regate(again, Tolerances(0.5)) == regate(report, Tolerances(0.5))
    assert render_markdown(again) == render_markdown(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("not json", "is no JSON"),
        ("[1]", "is no flatq report"),
        ('{"format": "other"}', "is no flatq report"),
        ('{"format": "flatq-report", "version": 1}', "is no flatq report"),
        ('{"format": "flatq-report", "version": 2, "n": -1}', "damaged"),
    ],
)
def test_bad_file(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "report.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_report(file)


def test_bad_bytes_and_folder(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no JSON"):
        read_report(tmp_path)
    with pytest.raises(DataError, match="cannot write"):
        write_report(_report(), tmp_path / "report.json")


def test_pair_grid(tmp_path: Path) -> None:
    black, white = np.zeros((6, 1, 8, 8), np.uint8), np.full((6, 1, 8, 8), 200, np.uint8)
    save_pair_grid(tmp_path / "pair.png", black, white, columns=3)
    with Image.open(tmp_path / "pair.png") as picture:
        pixels = np.asarray(picture)
    height, width = pixels.shape
    assert width > 2 * 3 * 48
    assert height > 2 * 48
    assert (pixels[-20, 20], pixels[-20, -20]) == (0, 200)
    assert (pixels[:12] < 128).any()  # the labels
    assert [path.name for path in tmp_path.iterdir()] == ["pair.png"]
    save_pair_grid(tmp_path / "rgb.png", *[np.zeros((1, 3, 64, 64), np.uint8)] * 2)


def test_an_audit_is_kept_and_shown(tmp_path: Path) -> None:
    entry = {"planned": True, "stored_bits": 4}
    audit = Audit(
        target="onnxruntime",
        model_digest="ab" * 32,
        runtime=RUNTIME,
        source="a test",
        entries=(
            AuditEntry(
                layer="conv",
                kind="conv2d",
                macs=900,
                kernels=("QLinearConv",),
                precision="u8s8",
                integer=True,
                **entry,
            ),
            AuditEntry(
                layer="attention",
                kind="attention",
                macs=100,
                planned=False,
                kernels=("MatMul",),
                precision="f32",
                integer=False,
                reason="left in float | on purpose",
            ),
        ),
    )
    write_report(_report(_entry("small", audit=audit), _entry("large")), tmp_path)
    assert read_report(tmp_path).models[0].audit == audit
    page = (tmp_path / "report.md").read_text()
    assert page.count("## Kernels") == 1
    assert "90.00 % of 1,000 MACs in integers; float: 1 attention." in page
    assert "| QLinearConv | u8s8 | 4 bit | 1 | 900 |" in page
    assert "| attention | 100 | MatMul | f32 | left in float \\| on purpose |" in page
