"""Layers of an OpenVINO IR on OpenVINO, cut out of the model as it is stored.

They run in float32 where a deployment runs in bf16 by default: the integer kernels are the same, and no
coarse rounding of their result hides a fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import ModelError
from flatq.runtime.openvino import SETTINGS, import_openvino
from flatq.verify.openvino_kernels import kernels_of
from flatq.verify.pieces import Ran
from flatq.verify.reference import Reference

__all__ = ["OpenVinoPieces", "floats_behind", "is_product", "product_of", "weight_constants"]

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_WEIGHT_STEPS = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")
_BOUNDS = ("Clamp", "Maximum", "Minimum")
_SETTINGS = {**SETTINGS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def is_product(operator: Any) -> bool:
    """Whether an operator of an IR multiplies and accumulates."""
    return operator.get_type_name() in _PRODUCTS


def weight_constants(model: Any, layers: Mapping[str, str]) -> dict[str, Any]:
    """Layer name -> the constant with its codes; a layer without one is left out.

    Args:
        layers: as `Lowered.layers`.
    """
    constants = {
        re.sub(r"\W", "_", operator.get_friendly_name().removesuffix(".int4")): operator
        for operator in model.get_ops()
        if operator.get_type_name() == "Constant"
    }
    wanted = {layer: re.sub(r"\W", "_", codes) for layer, codes in layers.items()}
    return {layer: constants[name] for layer, name in wanted.items() if name in constants}


def product_of(layer: str, constant: Any) -> Any:
    """The operator that multiplies by a weight.

    Raises:
        ModelError: the weight leads to none.
    """
    operator, seen = constant, [constant.get_friendly_name()]
    while not is_product(operator):
        users = _users(operator)
        if len(users) != 1 or users[0].get_type_name() not in (*_WEIGHT_STEPS, *_PRODUCTS):
            raise _strange(layer, " -> ".join([*seen, *(user.get_type_name() for user in users)]))
        operator = users[0]
        seen.append(operator.get_type_name())
    return operator


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
        layers: as `Lowered.layers`.
        threads: of each run.
    """

    def __init__(self, path: Path, layers: Mapping[str, str], threads: int) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self._model = self._core.read_model(path)
        self._constants = weight_constants(self._model, layers)
        self._settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}

    def run(self, reference: Reference, source: NDArray[np.float32]) -> Ran:
        constant = self._constants.get(reference.layer)
        if constant is None:
            raise ModelError(
                f"the exported model holds no integers for {reference.layer}",
                expected="a constant with its codes",
                next_step="export again",
            )
        product = product_of(reference.layer, constant)
        entry = self._entry(product, reference)
        own = floats_behind(product)
        result = _quantized(own[-1]) if reference.output is not None else own[-1]
        opset: Any = self._openvino.opset13
        parameter = opset.parameter([-1, *source.shape[1:]], np.float32, name="source")
        given = entry.get_source_output()
        entry.replace_source_output(parameter.output(0))
        try:
            piece = self._openvino.Model([result.output(0)], [parameter], "layer")
            compiled = self._core.compile_model(piece, "CPU", self._settings)
            output = compiled.create_infer_request().infer([source])[0]
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot run {reference.layer} alone",
                expected="a model that it can compile and run",
                got=" ".join(str(error).split())[-300:],
                next_step="report it with the versions that `flatq doctor` prints",
            ) from error
        finally:
            entry.replace_source_output(given)
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

    def _entry(self, product: Any, reference: Reference) -> Any:
        """The input, of the first operator of the layer, that its tensor goes into."""
        if reference.input is None:
            return product.input(0)
        quantize = _back(_before(product), ("Convert", "Multiply", "Subtract"))
        if quantize.get_type_name() != "FakeQuantize":
            return product.input(0)
        narrow = reference.input.high - reference.input.low < 254
        entry = quantize.input(0)
        while narrow and (bound := entry.get_source_output().get_node()).get_type_name() in _BOUNDS:
            index = next(
                i for i in range(bound.get_input_size()) if _before(bound, i).get_type_name() != "Constant"
            )
            entry = bound.input(index)
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
