"""The command line: exit codes, what it leaves on disk, and what it prints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from command_line import Cli

from flatq.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flatq.cli import main
from flatq.deployment import read_deployment
from flatq.report.model import read_report
from flatq.train import TrainConfig, train


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(data="digits", steps=3, batch_size=8, channels=(16, 32), patch_size=2, threads=1)
    source = train(config, tmp_path_factory.mktemp("digits")).source
    assert source is not None
    return source


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "CKPT", "--bits", "1"),
        ("quantize", "CKPT", "--bits", "9"),
        ("quantize", "CKPT", "--act-bits", "3"),
        ("quantize", "CKPT", "--attention-bits", "3"),
        ("quantize", "CKPT", "--granularity", "per-group"),
        ("quantize", "CKPT", "--first-last", "4"),
        ("quantize", "CKPT", "--act-range", "entropy"),
        ("quantize", "CKPT", "--act-range", "percentile", "--percentile", "0.9999"),
        ("quantize", "CKPT", "--weight-range", "percentile"),
        ("quantize", "CKPT", "--calib-images", "0"),
        ("quantize", "CKPT", "--sampler", "euler"),
        ("quantize", "CKPT", "--sampler", "ddim", "--eta", "2"),
        ("quantize", "CKPT", "--method", "best"),
        ("quantize", "CKPT", "--method", "adaround", "--iterations", "0"),
        ("quantize", "CKPT", "--method", "gptq", "--damping", "inf"),
        ("quantize", "CKPT", "--guidance", "inf"),
        ("quantize", "CKPT", "--guidance", "2"),
        ("quantize", "CKPT", "--steps", "1001"),
        ("quantize", "CKPT", "--seed", str(2**64)),
        ("quantize", "CKPT", "--threads", "-1"),
        ("quantize", "CKPT", "--equalize", "nan"),
        ("quantize", "CKPT", "--weights", "swa"),
        ("quantize", "nothing.pt"),
        ("quantize",),
        ("quantize", "CKPT", "--no-such-option"),
        ("export", "CKPT"),
        ("export", "nothing", "--onnx"),
        ("export", "CKPT", "--onnx", "--float-precision", "int8"),
        ("export", "CKPT", "--openvino", "--float-precision", "bf16"),
        ("export", "CKPT", "--trt", "--batch", "0"),
        ("export", "CKPT", "--trt", "--batch", "0:1:2"),
        ("export", "CKPT", "--trt", "--batch", "8:4:2"),
        ("export", "CKPT", "--trt", "--batch", "1:8"),
        ("export", "CKPT", "--trt", "--batch", "many"),
        ("export", ".", "--onnx"),
        ("inspect", "nothing"),
        ("sample", "CKPT", "-n", "1"),
        ("sample", "CKPT", "-n", "0", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--sampler", "euler", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--runtime", "other", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--runtime", "onnxruntime", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--runtime", "openvino", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--runtime", "tensorrt", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--device", "tpu", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--device", "tensorrt", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--precision", "bf16", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--hint", "throughput", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--batch-size", "0", "-o", "a.npz"),
        ("sample", "CKPT", "-n", "1", "--threads", "0", "-o", "a.npz"),
        ("eval", "CKPT", "--baseline", "CKPT"),
        ("eval", "CKPT", "--fid"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--on-inconclusive", "maybe"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--until-decided", "--max-drift", "1"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--max-samples", "2000", "--max-drift", "1"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--until-decided", "--max-samples", "2000"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--plan", "--max-drift", "1", "--max-drift-rel", "1"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--ladder"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--batch-size", "0"),
        ("eval", "CKPT", "--fid", "--baseline", "nothing.pt"),
        ("eval", "CKPT", "--fid", "--baseline", "CKPT", "--data", "nothing"),
        ("gate", "nothing.json", "--max-drift", "1"),
        ("train", "run", "--channels", "a,b"),
        ("train", "run", "--method", "other"),
        ("train", "run", "--data", "nothing"),
    ],
    ids=" ".join,
)
def test_bad_input_exits_2_and_leaves_nothing(
    arguments: tuple[str, ...], cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(digits.parent.iterdir())
    assert cli(*(str(digits) if a == "CKPT" else a for a in arguments)) == 2
    assert cli.err
    assert not cli.out
    assert not list(tmp_path.iterdir())
    assert sorted(digits.parent.iterdir()) == before


def test_help_and_version_exit_0(cli: Cli) -> None:
    assert cli("--version") == 0
    assert cli.out.startswith("flatq ")
    assert cli("quantize", "--help") == 0
    assert cli("doctor") == 0


def test_weights_that_are_not_finite_exit_2(cli: Cli, digits: Path, tmp_path: Path) -> None:
    good = load_checkpoint(digits)
    raw = {name: value.clone() for name, value in good.weights["raw"].items()}
    raw["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_checkpoint(Checkpoint(good.model, good.process, {"raw": raw}), tmp_path / "nan.pt")
    assert cli("quantize", tmp_path / "nan.pt") == 2
    assert "not finite" in cli.err
    assert cli("sample", tmp_path / "nan.pt", "-n", 1, "-o", tmp_path / "a.npz") == 2
    assert cli("export", tmp_path / "nan.pt", "--onnx") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["nan.pt"]


def test_a_folder_that_is_taken_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert cli("quantize", tmp_path / "not_even_looked_at.pt", "-o", tmp_path / "taken") == 2
    assert "already exists" in cli.err


@pytest.mark.slow
def test_a_damaged_checkpoint_exits_2(cli: Cli, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(digits.read_bytes()[:5000])
    assert cli("quantize", tmp_path / "half.pt") == 2
    (tmp_path / "empty.pt").write_bytes(b"")
    assert cli("quantize", tmp_path / "empty.pt") == 2


def test_a_bug_exits_70(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("flatq.checkpoint.load_checkpoint", fail)
    monkeypatch.setattr(sys, "argv", ["flatq", "quantize", str(digits)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 70
    assert "a bug in flatq" in capsys.readouterr().err


@pytest.mark.slow
def test_several_targets_at_once_and_tensorrt_without_a_gpu(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from flatq.errors import MissingRuntimeError

    def absent() -> None:
        raise MissingRuntimeError("there is no CUDA GPU here", got="none")

    monkeypatch.setattr("flatq.export.engine.open_device", absent)
    artifact = tmp_path / "q"
    few = ("--calib-images", 2, "--steps", 2)
    assert cli("quantize", digits, "--bits", 7, *few, "-o", artifact) == 0  # for CPUs on which 8 saturate
    assert cli("export", artifact, "--trt", "--openvino", "--generic") == 3
    written = {target: artifact / target for target in ("openvino", "generic", "tensorrt")}
    assert cli.out.split() == [str(folder) for folder in written.values()]
    assert str(artifact / "tensorrt" / "model.onnx") in cli.err
    assert 'pip install "flatq[tensorrt]"' in cli.err
    assert (artifact / "tensorrt" / "model.onnx").is_file()
    assert cli("export", artifact / "tensorrt", "--trt") == 3  # as on the machine it is taken to
    assert cli("export", artifact / "openvino", "--trt") == 2
    require = ("--trt", "--no-verify", "--require-int8")
    assert cli("export", artifact, *require, 0.1) == 3
    assert "--require-int8 was not checked" in cli.err
    assert f"flatq export {artifact.name} --trt --require-int8 0.1" in cli.err
    assert cli("export", artifact, "--openvino", *require, 1) == 1
    assert "FAIL: on openvino" in cli.err
    assert cli("export", artifact / "tensorrt", *require, 0.1) == 2
    assert "--require-int8 cannot be checked" in cli.err
    assert cli("export", artifact / "openvino", "--onnx") == 2

    out = tmp_path / "a.npz"
    one = ("-n", 1, "--steps", 1, "-o", out)
    assert cli("sample", artifact, "--runtime", "openvino", "--precision", "fp32", *one) == 0
    assert "on openvino, floats in fp32" in cli.err
    assert cli("sample", artifact / "openvino", "--hint", "throughput", *one) == 0
    assert cli("sample", artifact / "generic", *one) == 0
    assert cli("sample", artifact, *one) == 2
    assert f"flatq export {artifact} --onnx" in cli.err
    assert cli("sample", artifact / "tensorrt", *one) == 3  # no tensorrt, no GPU or no engine
    assert cli("sample", artifact / "tensorrt", "--runtime", "onnxruntime", *one) == 2
    assert cli("export", artifact, "--onnx", "--generic", "-o", tmp_path / "both") == 0
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["generic", "onnxruntime"]


def _evaluate(cli: Cli, model: Path, digits: Path, out: Path, n: int, *more: object) -> int:
    return cli(
        "eval", model, "--baseline", digits, "--fid", "--data", "digits", "-n", n, "--steps", 3,
        "--max-drift", 0.5, "-o", out, *more,
    )  # fmt: skip


def test_a_checkpoint_against_itself_does_not_drift(cli: Cli, digits: Path, tmp_path: Path) -> None:
    assert _evaluate(cli, digits, digits, tmp_path / "e", 300) == 0
    assert "drift +0.000 [+0.000, +0.000]" in cli.out
    assert "PASS" in cli.out

    drift = read_report(tmp_path / "e" / "report.json").models[0].drift
    assert drift is not None
    assert (drift.corrected, drift.low, drift.high) == (0.0, 0.0, 0.0)
    assert drift.fid_float == drift.fid_quantized
    assert cli("gate", tmp_path / "e" / "report.json", "--max-drift", 0.1) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e"]


def test_from_checkpoint_to_a_verdict(cli: Cli, digits: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "q"
    quantize = ("quantize", digits, "--calib-images", 2, "--steps", 2, "--sampler", "ddim", "--eta", 0.5)
    quantize = (*quantize, "-o", artifact)
    assert cli(*quantize) == 0
    assert cli.out.strip() == str(artifact)
    assert cli(*quantize) == 2  # it exists
    assert cli("inspect", artifact) == 0
    assert "calibrated on 2 images, 2 steps, ddim with eta 0.5, seed 0" in cli.out
    assert cli("sample", artifact, "-n", 2, "--steps", 2, "-o", tmp_path / "a.npz") == 2  # not exported
    assert cli("export", artifact, "--onnx", "--plain") == 0
    assert read_deployment(artifact / "onnxruntime")[0].provenance["rewrites"] == {}
    assert cli("export", artifact, "--onnx") == 0
    assert read_deployment(artifact / "onnxruntime")[0].provenance["rewrites"]["group-norm"]["applied"] > 0
    assert cli("sample", artifact, "-n", 2, "--steps", 2, "-o", tmp_path / "a.npz") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "q"]

    out = tmp_path / "ladder"
    assert _evaluate(cli, artifact, digits, out, 130, "--ladder", "--plan") == 0
    assert "ddim with eta 0.5" in cli.err
    assert "  quantization" in cli.out
    assert "130 images resolve" in cli.out
    assert "to resolve 0.25, half the tolerance" in cli.out
    assert "PASS" not in cli.out  # a plan is no gate
    shutil.rmtree(out)

    # 20 images are too few for an interval in 48 dimensions.
    assert _evaluate(cli, artifact, digits, tmp_path / "a", 20) == 4
    assert "INCONCLUSIVE" in cli.out
    assert _evaluate(cli, artifact, digits, tmp_path / "b", 20, "--on-inconclusive", "fail") == 1
    assert _evaluate(cli, artifact, digits, tmp_path / "c", 20, "--on-inconclusive", "pass") == 0
    report = tmp_path / "a" / "report.json"
    audit = read_report(report).models[0].audit
    assert audit is not None
    assert audit.integer_share > 0.9
    assert "## Kernels" in (tmp_path / "a" / "report.md").read_text()
    assert cli("gate", report, "--max-drift", 1) == 4
    assert cli("gate", report, "--max-drift", 1, "--on-inconclusive", "fail") == 1
