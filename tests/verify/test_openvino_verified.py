"""Parity and audit on OpenVINO; skipped where it is not installed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from exports import Deployments

from flatq.deployment import MANIFEST, read_deployment
from flatq.errors import UsageError
from flatq.verify.audit import audit_deployment
from flatq.verify.parity import VerifyInputs, open_pieces, verify_parity
from flatq.verify.results import Parity

pytest.importorskip("openvino")


def _verify(deployments: Deployments, name: str, folder: Path | None = None) -> Parity:
    return verify_parity(
        deployments.artifacts[name],
        folder or deployments.folder(name, "openvino"),
        lowered=deployments.lowered(name, "openvino"),
        inputs=VerifyInputs(steps=2),
        threads=1,
    )


def test_every_layer_is_verified_and_runs_in_integers(deployments: Deployments) -> None:
    name = "w4a4"
    parity = _verify(deployments, name)
    parity.check()
    (image,) = (layer for layer in parity.layers if layer.layer == "unet.conv_in")
    assert image.step == "rounding"
    for layer in (layer for layer in parity.layers if layer is not image):
        # No output quantizer here, so the integer sum itself is compared.
        assert layer.step == "accumulator", layer
        assert any(kernel.endswith("_I8") for kernel in layer.kernels), layer
        assert layer.max_steps < 0.1
    artifact = deployments.artifacts[name]
    audit = audit_deployment(
        artifact,
        deployments.folder(name, "openvino"),
        lowered=deployments.lowered(name, "openvino"),
        threads=1,
    )
    assert audit.unmatched == ()
    planned = artifact.manifest.planned
    assert [e.layer for e in audit.entries if e.integer] == [n for n in planned if n != image.layer]
    for entry in audit.entries:
        if entry.kind == "attention":
            assert entry.kernels
            assert entry.precision in ("bf16", "f32")
            continue
        assert entry.stored_bits == (8 if entry.layer in ("unet.conv_in", "unet.conv_out") else 4)
        if entry.layer == image.layer:  # in float
            assert entry.precision in ("bf16", "f32")
            continue
        assert entry.precision == "u8s8"
        kind = "Convolution" if entry.kind == "conv2d" else "FullyConnected"
        assert len(entry.kernels) == 1
        assert entry.kernels[0].startswith(f"{kind} ")


def test_weights_alone_are_not_dynamically_quantized(deployments: Deployments) -> None:
    parity = _verify(deployments, "w8")
    parity.check()
    assert {layer.step for layer in parity.layers} == {"rounding"}


def test_swapped_scales_are_found(deployments: Deployments, tmp_path: Path) -> None:
    """In the .bin: the float32 scales of one layer are there once, as they are in the artifact."""
    layer = "unet.mid_block.resnets.0.conv1"
    folder = tmp_path / "openvino"
    shutil.copytree(deployments.folder("w4a4", "openvino"), folder)
    deployment, _ = read_deployment(folder)
    (name,) = deployment.files
    content = (folder / name).read_bytes()
    scales = deployments.artifacts["w4a4"].grids[layer].scale.numpy()
    swapped = scales.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert scales.dtype == np.float32
    assert content.count(scales.tobytes()) == 1
    content = content.replace(scales.tobytes(), swapped.tobytes())
    (folder / name).write_bytes(content)
    files = {name: hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(deployment.model_copy(update={"files": files}).model_dump_json())
    parity = _verify(deployments, "w4a4", folder)
    assert [failed.layer for failed in parity.failed] == [layer]
    assert parity.failed[0].worst_channel in (0, 1)


def test_tensorrt_has_no_parity_here(deployments: Deployments) -> None:
    deployment, path = read_deployment(deployments.folder("w4a4", "openvino"))
    other = deployment.model_copy(update={"target": "tensorrt"})
    with pytest.raises(UsageError, match="parity for tensorrt"):
        open_pieces(other, path, deployments.artifacts["w4a4"], deployments.lowered("w4a4", "openvino"), 1)
