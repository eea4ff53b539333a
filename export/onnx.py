"""A traced or lowered graph as an ONNX model, opset 21, and what its writers share."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

from flatq.errors import ModelError, one_line
from flatq.export.graph import set_nodes
from flatq.network_config import ModelConfig
from flatq.quantize.trace import export_any_batch, quiet

__all__ = [
    "ONNX_FILE",
    "OPSET",
    "find_weights",
    "narrow_weights",
    "save_onnx",
    "to_onnx",
]

ONNX_FILE = "model.onnx"
OPSET = 21
"""The first with INT4, and the last whose operators every target's parser builds."""

_LARGEST = 2**31 - 1
"""Bytes of a protobuf message."""


def to_onnx(graph: fx.GraphModule, config: ModelConfig, weights: Collection[str] = ()) -> onnx.ModelProto:
    """Export a graph with inputs x float32 [batch, C, H, W], t and maybe label int64 [batch], and the output
    `out`.

    Args:
        weights: names of the tensors in the graph's state that hold a layer's integers, as the values of
            `Lowered.layers`, or its weight where that is float. Each stays an initializer of its own, also
            where two hold the same numbers.

    Raises:
        ModelError: the exporter refuses the graph.
    """
    program = export_any_batch(graph, config)
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in config.inputs],
                output_names=["out"],
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            _optimize(exported, weights)
        model = exported.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            "torch's ONNX exporter refuses the network",
            expected=f"operators with an ONNX form in opset {OPSET}",
            got=one_line(error),
            next_step="leave the operator out of the network, or report it",
        ) from error
    _clean(model)
    _separate_zero_points(model)
    return model


def _optimize(exported: torch.onnx.ONNXProgram, weights: Collection[str]) -> None:
    """What `torch.onnx.export` does by default, without merging layers whose integers are equal.

    onnxscript's optimizer makes one of initializers with equal bytes (up to 1,024 elements), then one of what
    computes with them. It leaves the inputs of the graph alone, so the integers stand among these meanwhile.
    """
    names = {_plain(name) for name in weights}
    inputs = exported.model.graph.inputs
    kept = [v for name, v in exported.model.graph.initializers.items() if _plain(name) in names]
    inputs.extend(kept)
    exported.optimize()
    for value in kept:
        inputs.remove(value)


def _clean(model: onnx.ModelProto) -> None:
    """Name the batch; take out the exporter's shapes and its notes: source paths and stack traces."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def find_weights(stored: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
    """Layer name -> the name of its weight in an exported model; a layer without one is left out.

    Args:
        stored: names of the model's constants.
        layers: layer name -> name of its weight in the lowered graph, as `Lowered.layers`.
    """
    plain = {_plain(name.removesuffix(".int4")): name for name in stored}
    return {layer: plain[_plain(name)] for layer, name in layers.items() if _plain(name) in plain}


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def narrow_weights(model: onnx.ModelProto, bits: Mapping[str, int]) -> None:
    """Store the weights of 4 bits and less as INT4 and widen each with a Cast.

    Args:
        bits: name of an INT8 initializer -> width of its integers, 2 to 8.
    """
    casts = []
    for index, initializer in enumerate(model.graph.initializer):
        if bits.get(initializer.name, 8) > 4:
            continue
        narrow = f"{initializer.name}.int4"
        integers = numpy_helper.to_array(initializer).astype(ml_dtypes.int4)
        casts.append(
            helper.make_node(
                "Cast", [narrow], [initializer.name], name=f"{narrow}.cast", to=onnx.TensorProto.INT8
            )
        )
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(integers, narrow))
    set_nodes(model, [*casts, *model.graph.node], list(model.graph.initializer))


def _separate_zero_points(model: onnx.ModelProto) -> None:
    """Give every DequantizeLinear with an INT8 zero point one of its own.

    Where ONNX Runtime makes weights unsigned (`session.x64quantprecision`) it fails on shared ones (1.32).
    """
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3:
            continue
        shared = initializers.get(node.input[2])
        if shared is not None and shared.data_type == onnx.TensorProto.INT8:
            own = model.graph.initializer.add()
            own.CopyFrom(shared)
            own.name = node.input[2] = f"{node.output[0]}.zero_point"
    set_nodes(model, list(model.graph.node), list(model.graph.initializer))


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check the model and write it, equal models to equal bytes.

    Raises:
        ModelError: it is larger than one ONNX file may be.
    """
    if model.ByteSize() >= _LARGEST:
        raise ModelError(
            "the model is too large for one ONNX file",
            expected=f"less than {_LARGEST:,} bytes",
            got=f"{model.ByteSize():,} bytes",
            next_step="export it quantized, or with --float-precision fp16 where the target takes it",
        )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
