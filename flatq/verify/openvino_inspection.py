"""What OpenVINO says that it runs: the runtime model of the compiled IR, and what each kernel stands for.

The IR leads from a layer's weight to the names of its operators; the runtime model leads from those to the
kernel.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from flatq.inputs import zeros
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.runtime.openvino import OpenVinoRuntime, import_openvino
from flatq.verify.inspection import Found, Inspection
from flatq.verify.openvino_pieces import find_owners, floats_behind, kernels_of, product_of, weight_constants

__all__ = ["inspect_openvino"]

_PRODUCTS = (
    "Convolution",
    "Deconvolution",
    "FullyConnected",
    "GatherMatmul",
    "LLMMLP",
    "MatMul",
    "QKVProjection",
    "ScaledDotProductAttention",
)
"""OpenVINO's layer types that multiply and accumulate."""

_BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8, "f16": 16, "bf16": 16}


def inspect_openvino(path: Path, artifact: Artifact, lowered: Lowered, threads: int) -> Inspection:
    """Compile the IR as a deployment does, run it once, and read the runtime model.

    Raises:
        ArtifactError: OpenVINO refuses the file.
        ModelError: a layer's weight leads to no product.
    """
    model = import_openvino().Core().read_model(path)
    constants = weight_constants(model, {**lowered.layers, **artifact.manifest.float_weights})
    stored_bits = {
        layer: _BITS.get(constant.get_element_type().get_type_name(), 32)
        for layer, constant in constants.items()
    }
    attentions = [d.node for d in artifact.manifest.decisions if d.kind == "attention"]
    names = find_owners(model, constants, attentions)
    for layer, constant in constants.items():
        # A weight alone in few bits is multiplied by an operator that is named after what follows.
        behind = floats_behind(product_of(layer, constant))
        names.update((operator.get_friendly_name(), layer) for operator in behind)
    with OpenVinoRuntime(path, threads=threads) as runtime:
        # Some implementations are chosen at the first run, when the batch is known.
        runtime(*zeros(artifact.manifest.model.inputs, 1))
        identity, kernels = runtime.identity, kernels_of(runtime.compiled)
    found: dict[str, list[Found]] = {}
    unmatched = []
    for kernel in kernels:
        # Where a bias is zero OpenVINO drops it, and may name the kernel after the scale behind the product.
        suffix = "/DequantizationMultiply" if kernel.kind in _PRODUCTS else ""
        held = {name.removesuffix(suffix) for name in kernel.names}
        owners = Counter(names[name] for name in held if name in names)
        if not owners and kernel.kind in _PRODUCTS:
            unmatched.append(f"{kernel.describe()} {kernel.names[0] if kernel.names else ''}".strip())
        for owner, products in owners.items():
            remark = None if kernel.is_integer else f"OpenVINO runs it as {kernel.describe()}"
            entry = Found(kernel.describe(), kernel.precision, kernel.is_integer, remark, products)
            found.setdefault(owner, []).append(entry)
    source = "OpenVINO's runtime model after a run"
    operators = Counter(kernel.kind for kernel in kernels)
    return Inspection(identity, source, found, stored_bits, tuple(unmatched), operators)
