"""Layers and products of an OpenVINO IR on OpenVINO, cut out of the model as it is stored.

They run in float32 where a deployment runs in bf16 by default: the integer kernels are the same, and no
coarse rounding of their result hides a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ModelError
from flatq.export.onnx import find_weights
from flatq.quantize.grid import QuantGrid
from flatq.runtime.openvino import SETTINGS, import_openvino
from flatq.verify.inspection import Ran, with_attentions
from flatq.verify.reference import Reference, named_products

__all__ = [
    "Kernel",
    "OpenVinoPieces",
    "find_owners",
    "floats_behind",
    "kernels_of",
    "product_of",
    "weight_constants",
]

_DATA = ("Const", "Input", "Output", "Parameter", "Result")
_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_WEIGHT_STEPS = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")
_BOUNDS = ("Clamp", "Maximum", "Minimum")
_SETTINGS = {**SETTINGS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Kernel:
    """One operator of a compiled model.

    Attributes:
        kind: OpenVINO's layer type, for instance `Convolution`.
        primitive: the implementation, for instance `brgconv_avx512_I8`.
        input: type of its first input, for instance `u8`; of a product whose weight alone is narrow, the
            weight's.
        names: of the IR's operators that it stands for.
        reads: types of all its inputs.
    """

    kind: str
    primitive: str
    input: str
    names: tuple[str, ...]
    reads: tuple[str, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether it multiplies 8-bit integers.

        An attention that is one `Subgraph` is called by the type of its first input alone. The values reach
        it as integers only where its second product is one of integers.
        """
        whole = self.kind == "Subgraph"
        return self.primitive.lower().endswith("_i8") and not (whole and set(self.reads) - {"i8", "u8"})

    @property
    def precision(self) -> str:
        """What it multiplies: `u8s8`, `s8s8`, or a type of float."""
        if self.is_integer:
            return "u8s8" if self.input == "u8" else "s8s8"
        return self.primitive.rsplit("_", 1)[-1].lower()

    def describe(self) -> str:
        """Type and implementation, for instance `Convolution brgconv_avx512_I8`."""
        return f"{self.kind} {self.primitive}".strip()


def kernels_of(compiled: Any) -> list[Kernel]:
    """What a compiled model runs, from its runtime model, without constants, inputs and outputs."""
    found = []
    for operator in compiled.get_runtime_model().get_ordered_ops():
        info = operator.get_rt_info()

        def text(key: str, info: Any = info) -> str:
            return str(info[key].value) if key in info else ""

        kind = text("layerType") or operator.get_type_name()
        if kind in _DATA:
            continue
        names = tuple(name for name in text("originalLayersNames").split(",") if name)
        reads = tuple(value.get_element_type().get_type_name() for value in operator.inputs())
        found.append(Kernel(kind, text("primitiveType"), text("runtimePrecision"), names, reads))
    return found


def weight_constants(model: Any, layers: Mapping[str, str]) -> dict[str, Any]:
    """Layer name -> the constant with its integers; a layer without one is left out.

    Args:
        layers: as `Lowered.layers`.
    """
    constants = {o.get_friendly_name(): o for o in model.get_ops() if o.get_type_name() == "Constant"}
    return {layer: constants[name] for layer, name in find_weights(constants, layers).items()}


def product_of(layer: str, constant: Any) -> Any:
    """The operator that multiplies by a weight.

    Raises:
        ModelError: the weight leads to none.
    """
    operator, seen = constant, [constant.get_friendly_name()]
    while operator.get_type_name() not in _PRODUCTS:
        users = _users(operator)
        if len(users) != 1 or users[0].get_type_name() not in (*_WEIGHT_STEPS, *_PRODUCTS):
            raise _strange(layer, " -> ".join([*seen, *(user.get_type_name() for user in users)]))
        operator = users[0]
        seen.append(operator.get_type_name())
    return operator


def find_owners(model: Any, constants: Mapping[str, Any], attentions: Collection[str]) -> dict[str, str]:
    """Name of each operator that multiplies -> its layer or its attention.

    Args:
        constants: layer -> the constant of its weight.
        attentions: names.

    Raises:
        ModelError: a weight leads to no product.
    """
    layers = {product_of(layer, held).get_friendly_name(): layer for layer, held in constants.items()}
    operators = model.get_ordered_ops()
    products = {o.get_friendly_name() for o in operators if o.get_type_name() in _PRODUCTS}
    reads = {
        o.get_friendly_name(): [_before(o, i).get_friendly_name() for i in range(o.get_input_size())]
        for o in operators
    }
    return with_attentions(reads, products, layers, attentions)


def _users(operator: Any) -> list[Any]:
    return [target.get_node() for output in operator.outputs() for target in output.get_target_inputs()]


def _before(operator: Any, index: int = 0) -> Any:
    return operator.input(index).get_source_output().get_node()


class OpenVinoPieces:
    """Runs single layers and products of an IR.

    Args:
        path: the IR's .xml.
        weights: layer -> name of its weight in the lowered graph, also where that is float.
        attentions: those whose products are quantized.
        threads: of each run.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, str], attentions: Collection[str], threads: int
    ) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self._model = self._core.read_model(path)
        self._constants = weight_constants(self._model, weights)
        inside = tuple(f"{name}." for name in attentions)
        layers = {layer: held for layer, held in self._constants.items() if layer.startswith(inside)}
        operators = {operator.get_friendly_name(): operator for operator in self._model.get_ops()}
        products = named_products(find_owners(self._model, layers, attentions), attentions)
        self._products = {name: operators[product] for name, product in products.items()}
        self._settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}

    def _product(self, layer: str) -> Any:
        if layer in self._products:
            return self._products[layer]
        if layer in self._constants:
            return product_of(layer, self._constants[layer])
        raise ModelError(
            f"the exported model holds no integers for {layer}",
            expected="a constant with its integers, or a product of two computed tensors",
            next_step="export again",
        )

    def run(self, reference: Reference, *sources: NDArray[np.float32]) -> Ran:
        """The layer's output for its input, or a product's for its two factors; the first axis is the batch.

        Raises:
            ModelError: the layer is not in the model, or cannot be cut out or run alone.
        """
        product = self._product(reference.layer)
        entries = [_entry(product, index, q) for index, q in enumerate(reference.inputs)]
        own, result = [product], product
        if reference.integers is not None:
            own = floats_behind(product)
            result = _quantized(own[-1]) if reference.output is not None else own[-1]
        opset: Any = self._openvino.opset13
        parameters = [opset.parameter([-1, *source.shape[1:]], np.float32) for source in sources]
        given = [entry.get_source_output() for entry in entries]
        for entry, parameter in zip(entries, parameters, strict=True):
            entry.replace_source_output(parameter.output(0))
        try:
            piece = self._openvino.Model([result.output(0)], parameters, "layer")
            compiled = self._core.compile_model(piece, "CPU", self._settings)
            output = compiled.create_infer_request().infer(list(sources))[0]
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot run {reference.layer} alone",
                expected="a model that it can compile and run",
                got=" ".join(str(error).split())[-300:],
                next_step="report it with the versions that `flatq doctor` prints",
            ) from error
        finally:
            for entry, output_before in zip(entries, given, strict=True):
                entry.replace_source_output(output_before)
        ran = kernels_of(compiled)
        names = {operator.get_friendly_name() for operator in own}
        products = [kernel for kernel in ran if names & set(kernel.names)]
        if len(products) != 1:
            raise _strange(reference.layer, f"{len(products)} operators of the compiled layer multiply")
        return Ran(
            np.array(output, dtype=np.float32),
            tuple(kernel.describe() for kernel in ran),
            products[0].is_integer,
        )


def _entry(product: Any, index: int, grid: QuantGrid | None) -> Any:
    """The input, of the first operator of a layer or product, that its tensor of this index goes into."""
    quantize = _before(product, index)
    while quantize.get_type_name() in ("Convert", "Multiply", "Subtract"):
        quantize = _before(quantize, _computed(quantize))
    if grid is None or quantize.get_type_name() != "FakeQuantize":
        return product.input(index)
    narrow = grid.high - grid.low < 254
    entry = quantize.input(0)
    while narrow and (bound := entry.get_source_output().get_node()).get_type_name() in _BOUNDS:
        entry = bound.input(_computed(bound))
    return entry


def _computed(operator: Any) -> int:
    """Which of an operator's inputs is not a constant."""
    count = operator.get_input_size()
    return next(i for i in range(count) if _before(operator, i).get_type_name() != "Constant")


def floats_behind(product: Any) -> list[Any]:
    """The product and what belongs to it behind it: a factor and a bias, each constant."""
    found = [product]
    while True:
        following = [
            user
            for user in _users(found[-1])
            if user.get_type_name() in ("Add", "Multiply")
            and any(_is_constant(_before(user, i)) for i in (0, 1))
        ]
        if len(following) != 1 or found[-1].get_type_name() == "Add":
            return found
        found.append(following[0])


def _is_constant(operator: Any) -> bool:
    while operator.get_type_name() in ("Multiply", "Reshape"):
        operator = _before(operator)
    return str(operator.get_type_name()) == "Constant"


def _quantized(operator: Any) -> Any:
    """The last operator of the quantizer and dequantizer behind an operator, or that operator itself."""
    for kind in ("FakeQuantize", "Convert", "Convert", "Subtract", "Multiply"):
        following = [user for user in _users(operator) if user.get_type_name() == kind]
        if following:
            operator = following[0]
    return operator


def _strange(layer: str, got: str) -> ModelError:
    return ModelError(
        f"the exported form of {layer} cannot be cut out",
        expected="the weight's dequantizer in front of one Convolution or MatMul",
        got=got,
        next_step="report it with the versions that `flatq doctor` prints",
    )
