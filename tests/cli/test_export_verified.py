"""`flatq export` verifies what it writes, and `flatq inspect` shows what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from command_line import Cli
from onnx import numpy_helper

from flatq.checkpoint import Checkpoint
from flatq.quantize.artifact import Artifact, write_artifact

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    cli = Cli(monkeypatch, capsys)
    return lambda *arguments: (cli(*arguments), cli.out, cli.err)


@pytest.fixture
def artifact(tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], tmp_path: Path) -> Path:
    """w8a8 with the checkpoint beside it."""
    assert tiny.source is not None
    (tmp_path / tiny.source.name).write_bytes(tiny.source.read_bytes())
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "tiny.w8a8")
    return tmp_path / "tiny.w8a8"


def test_an_export_is_verified_and_can_be_looked_at(artifact: Path, run: Run) -> None:
    code, out, err = run("export", artifact, "--onnx", "--require-int8", "0.9")
    assert code == 0, err
    folder = artifact / "onnxruntime"
    assert out.split() == [str(folder)]
    assert re.search(r"\b51( of |/)51 layers\b", err)
    assert "against the float model" in err
    assert re.search(r"\b92\.63 ?%", err)
    assert sorted(p.name for p in folder.iterdir()) == [
        "audit.json",
        "flatq.json",
        "model.onnx",
        "verify.json",
    ]
    code, out, err = run("inspect", folder)
    assert code == 0, err
    assert "verified: 51/51 layers" in out
    assert "QLinearConv" in out
    assert "attention products stay float" in out
    code, out, _ = run("inspect", folder, "--json")
    content = json.loads(out)
    assert len(content["audit"]["entries"]) == 55
    assert content["parity"]["format"] == "flatq-parity"

    # Again, in place of the first: not verified, and said so; the gate asks the runtime all the same.
    code, out, err = run("export", artifact, "--onnx", "--no-verify", "--require-int8", "0.95")
    assert code == 1
    assert "--no-verify" in err
    assert re.search(r"FAIL.*\b0\.9263\b.*\b0\.95\b", err)
    assert "unet.mid_block.attentions.0" in err
    assert sorted(p.name for p in folder.iterdir()) == ["audit.json", "flatq.json", "model.onnx"]
    assert "not verified: exported with --no-verify" in run("inspect", folder)[1]


@pytest.mark.slow
def test_integer_attention_is_planned_verified_and_audited(
    tiny: Checkpoint, run: Run, tmp_path: Path
) -> None:
    few = ("--calib-images", "2", "--steps", "2", "--threads", "1")
    out = tmp_path / "artifact"
    code, _, err = run("quantize", tiny.source, "--attention-bits", "8", "--first-last", "8", *few, "-o", out)
    assert code == 0, err
    assert "attention's products 8-bit (recipe w8a8-att8-edges8)" in err
    code, table, _ = run("inspect", out)
    assert code == 0
    (row,) = (line for line in table.splitlines() if line.startswith("unet.mid_block.attentions.0 "))
    assert "query, key, value: int8 per-tensor symmetric; probabilities: int8 per-tensor affine" in row
    assert table.count("quantizes the factors of attention's products") == 1  # each reason once
    code, _, err = run("export", out, "--onnx", "--require-int8", "0.95")
    assert code == 0, err
    assert re.search(r"\b59( of |/)59\b", err)
    assert "audit: 100.00 % of" in err


@pytest.mark.slow
def test_an_export_that_fails_parity_is_not_put_in_place(
    artifact: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatq.export import deploy as target

    given = target.save_onnx

    def swapped(model: onnx.ModelProto, path: Path) -> None:
        (node,) = (n for n in model.graph.node if "unet.conv_out.bias" in n.input)
        dequantize = next(n for n in model.graph.node if node.input[1] in n.output)
        scale = next(i for i in model.graph.initializer if i.name == dequantize.input[1])
        values = numpy_helper.to_array(scale).copy()
        scale.CopyFrom(numpy_helper.from_array(values[[1, 0, 2]], scale.name))
        given(model, path)

    monkeypatch.setattr(target, "save_onnx", swapped)
    code, out, err = run("export", artifact, "--onnx")
    assert code == 2
    assert out == ""
    assert "1 of 51 layers on onnxruntime do not match" in err
    assert "unet.conv_out: up to " in err
    # An evaluation that exports by itself does not accept it either.
    code, out, err = run("eval", artifact, "--fid", "-o", artifact.parent / "eval")
    assert code == 2
    assert "1 of 51 layers on onnxruntime do not match" in err
    assert sorted(p.name for p in artifact.iterdir()) == [
        "flatq.json",
        "ranges.safetensors",
        "weights.safetensors",
    ]


@pytest.mark.slow
def test_a_float_model_has_no_share_to_require(artifact: Path, tiny: Checkpoint, run: Run) -> None:
    assert tiny.source is not None
    code, _, err = run("export", artifact.parent / tiny.source.name, "--onnx", "--require-int8", "0.5")
    assert code == 2
    assert "float model" in err
    assert run("export", artifact, "--onnx", "--require-int8", "1.5")[0] == 2
