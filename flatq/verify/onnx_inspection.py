"""What ONNX Runtime says that it runs: the graph that it optimized, and the profile of one run of it.

A node is matched to a layer by the weight that it holds: the name of the initializer where the optimizer kept
it, else its numbers in any order, so that no transposition hides them. Nothing goes by position.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from flatq.export.graph import OnnxGraph, attribute
from flatq.export.onnx import find_weights
from flatq.inputs import zeros
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.runtime.onnxruntime import OnnxRuntime
from flatq.verify.inspection import Found, Inspection, ancestors, attention_of
from flatq.verify.onnx_pieces import INTEGER, bits, product_of, reads

__all__ = ["inspect_onnxruntime"]

_WHOLE_ATTENTIONS = {"Attention", "GroupQueryAttention", "MultiHeadAttention", "QAttention"}
"""Operators that compute both products of an attention at once."""

_PRODUCTS = (
    INTEGER
    | _WHOLE_ATTENTIONS
    | {
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "Gemm",
        "MatMul",
        "MatMulNBits",
        "NhwcFusedConv",
    }
)
"""The operators of ONNX Runtime's CPU provider that multiply and accumulate. One that holds a layer's weight
counts as a product even if its name is not here."""

_SHORT = {
    "bfloat16": "bf16",
    "double": "f64",
    "float": "f32",
    "float16": "f16",
    "int8": "s8",
    "uint8": "u8",
}
_MOVES = ("DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_CONSTANT = (*_MOVES, "Cast", "QuantizeLinear")


def inspect_onnxruntime(path: Path, artifact: Artifact, lowered: Lowered, threads: int) -> Inspection:
    """Run the exported file once and read what ONNX Runtime made of it.

    Raises:
        ArtifactError: ONNX Runtime refuses the file.
    """
    exported = OnnxGraph(onnx.load(path))
    weights = _Weights(exported, artifact, lowered)
    with tempfile.TemporaryDirectory(prefix="flatq-") as scratch:
        identity, events = _profile(path, artifact, threads, Path(scratch))
        optimized = OnnxGraph(onnx.load(Path(scratch) / "optimized.onnx"))
    attentions = [d.node for d in artifact.manifest.decisions if d.kind == "attention"]
    tensors = reads(optimized)
    owners: dict[str, str] = {}
    found: dict[str, list[Found]] = {}
    unmatched = []
    for node in optimized.nodes:
        owner = weights.owner(optimized, node)
        if owner is None and node.op_type in _PRODUCTS:
            owner = attention_of(ancestors(tensors, node.output[0], owners), attentions)
        if owner is None:
            if node.op_type in _PRODUCTS:
                unmatched.append(f"{node.op_type} {node.name}")
            continue
        owners.update(dict.fromkeys(node.output, owner))
        event = events.get((node.name, node.op_type))
        if event is None:
            unmatched.append(f"{node.op_type} {node.name}, which did not run")
            continue
        found.setdefault(owner, []).append(_found(optimized, node, event))
    operators = Counter(operator for _, operator in events)
    source = "ONNX Runtime's optimized graph and the profile of a run"
    return Inspection(identity, source, found, weights.stored_bits, tuple(unmatched), operators)


def _profile(
    path: Path, artifact: Artifact, threads: int, scratch: Path
) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """The runtime's identity, and what ran, by name and operator."""
    with OnnxRuntime(
        path, threads=threads, optimized_path=scratch / "optimized.onnx", profile_prefix=scratch / "run"
    ) as runtime:
        runtime(*zeros(artifact.manifest.model.inputs, 1))
        identity = runtime.identity
        profile = json.loads(runtime.end_profiling().read_text(encoding="utf-8"))
    events = {
        (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]): event["args"]
        for event in profile
        if event.get("cat") == "Node" and "op_name" in event["args"]
    }
    return identity, events


class _Weights:
    """Which layer a node's weight is of.

    Attributes:
        stored_bits: width of each weight in the exported file.
    """

    def __init__(self, exported: OnnxGraph, artifact: Artifact, lowered: Lowered) -> None:
        self.stored_bits: dict[str, int] = {}
        self._by_name: dict[str, str] = {}
        self._by_numbers: dict[str, set[str]] = {}
        self._node_names: dict[str, str] = {}
        for layer, weight in find_weights(exported.initializers, lowered.layers).items():
            nodes = product_of(exported, layer, weight)
            names = [weight, *(node.output[0] for node in nodes[:-1])]
            self._by_name.update(dict.fromkeys(names, layer))
            self._node_names[layer] = nodes[-1].name
            self.stored_bits[layer] = bits(exported.initializers[weight].data_type)
            integers = artifact.integers[layer]
            for numbers in (integers, artifact.grids[layer].dequantize(integers)):
                self._by_numbers.setdefault(_fingerprint(numbers.numpy()), set()).add(layer)
        for layer, name in artifact.manifest.float_weights.items():
            self._by_name[name] = layer
            self._by_numbers.setdefault(_fingerprint(artifact.rest[name].numpy()), set()).add(layer)
            if name in exported.initializers:
                self.stored_bits[layer] = bits(exported.initializers[name].data_type)

    def owner(self, graph: OnnxGraph, node: onnx.NodeProto) -> str | None:
        """The layer whose weight a node of the optimized graph multiplies by."""
        if node.op_type in _CONSTANT:
            return None
        held = [name for read in node.input if read for name in _constants_behind(graph, read)]
        for name in held:
            if name in self._by_name:
                return self._by_name[name]
        for name in held:
            layers = self._of_numbers(graph, node, name)
            if len(layers) == 1:
                return next(iter(layers))
            # Equal weights: the optimizer derives a node's name from the exported one.
            alike = [layer for layer in layers if node.name.startswith(self._node_names.get(layer, "?"))]
            if alike:
                return max(alike, key=lambda layer: len(self._node_names[layer]))
        return None

    def _of_numbers(self, graph: OnnxGraph, node: onnx.NodeProto, name: str) -> set[str]:
        value = graph.constant(name)
        if value is None or value.ndim < 2:
            return set()
        if node.op_type not in _PRODUCTS and not value.any():
            return set()  # zeros, which a normalization's shift holds as well as a layer
        if node.op_type == "MatMulNBits":
            value = _unpacked(node, value)
        elif value.dtype == np.uint8:
            value = (value.astype(np.int16) - 128).astype(np.int8)
        return self._by_numbers.get(_fingerprint(value), set())


def _constants_behind(graph: OnnxGraph, name: str) -> list[str]:
    """A tensor's name and, where it is made of constants alone, those of what it is made of."""
    names = [name]
    while (node := graph.producers.get(names[-1])) is not None and node.op_type in _CONSTANT:
        names.append(node.input[0])
    return names if names[-1] in graph.initializers else [name]


def _fingerprint(value: NDArray[Any]) -> str:
    """Of the numbers in any order but zeros, with which ONNX Runtime fills channels up to whole blocks."""
    flat = value.reshape(-1)
    flat = flat[flat != 0]
    flat = np.sort(flat.astype(np.int8 if flat.dtype.kind in "iu" or flat.dtype.kind == "V" else np.float32))
    return hashlib.sha256(flat.dtype.str.encode() + flat.tobytes()).hexdigest()


def _unpacked(node: onnx.NodeProto, value: NDArray[Any]) -> NDArray[np.int8]:
    """The integers of a MatMulNBits: [N, blocks, bytes], 4-bit ones two in a byte, rows padded to blocks."""
    bits, columns = int(attribute(node, "bits")), int(attribute(node, "K"))
    if value.dtype != np.uint8 or value.ndim != 3:
        return np.zeros((0, 0), dtype=np.int8)
    rows = value.reshape(len(value), -1)
    if bits == 4:
        rows = np.stack([rows & 0xF, rows >> 4], axis=-1).reshape(len(value), -1)
    integers: NDArray[np.int8] = (rows[:, :columns].astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return integers


def _found(graph: OnnxGraph, node: onnx.NodeProto, event: dict[str, Any]) -> Found:
    types = [next(iter(entry)) for entry in event["input_type_shape"]]
    first = _SHORT.get(types[0], types[0])
    provider = str(event["provider"]).removesuffix("ExecutionProvider")
    kernel = node.op_type if provider == "CPU" else f"{node.op_type} ({provider})"
    products = 2 if node.op_type in _WHOLE_ATTENTIONS else 1
    if node.op_type in INTEGER:
        return Found(kernel, first + _second_type(graph, node, event), integer=True, products=products)
    return Found(kernel, first, integer=False, remark=_remark(graph, node, first), products=products)


def _second_type(graph: OnnxGraph, node: onnx.NodeProto, event: dict[str, Any]) -> str:
    """Type of a product's second factor; the profile leaves out what the kernel keeps packed."""
    for name in node.input[1:]:
        value = graph.initializers.get(name)
        if value is not None and len(value.dims) >= 2:
            return {"INT8": "s8", "UINT8": "u8"}.get(onnx.TensorProto.DataType.Name(value.data_type), "?")
    given = [next(iter(entry.items())) for entry in event["input_type_shape"]]
    integers = [kind for kind, shape in given if kind in ("int8", "uint8") and len(shape) >= 2]
    return _SHORT[integers[1]] if len(integers) > 1 else "u8"


def _remark(graph: OnnxGraph, node: onnx.NodeProto, precision: str) -> str:
    what = f"ONNX Runtime runs it as {node.op_type} in {precision}"
    name = node.input[0]
    while (producer := graph.producers.get(name)) is not None and producer.op_type in _MOVES:
        if producer.op_type == "DequantizeLinear":
            behind = [user.op_type for output in node.output for user in graph.consumers.get(output, [])]
            if any(map(graph.is_output, node.output)):
                behind.append("the caller")
            floats = [operator for operator in behind if operator != "QuantizeLinear"]
            read = f", and {floats[0]} reads what it yields in float" if floats else ""
            return f"{what}: its input is dequantized in front of it{read}"
        name = producer.input[0]
    return f"{what}: its input reaches it in float"
