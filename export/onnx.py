"""A traced or lowered graph as an ONNX model, opset 21, and what its writers share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

from flatq.checkpoint import ModelConfig
from flatq.errors import ModelError
from flatq.quantize.trace import export_any_batch, input_names, quiet

__all__ = [
    "ONNX_FILE",
    "OPSET",
    "narrow_weights",
    "save_onnx",
    "to_onnx",
    "weight_initializers",
]

ONNX_FILE = "model.onnx"
OPSET = 21
"""The first with INT4, and the last whose operators every target's parser builds."""

_LARGEST = 2**31 - 1
"""Bytes of a protobuf message."""


def to_onnx(graph: fx.GraphModule, config: ModelConfig, codes: Collection[str] = ()) -> onnx.ModelProto:
    """Export a graph with inputs x float32 [batch, C, H, W], t and maybe label int64 [batch], and the output
    `out`.

    Args:
        codes: names of the tensors in the graph's state that hold a layer's integers, as the values of
            `Lowered.layers`, or its weight where that is float. Each stays an initializer of its own, also
            where two hold the same numbers.

    Raises:
        ModelError: the exporter refuses the graph, or onnx's checker the model.
    """
    program = export_any_batch(graph, config)
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names(config),
                output_names=["out"],
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            _optimize(exported, codes)
        model = exported.model_proto
        onnx.checker.check_model(model, full_check=True)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            "torch's ONNX exporter refuses the network",
            expected=f"operators with an ONNX form in opset {OPSET}",
            got=" ".join(str(error).split())[:300],
            next_step="leave the operator out of the network, or report it",
        ) from error
    except onnx.checker.ValidationError as error:
        raise ModelError(
            "the exported model is not valid ONNX",
            expected="a model that onnx's checker accepts",
            got=" ".join(str(error).split())[:300],
            next_step="report it with the versions that `flatq doctor` prints",
        ) from error
    _name_batch(model)
    _strip(model)
    _separate_zero_points(model)
    return model


def _optimize(exported: torch.onnx.ONNXProgram, codes: Collection[str]) -> None:
    """What `torch.onnx.export` does by default, without merging layers whose integers are equal.

    onnxscript's optimizer makes one of initializers with equal bytes (up to 1,024 elements), then one of what
    computes with them. It leaves the inputs of the graph alone, so the integers stand among these meanwhile.
    """
    names = {_plain(name) for name in codes}
    inputs = exported.model.graph.inputs
    kept = [v for name, v in exported.model.graph.initializers.items() if _plain(name) in names]
    inputs.extend(kept)
    exported.optimize()
    for value in kept:
        inputs.remove(value)


def _name_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]


def _strip(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: source paths and stack traces of the exporting machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for initializer in model.graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]


def weight_initializers(model: onnx.ModelProto, layers: Mapping[str, str]) -> dict[str, str]:
    """Layer name -> name of the initializer with its codes.

    Args:
        layers: layer name -> name of the codes in the lowered graph, as `Lowered.layers`.

    Raises:
        ModelError: an initializer is missing; the exporter renamed or folded it.
    """
    present = {_plain(initializer.name): initializer.name for initializer in model.graph.initializer}
    missing = [layer for layer, name in layers.items() if _plain(name) not in present]
    if missing:
        raise ModelError(
            f"the exported model holds no integers for {len(missing)} planned layers",
            expected=f"an initializer for {missing[0]}",
            got="none of its name",
            next_step="report it with the versions that `flatq doctor` prints",
        )
    return {layer: present[_plain(name)] for layer, name in layers.items()}


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def narrow_weights(model: onnx.ModelProto, bits: Mapping[str, int]) -> None:
    """Store the weights of 4 bits and less as INT4 and widen each with a Cast.

    Args:
        bits: name of an INT8 initializer -> width of its codes, 2 to 8.

    Raises:
        ModelError: a code does not fit 4 bits.
    """
    casts = []
    for index, initializer in enumerate(model.graph.initializer):
        if bits.get(initializer.name, 8) > 4:
            continue
        codes = numpy_helper.to_array(initializer)
        if codes.min() < -8 or codes.max() > 7:
            raise ModelError(
                f"{initializer.name} does not fit 4 bits",
                expected="codes in -8..7",
                got=f"{codes.min()}..{codes.max()}",
            )
        narrow = f"{initializer.name}.int4"
        flat = codes.reshape(-1).astype(np.int8)
        nibbles = (np.append(flat, np.zeros(flat.size % 2, np.int8)) & 0xF).astype(np.uint8)
        packed = nibbles[0::2] | (nibbles[1::2] << 4)
        casts.append(
            helper.make_node(
                "Cast", [narrow], [initializer.name], name=f"{narrow}.cast", to=onnx.TensorProto.INT8
            )
        )
        model.graph.initializer[index].CopyFrom(
            helper.make_tensor(narrow, onnx.TensorProto.INT4, codes.shape, packed.tobytes(), raw=True)
        )
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *rest])


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
    used = {name for node in model.graph.node for name in node.input}
    kept = [initializer for initializer in model.graph.initializer if initializer.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


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
