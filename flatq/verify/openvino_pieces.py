"""Layers and products of an OpenVINO IR on OpenVINO, cut out of the model as it is stored.

They run in float32 where a deployment runs in bf16 by default: the integer kernels are the same, and no
coarse rounding of their result hides a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ModelError
from flatq.export.onnx import find_weights
from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import Lowered
from flatq.runtime.openvino import SETTINGS, import_openvino
from flatq.verify.inspection import attention_of
from flatq.verify.openvino_kernels import kernels_of
from flatq.verify.pieces import Ran
from flatq.verify.reference import AnyReference, Reference, product_names

__all__ = ["OpenVinoPieces", "attention_products", "floats_behind", "product_of", "weight_constants"]

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_WEIGHT_STEPS = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")
_BOUNDS = ("Clamp", "Maximum", "Minimum")
_SETTINGS = {**SETTINGS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


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


def attention_products(
    model: Any, products: Mapping[str, str], attentions: Collection[str]
) -> dict[str, list[Any]]:
    """Attention -> the operators that multiply two computed tensors in it, in order of execution.

    Args:
        products: name of each operator that multiplies by a weight -> its layer.
        attentions: names.
    """
    owners = dict(products)
    found: dict[str, list[Any]] = {name: [] for name in attentions}
    for operator in model.get_ordered_ops():
        name = operator.get_friendly_name()
        if operator.get_type_name() in _PRODUCTS and name not in owners:
            owner = attention_of(_ancestors(operator, owners), attentions)
            if owner is not None:
                owners[name] = owner
                found[owner].append(operator)
    return found


def _ancestors(operator: Any, owners: Mapping[str, str]) -> set[str]:
    """The candidates whose outputs an operator reads, with no other candidate between."""
    read: set[str] = set()
    seen: set[str] = set()
    waiting = [operator]
    while waiting:
        current = waiting.pop()
        for value in current.inputs():
            source = value.get_source_output().get_node()
            name = source.get_friendly_name()
            if name in seen:
                continue
            seen.add(name)
            if name in owners:
                read.add(owners[name])
            else:
                waiting.append(source)
    return read


def _users(operator: Any) -> list[Any]:
    return [target.get_node() for output in operator.outputs() for target in output.get_target_inputs()]


def _before(operator: Any, index: int = 0) -> Any:
    return operator.input(index).get_source_output().get_node()


def _back(operator: Any, kinds: tuple[str, ...]) -> Any:
    """The first operator of another kind, going back; past a bound, to the side that is not constant."""
    while operator.get_type_name() in kinds:
        sides = [_before(operator, index) for index in range(operator.get_input_size())]
        operator = next(side for side in sides if side.get_type_name() != "Constant")
    return operator


class OpenVinoPieces:
    """See `flatq.verify.pieces.Pieces`.

    Args:
        path: the IR's .xml.
        lowered: the graph that it is of.
        threads: of each run.
    """

    def __init__(self, path: Path, lowered: Lowered, threads: int) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self._model = self._core.read_model(path)
        self._constants = weight_constants(self._model, lowered.layers)
        self._products = self._of_attentions(lowered)
        self._settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}

    def _of_attentions(self, lowered: Lowered) -> dict[str, Any]:
        """Name of each product of an attention -> its operator."""
        inside = tuple(f"{name}." for name in lowered.products)
        parameters = {
            name.removesuffix(".weight"): name
            for operator in self._model.get_ops()
            if (name := operator.get_friendly_name()).startswith(inside) and name.endswith(".weight")
        }
        constants = weight_constants(self._model, {**parameters, **lowered.layers})
        owners = {
            product_of(layer, constant).get_friendly_name(): layer
            for layer, constant in constants.items()
            if layer.startswith(inside) and len(constant.shape) > 1
        }
        return {
            name: operator
            for attention, operators in attention_products(self._model, owners, lowered.products).items()
            for name, operator in zip(product_names(attention), operators, strict=False)
        }

    def _product(self, reference: AnyReference) -> Any:
        if isinstance(reference, Reference):
            constant = self._constants.get(reference.layer)
            if constant is not None:
                return product_of(reference.layer, constant)
        elif reference.layer in self._products:
            return self._products[reference.layer]
        raise ModelError(
            f"the exported model holds no integers for {reference.layer}",
            expected="a constant with its integers, or a product of two computed tensors",
            next_step="export again",
        )

    def run(self, reference: AnyReference, *sources: NDArray[np.float32]) -> Ran:
        product = self._product(reference)
        entries = [_entry(product, index, q) for index, q in enumerate(reference.inputs)]
        own, result = [product], product
        if isinstance(reference, Reference):
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
    if grid is None:
        return product.input(index)
    quantize = _back(_before(product, index), ("Convert", "Multiply", "Subtract"))
    if quantize.get_type_name() != "FakeQuantize":
        return product.input(index)
    narrow = grid.high - grid.low < 254
    entry = quantize.input(0)
    while narrow and (bound := entry.get_source_output().get_node()).get_type_name() in _BOUNDS:
        side = next(
            i for i in range(bound.get_input_size()) if _before(bound, i).get_type_name() != "Constant"
        )
        entry = bound.input(side)
    return entry


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
