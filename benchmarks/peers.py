"""The runtimes' own quantizers, on flatq's float exports and on the inputs that flatq calibrates with."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from flatq.calib.inputs import CalibrationPlan, CalibrationSet, collect_inputs
from flatq.checkpoint import file_digest
from flatq.deployment import MANIFEST, read_deployment
from flatq.runtime.torch import TorchRuntime

__all__ = ["Feed", "as_deployment", "draw", "feeds", "quantize_nncf", "quantize_static", "without_nncf"]

Feed = dict[str, NDArray[Any]]


def draw(
    checkpoint: Any, plan: CalibrationPlan, threads: int | None, average: str | None = None
) -> CalibrationSet:
    """As flatq's own calibration draws them, from the float network."""
    classes = checkpoint.model.classes
    network = checkpoint.network(average)
    with TorchRuntime(network, inputs=checkpoint.model.inputs, threads=threads) as runtime:
        return collect_inputs(
            runtime, checkpoint.process, plan, checkpoint.model.image_shape, classes=classes
        )


def feeds(drawn: CalibrationSet) -> list[Feed]:
    """One batch of inputs for each timestep."""
    return [dict(zip(("x", "t", *drawn.conditions), batch, strict=True)) for batch in drawn.batches()]


def quantize_static(source: Path, out: Path, calibration: Sequence[dict[str, Any]]) -> None:
    """With the settings nearest to w8a8: Q/DQ, weights int8 by channel, activations uint8.

    Its own preparation comes first: without it, it does not know the types behind a GroupNormalization. Of
    that the symbolic shape inference is left out, which does not know all of these operators.

    Args:
        calibration: inputs by name, a batch each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = list(calibration)

        def get_next(self) -> Any:
            return self._left.pop(0) if self._left else None

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def quantize_nncf(source: Path, out: Path, calibration: list[Feed], preset: str) -> None:
    """`nncf.quantize` of a float IR, as its documentation shows it for OpenVINO."""
    import nncf
    import openvino

    nncf.set_log_level("ERROR")
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


def without_nncf() -> str | None:
    """Puts the folder of `make .venv/peers/.installed` on the path; why there is no nncf, or None."""
    sys.path.append(str(Path(sys.prefix) / "peers"))
    try:
        importlib.import_module("nncf")
    except ImportError as error:
        return f"{error}: make .venv/peers/.installed"
    return None


def as_deployment(exported: Path, file: Path, out: Path, precision: str) -> None:
    """A deployment folder around a peer's file: the float export's manifest with this file in it.

    So that the very sampler and statistics that judge flatq's exports judge the peer's.
    """
    deployment, _ = read_deployment(exported)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    parts = [path for path in (file, file.with_suffix(".bin")) if path.exists()]
    for path in parts:
        shutil.copy(path, out / path.name)
    digests = {path.name: file_digest(path) for path in dict.fromkeys(parts)}
    changed = deployment.model_copy(
        update={
            "file": file.name,
            "sha256": digests.pop(file.name),
            "files": digests,
            "precision": precision,
        }
    )
    (out / MANIFEST).write_text(changed.model_dump_json(indent=1) + "\n", encoding="utf-8")
