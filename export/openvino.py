"""For OpenVINO: its IR, an .xml with the graph and a .bin with the numbers.

Weights of 4 bits and less are i4 constants widened to i8 by a Convert. With Q/DQ on inputs and weights alone
the CPU plugin folds the Convert when it compiles, and runs the same int8 kernels as for 8-bit weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from flatq.deployment import FloatPrecision
from flatq.errors import ModelError
from flatq.export.onnx import ONNX_FILE, narrow_weights, save_onnx
from flatq.runtime.openvino import import_openvino

__all__ = ["write"]

_XML = "model.xml"


def write(model: onnx.ModelProto, bits: Mapping[str, int], folder: Path, floats: FloatPrecision) -> str:
    """Write the model; see `flatq.export.targets`.

    Raises:
        MissingRuntimeError: openvino is not installed.
        ModelError: OpenVINO refuses the graph.
    """
    openvino = import_openvino()
    narrow_weights(model, bits)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / ONNX_FILE
        save_onnx(model, source)
        try:
            converted = openvino.Core().read_model(source)
        except RuntimeError as error:
            raise ModelError(
                "OpenVINO refuses the exported graph",
                expected="operators that its ONNX frontend converts",
                got=" ".join(str(error).split())[:300],
                next_step="report it with the versions that `flatq doctor` prints",
            ) from error
        _name(converted)
        for entry in model.metadata_props:
            converted.set_rt_info(entry.value, ["flatq", entry.key.removeprefix("flatq.")])
        # Without the fp16 compression that OpenVINO applies by default, unless it was asked for.
        openvino.save_model(converted, folder / _XML, compress_to_fp16=floats == "fp16")
    return _XML


def _name(model: Any) -> None:
    """Give operators without a name of their own one that does not depend on what the process did before."""
    model.set_friendly_name("flatq")
    for number, operator in enumerate(model.get_ordered_ops()):
        if operator.get_friendly_name() == operator.get_name():
            operator.set_friendly_name(f"{operator.get_type_name()}_{number}")
