"""For OpenVINO: its IR, an .xml with the graph and a .bin with the numbers.

Weights of 4 bits and less are i4 constants widened to i8 by a Convert. With Q/DQ on inputs and weights alone
the CPU plugin folds the Convert when it compiles, and runs the same int8 kernels as for 8-bit weights.

The exporter takes a bias of zeros away. Where what an integer convolution without one yields is concatenated,
OpenVINO 2026.4.1 computes another network: with zeros in conv_in.bias an SQNR of -2 dB, with any bias 138 dB.
Such a convolution gets one of the smallest normal float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from flatq.deployment import FloatPrecision
from flatq.errors import ModelError, one_line
from flatq.export.graph import OnnxGraph
from flatq.export.onnx import ONNX_FILE, save_onnx
from flatq.runtime.openvino import import_openvino

__all__ = ["write_openvino"]

_XML = "model.xml"


def write_openvino(model: onnx.ModelProto, folder: Path, floats: FloatPrecision) -> str:
    """Convert a model to IR and write it; returns the name of the .xml.

    Raises:
        MissingRuntimeError: openvino is not installed.
        ModelError: OpenVINO refuses the graph.
    """
    openvino = import_openvino()
    _bias_before_concat(model)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / ONNX_FILE
        save_onnx(model, source)
        try:
            converted = openvino.Core().read_model(source)
        except RuntimeError as error:
            raise ModelError(
                "OpenVINO refuses the exported graph",
                expected="operators that its ONNX frontend converts",
                got=one_line(error),
                next_step="report it with the versions that `flatq doctor` prints",
            ) from error
        _name(converted)
        for entry in model.metadata_props:
            converted.set_rt_info(entry.value, ["flatq", entry.key.removeprefix("flatq.")])
        # Without the fp16 compression that OpenVINO applies by default, unless it was asked for.
        openvino.save_model(converted, folder / _XML, compress_to_fp16=floats == "fp16")
    return _XML


def _bias_before_concat(model: onnx.ModelProto) -> None:
    """Give every integer convolution without a bias whose result is concatenated one that adds nothing."""
    graph = OnnxGraph(model)
    joined = {name for node in graph.nodes if node.op_type == "Concat" for name in node.input}
    for node in graph.nodes:
        if node.op_type != "Conv" or len(node.input) > 2 or node.output[0] not in joined:
            continue
        name = node.input[1]
        if graph.made_by(name, "DequantizeLinear") is None:
            continue
        while name not in graph.initializers:
            name = graph.producers[name].input[0]
        bias = np.full(graph.initializers[name].dims[0], np.finfo(np.float32).smallest_normal)
        model.graph.initializer.append(numpy_helper.from_array(bias, f"{node.name}.no_bias"))
        node.input.append(f"{node.name}.no_bias")


def _name(model: Any) -> None:
    """Give operators without a name of their own one that does not depend on what the process did before."""
    model.set_friendly_name("flatq")
    for number, operator in enumerate(model.get_ordered_ops()):
        if operator.get_friendly_name() == operator.get_name():
            operator.set_friendly_name(f"{operator.get_type_name()}_{number}")
