"""Small ONNX models by hand, and models cut out of larger ones, for the tests of the rewrites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

Sizes = Sequence[int | str]


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """A node named as its output; inputs are separated by blanks."""
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sizes],
    outputs: Mapping[str, Sizes],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """A model of opset 21 with float32 inputs and outputs, checked."""

    def values(sizes: Mapping[str, Sizes]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(v)) for k, v in sizes.items()]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "graph", values(inputs), values(outputs), initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def copy(source: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(source)
    return made


def operators(source: onnx.ModelProto) -> list[str]:
    return [entry.op_type for entry in source.graph.node]


def run(
    source: onnx.ModelProto, feeds: Mapping[str, np.ndarray], optimized: Path | None = None
) -> list[np.ndarray]:
    """The outputs, by ONNX Runtime in one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, dict(feeds))
    return results


def region(source: onnx.ModelProto, inputs: Sequence[str], output: str) -> onnx.ModelProto:
    """What lies between some tensors and another, float32 all, as a model of its own."""
    constants = {value.name: value for value in source.graph.initializer}
    producers = {name: entry for entry in source.graph.node for name in entry.output}
    wanted: set[str] = set()
    left = [output]
    while left:
        name = left.pop()
        if name and name not in inputs and name not in constants and producers[name].output[0] not in wanted:
            wanted.add(producers[name].output[0])
            left.extend(producers[name].input)
    nodes = [entry for entry in source.graph.node if entry.output[0] in wanted]
    read = {name for entry in nodes for name in entry.input}
    graph = helper.make_graph(
        nodes,
        "region",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [value for name, value in constants.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)
