"""The audit: what the runtimes say, held against the plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import faults
import numpy as np
import onnx
import pytest
from exports import Deployments
from onnx import helper, numpy_helper

from flatq.deployment import read_deployment
from flatq.errors import ArtifactError, UsageError
from flatq.quantize.artifact import Artifact
from flatq.runtime.cpu import saturation_note
from flatq.verify import Audit, read_audit
from flatq.verify.audit import audit_deployment, audit_from
from flatq.verify.inspection import Found, Inspection, attention_of
from flatq.verify.results import AuditEntry
from flatq.verify.tables import audit_markdown, audit_summary, audit_table
from flatq.verify.tensorrt_inspection import read_layers

EDGES = ("unet.conv_in", "unet.conv_out")
"""Float: the image that the one reads, and what the other yields."""


def _audit(deployments: Deployments, name: str, target: str = "onnxruntime") -> Audit:
    return audit_deployment(
        deployments.artifacts[name],
        deployments.folder(name, target),
        lowered=deployments.lowered(name, target),
        threads=1,
    )


def _shares(artifact: Artifact) -> tuple[int, int]:
    """MACs of the layers and of the attentions, from the shapes alone."""
    layers = sum(d.macs for d in artifact.manifest.decisions if d.port == "weight")
    attentions = sum(d.macs for d in artifact.manifest.decisions if d.port == "products")
    assert attentions > 0
    return layers, attentions


@pytest.mark.parametrize(("name", "bits"), [("w8a8", 8), ("w4a8", 4), ("w4a4", 4), ("labelled", 8)])
def test_onnx_runtime_runs_every_layer_but_the_edges_in_integers(
    name: str, bits: int, deployments: Deployments
) -> None:
    audit = _audit(deployments, name)
    manifest = deployments.artifacts[name].manifest
    layers, attentions = _shares(deployments.artifacts[name])
    assert audit.macs == layers + attentions
    edges = sum(entry.macs for entry in audit.entries if entry.layer in EDGES)
    assert audit.integer_share == (layers - edges) / (layers + attentions)
    assert audit.unmatched == ()
    assert [entry.layer for entry in audit.entries] == list(dict.fromkeys(d.node for d in manifest.decisions))
    for entry in audit.entries:
        if entry.kind == "attention":
            assert {"MatMul", "MultiHeadAttention"} & set(entry.kernels)
            assert (entry.precision, entry.integer, entry.planned) == ("f32", False, False)
            assert entry.reason is not None
            assert "attention products stay float" in entry.reason
            continue
        stored_bits = 8 if entry.layer in EDGES else bits
        if entry.layer in EDGES:
            assert (entry.kernels, entry.precision, entry.stored_bits) == (("Conv",), "f32", stored_bits)
            assert entry.reason is not None
            continue
        batched = ".attentions." in entry.layer
        expected = "QLinearConv" if entry.kind == "conv2d" else "MatMulIntegerToFloat" if batched else "QGemm"
        assert entry.kernels == (expected,), entry
        # Without VNNI 8-bit weights become unsigned, so that their products do not saturate.
        precision = "u8u8" if stored_bits == 8 and saturation_note() else "u8s8"
        assert (entry.precision, entry.stored_bits, entry.integer) == (precision, stored_bits, True)
        assert entry.reason is None


def test_weights_alone_are_float_with_a_reason(deployments: Deployments) -> None:
    audit = _audit(deployments, "w8")
    assert audit.integer_share == 0
    layers = [entry for entry in audit.entries if entry.kind != "attention"]
    assert {entry.kernels for entry in layers} == {("Conv",), ("Gemm",), ("MatMulNBits",)}
    for entry in layers:
        assert entry.reason is not None
        assert "weight" in entry.reason
        assert entry.stored_bits == 8


def test_the_generic_form_falls_back_and_says_why(deployments: Deployments) -> None:
    audit = _audit(deployments, "w8a8", "generic")
    convolutions = [entry for entry in audit.entries if entry.kind == "conv2d"]
    for entry in convolutions:
        assert entry.kernels == ("Conv",)
        assert entry.planned
        if entry.layer == "unet.conv_in":
            assert entry.reason is not None
            assert "weight" in entry.reason
            continue
        reason = "ONNX Runtime runs it as Conv in f32: its input is dequantized in front of it"
        assert entry.reason is not None
        assert entry.reason.startswith(reason)
        assert entry.reason.removeprefix(reason).endswith(" reads what it yields in float")
    assert 0 < audit.integer_share < 0.2


def test_a_layer_without_its_output_quantizer_is_found_out(deployments: Deployments, tmp_path: Path) -> None:
    def bare(model: onnx.ModelProto, bias: str) -> None:
        quantize = faults._output_quantize(model, bias)
        (dequantize,) = faults._users(model, quantize.output[0])
        for user in faults._users(model, dequantize.output[0]):
            for index, value in enumerate(user.input):
                if value == dequantize.output[0]:
                    user.input[index] = quantize.input[0]

    layer = "unet.mid_block.resnets.1.conv1"
    folder = faults.mutated(deployments.folder("w8a8"), tmp_path / "bare", {f"{layer}.bias": bare})
    artifact = deployments.artifacts["w8a8"]
    audit = audit_deployment(artifact, folder, lowered=deployments.lowered("w8a8"), threads=1)
    (entry,) = [e for e in audit.fallbacks if e.kind != "attention" and e.layer not in EDGES]
    assert entry.layer == layer
    assert entry.precision == "f32"
    assert entry.reason is not None
    assert entry.reason.endswith("and Add reads what it yields in float")


def test_equal_weights_are_told_apart(deployments: Deployments, tmp_path: Path) -> None:
    """Two batched products with the same codes, which the optimizer transposes and renames."""
    given = deployments.artifacts["w8a8"]
    one, two = (f"unet.mid_block.attentions.0.to_{letter}" for letter in "qk")

    def copy(model: onnx.ModelProto, bias: str) -> None:
        name = faults._weight_dequantize(model, bias).input[0]
        stored = next(i for i in model.graph.initializer if i.name == name)
        stored.CopyFrom(numpy_helper.from_array(given.integers[one].numpy(), name))

    folder = faults.mutated(deployments.folder("w8a8"), tmp_path / "same", {f"{two}.bias": copy})
    same = dataclasses.replace(given, integers={**given.integers, two: given.integers[one]})
    audit = audit_deployment(same, folder, lowered=deployments.lowered("w8a8"), threads=1)
    assert audit.unmatched == ()
    for entry in audit.entries:
        if entry.layer in (one, two):
            assert entry.kernels == ("MatMulIntegerToFloat",)
    assert len(audit.fallbacks) == 4 + len(EDGES)


def test_a_product_that_belongs_to_no_layer_is_listed(deployments: Deployments, tmp_path: Path) -> None:
    def stray(model: onnx.ModelProto, bias: str) -> None:
        (out,) = model.graph.output
        weight = numpy_helper.from_array(np.eye(16, dtype=np.float32) * 2, "stray.weight")
        model.graph.initializer.append(weight)
        last = faults._producer(model, out.name)
        last.output[0] = "before.stray"
        model.graph.node.append(
            helper.make_node("MatMul", ["before.stray", "stray.weight"], [out.name], name="stray")
        )

    folder = faults.mutated(deployments.folder("w8a8"), tmp_path / "stray", {"": stray})
    artifact = deployments.artifacts["w8a8"]
    audit = audit_deployment(artifact, folder, lowered=deployments.lowered("w8a8"), threads=1)
    assert [name.split()[0] for name in audit.unmatched] == ["MatMul"]
    assert "stray" in audit.unmatched[0]
    assert "1 operators of the runtime belong to no layer" in audit_summary(audit)
    assert f"no layer's: {audit.unmatched[0]}" in audit_table(audit)


def test_another_artifacts_deployment_is_refused(deployments: Deployments) -> None:
    with pytest.raises(UsageError, match="not exported from this artifact"):
        audit_deployment(
            deployments.artifacts["w8a8"],
            deployments.folder("w4a8"),
            lowered=deployments.lowered("w8a8"),
            threads=1,
        )


def test_the_file_and_the_tables(deployments: Deployments, tmp_path: Path) -> None:
    audit = _audit(deployments, "w4a8")
    deployment, _ = read_deployment(deployments.folder("w4a8"))
    assert read_audit(tmp_path, deployment) is None
    (tmp_path / "audit.json").write_text(audit.model_dump_json())
    assert read_audit(tmp_path, deployment) == audit
    table = audit_table(audit).splitlines()
    assert table[0] == audit_summary(audit)
    assert table[0].endswith("MACs in integers; float: 2 conv2d, 4 attention")
    row = next(line for line in table if line.startswith("unet.conv_in "))
    assert row.split()[:7] == ["unet.conv_in", "conv2d", "110,592", "Conv", "f32", "8", "bit"]
    markdown = audit_markdown(audit)
    assert "| QLinearConv | u8s8 | 4 bit | 23 |" in markdown
    assert "| unet.conv_out |" in markdown
    assert "| unet.mid_block.attentions.0 |" in markdown
    (tmp_path / "audit.json").write_text('{"format": "flatq-audit", "version": 2}')
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_audit(tmp_path, deployment)


def test_a_float_entry_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="have a reason"):
        AuditEntry(
            layer="a", kind="conv2d", macs=1, planned=True, kernels=("Conv",), precision="f32", integer=False
        )


def test_what_nothing_was_found_for_is_kept(deployments: Deployments) -> None:
    artifact = deployments.artifacts["w8a8"]
    deployment, _ = read_deployment(deployments.folder("w8a8"))
    one = [Found("QLinearConv", "u8s8", integer=True)]
    inspection = Inspection({}, "a test", {"unet.conv_in": one}, {}, (), {})
    audit = audit_from(inspection, artifact, deployment)
    assert len(audit.entries) == 55
    assert {entry.layer for entry in audit.entries if entry.integer} == {"unet.conv_in"}
    lost = next(entry for entry in audit.entries if entry.layer == "unet.conv_out")
    assert lost.kernels == ()
    assert lost.reason is not None
    assert lost.reason.startswith("nothing in the runtime's account")
    stranger = dataclasses.replace(inspection, found={"unet.other": one})
    with pytest.raises(AssertionError, match="not planned"):
        audit_from(stranger, artifact, deployment)


def test_attention_is_named_by_what_it_reads() -> None:
    candidates = ["mid.attentions.0", "mid.attentions.1", "mid"]
    assert attention_of(["mid.attentions.0.to_q", "mid.attentions.0.to_k"], candidates) == "mid.attentions.0"
    assert attention_of(["mid.attentions.0", "mid.attentions.0.to_v"], candidates) == "mid.attentions.0"
    assert attention_of(["mid.attentions.0.to_q", "mid.attentions.1.to_k"], candidates) == "mid"
    assert attention_of(["up.attentions.0.to_q"], candidates) is None
    assert attention_of([], candidates) is None


def _layer(kind: str, type_key: str, type_name: str, *nodes: str) -> dict[str, object]:
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": "x", "LayerType": kind, "Inputs": [{type_key: type_name}], "Metadata": metadata}


def test_tensorrts_inspector_is_read() -> None:
    """Made by hand after its documented form: no engine was inspected for this test."""
    layers = [
        _layer("CaskConvolution", "Format/Datatype", "Channel major INT8 format", "node_conv2d", "node_silu"),
        _layer("CaskGemmMatrixMultiply", "DataType", "Half", "node_linear"),
        _layer("CaskConvolution", "DataType", "Int8", "node_other"),
        _layer("PointWiseV2", "DataType", "Float", "node_add"),
    ]
    names = {"node_conv2d": "unet.conv_in", "node_linear": "unet.linear"}
    found, unmatched, operators = read_layers(json.dumps({"Layers": layers}), names)
    assert found["unet.conv_in"] == [Found("CaskConvolution", "s8s8", integer=True)]
    (linear,) = found["unet.linear"]
    assert linear.precision == "f16"
    assert linear.remark == "TensorRT runs it as CaskGemmMatrixMultiply in f16"
    assert unmatched == ("CaskConvolution x",)
    assert operators == {"CaskConvolution": 2, "CaskGemmMatrixMultiply": 1, "PointWiseV2": 1}
    with pytest.raises(ArtifactError, match="only the names"):
        read_layers(json.dumps({"Layers": ["conv1"]}), names)
