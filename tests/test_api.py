"""flatq from Python: its public names, verbs that are packages too, the example, and what a verb returns."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flatq
import flatq.api
from flatq.checkpoint import Checkpoint
from flatq.deployment import Target
from flatq.errors import ModelError, UsageError
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.recipe import PRESETS

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("evaluate", "export", "gate", "load", "quantize", "sample", "sensitivity", "train", "verify")


def test_the_public_names() -> None:
    assert set(flatq.__all__) == {
        *VERBS,
        *("CalibrationPlan", "EvaluateSettings", "ExportSettings", "GateSettings", "QuantizeSettings"),
        *("RuntimeSettings", "SamplingSettings", "TrainConfig", "WeightRounding", "recipe_for_bits"),
        *("Checkpoint", "Exported", "GateResult", "Model", "Quantized", "Report", "Samples", "Verified"),
        *("Sensitivity", "SensitivitySettings"),
        *("FlatqError", "__version__"),
    }
    for name in flatq.__all__:
        assert getattr(flatq, name) is not None
    assert dir(flatq) == sorted(flatq.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distill'"):
        flatq.distill  # type: ignore[attr-defined]  # noqa: B018


def test_the_verbs_show_their_signature() -> None:
    for name in VERBS:
        verb = getattr(flatq, name)
        assert callable(verb)
        assert inspect.signature(verb) == inspect.signature(getattr(flatq.api, name))


@pytest.mark.parametrize(
    "first",
    [
        "import flatq",
        "import flatq.api",
        "import flatq.quantize.artifact, flatq.export.deploy, flatq.evaluate.gate, flatq.verify.parity",
        "from flatq.train import TrainConfig",
    ],
)
def test_a_package_is_a_verb_whatever_is_imported_first(first: str) -> None:
    """The verbs are called without arguments, so a `TypeError` names the function that was reached."""
    code = f"""
{first}
import flatq
for name in {VERBS!r}:
    try:
        getattr(flatq, name)()
    except TypeError as error:
        assert f"{{name}}() missing" in str(error), error
    else:
        raise AssertionError(name)
import flatq.quantize.artifact as module
assert flatq.quantize.artifact is module
from flatq.train import TrainConfig
assert flatq.TrainConfig is TrainConfig
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_runs_and_other_libraries_print_nothing(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "api.py", tmp_path / "run"],
        env=os.environ | {"FLATQ_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'run' / 'ckpt.w4a8'}: w4a8-gptq"
    assert "sampled (8, 1, 8, 8), uint8" in lines
    assert lines[-1].split(":")[0] in ("pass", "fail", "inconclusive")
    assert not (tmp_path / "cache").exists()


def test_the_defaults_are_w8a8_by_gptq() -> None:
    settings = flatq.QuantizeSettings()
    assert settings.recipe == PRESETS["w8a8"]
    assert settings.rounding.method == "gptq"
    assert settings.suffix == "w8a8"


@pytest.mark.slow
def test_an_export_is_verified_later_and_a_share_that_is_missed_is_told(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    settings = flatq.ExportSettings(verify=False, require_int8=0.95, threads=1)
    exported = flatq.export(tmp_path / "a", settings)
    assert exported.folder == tmp_path / "a" / "onnxruntime"
    assert exported.parity is None
    assert exported.audit is not None
    assert exported.audit.integer_share < 0.95
    assert not exported.passed
    assert not (exported.folder / "verify.json").exists()
    found = flatq.verify(tmp_path / "a", exported, threads=1)
    assert found.parity is not None
    assert found.parity.passed
    assert found.audit == exported.audit
    assert (exported.folder / "verify.json").exists()


def test_a_checkpoint_that_was_not_saved_has_no_path(tiny: Checkpoint) -> None:
    unsaved = Checkpoint(tiny.model, tiny.process, tiny.weights)
    with pytest.raises(UsageError, match="in memory only"):
        flatq.load(unsaved)


def test_a_baseline_that_is_missing_is_named(tiny_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    wanted = tmp_path / str(tiny_artifacts["w8a8"].manifest.parent["file"])
    with pytest.raises(UsageError, match="no baseline") as raised:
        flatq.evaluate(flatq.EvaluateSettings(models=(tmp_path / "a",)))
    assert str(wanted) in str(raised.value)
    assert "EvaluateSettings(baseline=" in str(raised.value)


@pytest.mark.parametrize("target", [pytest.param("openvino", marks=pytest.mark.slow), "onnxruntime"])
def test_a_layer_that_may_saturate_names_the_way_out(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    pytest.importorskip(target)

    def fails(*_: object, **__: object) -> None:
        raise ModelError("a layer differs", next_step="report it")

    monkeypatch.setattr("flatq.api.exporting.saturation_note", lambda: "take 7 bits")
    monkeypatch.setattr("flatq.verify.verification.verify_deployment", fails)
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    with pytest.raises(ModelError) as raised:
        flatq.export(tmp_path / "a", flatq.ExportSettings(target=target))
    assert raised.value.next_step == ("take 7 bits" if target == "openvino" else "report it")
