"""What a TensorRT engine's inspector says that it runs. Needs a GPU with an engine built for it.

The exported ONNX file leads from a layer's weight to the names of its nodes; the inspector names, in each
layer's metadata, the ONNX nodes that it stands for. Reading its JSON (`read_layers`) needs no GPU.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from flatq.deployment import Deployment
from flatq.errors import ArtifactError
from flatq.export.graph import OnnxGraph
from flatq.export.onnx import find_weights
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.runtime.tensorrt import TensorRtRuntime
from flatq.verify.inspection import Found, Inspection
from flatq.verify.onnx_pieces import bits, find_owners

__all__ = ["inspect_tensorrt", "read_layers"]

_TYPES = (
    ("int8", "s8"),
    ("fp8", "f8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "f16"),
    ("half", "f16"),
    ("fp32", "f32"),
    ("float", "f32"),
)


def inspect_tensorrt(path: Path, deployment: Deployment, artifact: Artifact, lowered: Lowered) -> Inspection:
    """Ask the engine that was built for this machine.

    Raises:
        MissingRuntimeError: no TensorRT, no GPU, or no engine for them.
        ArtifactError: the engine tells no details.
    """
    graph = OnnxGraph(onnx.load(path))
    weights = find_weights(graph.initializers, {**lowered.layers, **artifact.manifest.float_weights})
    attentions = [d.node for d in artifact.manifest.decisions if d.kind == "attention"]
    owners = find_owners(graph, weights, attentions)
    names = {graph.producers[output].name: owner for output, owner in owners.items()}
    stored_bits = {layer: bits(graph.initializers[weight].data_type) for layer, weight in weights.items()}
    with TensorRtRuntime(path.parent, deployment.sha256) as runtime:
        found, unmatched, operators = read_layers(runtime.inspect(), names)
        return Inspection(
            runtime.identity, "TensorRT's engine inspector", found, stored_bits, unmatched, operators
        )


def read_layers(
    text: str, names: Mapping[str, str]
) -> tuple[dict[str, list[Found]], tuple[str, ...], dict[str, int]]:
    """What an inspector's JSON says of each candidate.

    Args:
        names: name of each ONNX node that multiplies -> its candidate.

    Returns:
        What was found by candidate, the layers that multiply and belong to none, and how often each type of
        layer runs.

    Raises:
        ArtifactError: the engine was built without details.
    """
    layers: list[Any] = json.loads(text)["Layers"]
    if not all(isinstance(layer, dict) for layer in layers):
        raise ArtifactError(
            "the engine tells only the names of its layers",
            expected="an engine built with detailed profiling verbosity, as flatq builds it",
            got="names alone",
            next_step="build it again with `flatq export FOLDER --trt`",
        )
    found: dict[str, list[Found]] = {}
    unmatched = []
    for layer in layers:
        metadata = str(layer.get("Metadata", ""))
        stands_for = dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata))
        owners = Counter(names[n] for n in stands_for if n in names)
        kind = str(layer.get("LayerType", "unknown"))
        if not owners and any(word in kind.lower() for word in ("conv", "gemm", "matmul", "matrix", "mha")):
            unmatched.append(f"{kind} {layer.get('Name', '')}".strip())
        precision = _precision(layer)
        integer = precision == "s8s8"
        remark = None if integer else f"TensorRT runs it as {kind} in {precision}"
        for owner, products in owners.items():
            found.setdefault(owner, []).append(Found(kind, precision, integer, remark, products))
    return found, tuple(unmatched), dict(Counter(str(layer.get("LayerType", "unknown")) for layer in layers))


def _precision(layer: Mapping[str, Any]) -> str:
    """From the type of the first input, wherever this version of TensorRT says it."""
    inputs = layer.get("Inputs") or [{}]
    types = " ".join(str(inputs[0].get(key, "")) for key in ("Format/Datatype", "DataType", "Format")).lower()
    short = next((short for word, short in _TYPES if word in types), "unknown")
    return "s8s8" if short == "s8" else short
