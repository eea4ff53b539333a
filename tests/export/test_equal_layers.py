"""Layers that hold the same integers, as zero-initialised ones do, stay layers of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import checkpoint
from onnx import numpy_helper

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.deployment import Target
from flatq.export.deploy import export_artifact
from flatq.export.onnx import to_onnx
from flatq.quantize.artifact import Artifact, write_artifact
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS
from flatq.verify.verification import verify_deployment

BLOCKS = ("up_blocks.1.resnets.0", "up_blocks.1.resnets.1")
# The projections even have the same input, and are at 1,024 elements the largest that the exporter merges;
# the convolutions are larger.
EQUAL = [f"{block}.{layer}" for block in BLOCKS for layer in ("time_emb_proj", "conv2")]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """The digits network with pairs of layers that are zero, w4a8."""
    folder = tmp_path_factory.mktemp("equal")
    whole = checkpoint("digits", folder)
    state = {name: value.clone() for name, value in whole.weights["raw"].items()}
    for layer in EQUAL:
        state[f"{layer}.weight"].zero_()
        state[f"{layer}.bias"].zero_()
    zeroed = save_checkpoint(Checkpoint(whole.model, whole.process, {"raw": state}), folder / "zeroed.pt")
    quantized = quantize_checkpoint(
        zeroed, PRESETS["w4a8"], calibration=CalibrationPlan(images=2, steps=2), threads=1
    )
    write_artifact(quantized, folder / "zeroed.w4a8")
    return quantized, folder / "zeroed.w4a8"


@pytest.mark.slow
def test_the_exporter_itself_would_merge_them(artifact: tuple[Artifact, Path]) -> None:
    lowered = lower(artifact[0], "generic")
    names = {lowered.layers[f"unet.{block}.time_emb_proj"].replace(".", "_") for block in BLOCKS}
    merged = to_onnx(lowered.graph, artifact[0].manifest.model)
    assert len(names & {i.name.replace(".", "_") for i in merged.graph.initializer}) == 1
    apart = to_onnx(lowered.graph, artifact[0].manifest.model, lowered.layers.values())
    assert names <= {i.name.replace(".", "_") for i in apart.graph.initializer}
    assert [value.name for value in apart.graph.input] == ["x", "t"]


@pytest.mark.parametrize(
    "target",
    ["onnxruntime", "openvino", *(pytest.param(t, marks=pytest.mark.slow) for t in ("tensorrt", "generic"))],
)
def test_every_target_keeps_and_runs_them(
    target: Target, artifact: tuple[Artifact, Path], tmp_path: Path
) -> None:
    found = []

    def check(folder: Path, given: Artifact, lowered: Lowered) -> None:
        if target != "tensorrt":  # which needs its GPU to verify
            found.append(verify_deployment(given, folder, lowered, threads=1))

    deployment = export_artifact(artifact[1], target, tmp_path / target, check=check)
    planned = set(artifact[0].integers)
    assert {f"unet.{layer}" for layer in EQUAL} <= planned
    assert set(deployment.provenance["weights_bits"]) == planned
    for result in found:
        assert result.parity is not None
        assert result.parity.passed
        assert {layer.layer for layer in result.parity.layers} == planned
        assert {entry.layer for entry in result.audit.entries} == planned
    if target != "openvino":
        _check_weights(onnx.load(tmp_path / target / "model.onnx"), artifact[0])


def _check_weights(model: onnx.ModelProto, artifact: Artifact) -> None:
    """Every convolution and product has a DequantizeLinear of its own, of codes that are the artifact's."""
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    weights = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source = node.input[1]
        while source not in stored and makers[source].op_type in ("DequantizeLinear", "Transpose", "Cast"):
            source = makers[source].input[0]
        if source in stored and stored[source].ndim > 1:
            weights.append(source)
    assert len(weights) == len(set(weights)) == len(artifact.integers)
    zeros = [name for name in weights if not np.asarray(stored[name], np.int8).any()]
    assert len(zeros) == len(EQUAL)
