"""Contrasts as text: arithmetic over what was measured, one value for each training seed.

    log(lpf(flat, raw) / lpf(plain, raw))
    (drift(plain, raw, naive8) - drift(flat, raw, naive8)) / mean(fid(plain, raw))

Measured: `fid(MODEL, WEIGHTS[, QUANTIZER])` (corrected for bias) and `drift(MODEL, WEIGHTS, QUANTIZER)`, both
also with `steps=` and `runtime=`; `lpf(MODEL, WEIGHTS)`, the increase of the loss under weight noise,
`lpf_error`, its standard error, and `lpf_total`, the loss there; `exposure(MODEL, WEIGHTS[, QUANTIZER])`;
`loss(MODEL, WEIGHTS)` on held-out images; `damage(MODEL, WEIGHTS, QUANTIZER)`, the increase of the loss by
the weights' error, and `random_damage`, that by random noise of the same norm in each tensor.

Functions: `log`, `abs`, `mean` (over the seeds), and `log_ratio(A, B, ERROR_A, ERROR_B)`: log(A / B) or,
where at any seed a value is not more than two standard errors above zero, (A - B) / mean(B) at all seeds.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import RootModel, model_validator

__all__ = ["FLOAT", "Expression", "Quantity"]

F64 = NDArray[np.float64]
FLOAT = "float"
"""Stands for the unquantized model where a quantizer is named."""

_QUANTITIES = {
    "fid": (2, 3),
    "drift": (3, 3),
    "lpf": (2, 2),
    "lpf_error": (2, 2),
    "lpf_total": (2, 2),
    "exposure": (2, 3),
    "loss": (2, 2),
    "damage": (3, 3),
    "random_damage": (3, 3),
}
"""Name -> fewest and most arguments."""

_VARIANTS = ("raw", "ema", "swa")


@dataclass(frozen=True)
class Quantity:
    """One measured number of a cell.

    Attributes:
        kind: as `fid`.
        model: name of a run's model, or a role that stands for one.
        steps, runtime: how it was sampled; None for the study's.
    """

    kind: str
    model: str
    weights: str
    quantizer: str = FLOAT
    steps: int | None = None
    runtime: str | None = None

    def describe(self) -> str:
        """The quantity as an expression."""
        words = [self.model, self.weights, *([] if self.quantizer == FLOAT else [self.quantizer])]
        words += [f"{k}={v}" for k, v in (("steps", self.steps), ("runtime", self.runtime)) if v is not None]
        return f"{self.kind}({', '.join(words)})"


class Expression(RootModel[str | float]):
    """An expression, checked when it is read."""

    model_config = {"frozen": True}

    @model_validator(mode="after")
    def _check(self) -> Expression:
        _ = self.calls
        return self

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(str(self.root), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"{self.root!r} is no expression: {error.msg}") from error

    @cached_property
    def calls(self) -> tuple[Quantity, ...]:
        """What has to be measured."""
        found: list[Quantity] = []
        _walk(self._tree, lambda quantity: found.append(quantity) or 1.0)  # type: ignore[func-returns-value]
        return tuple(dict.fromkeys(found))

    @property
    def number(self) -> float:
        """The value of an expression without quantities."""
        return float(_walk(self._tree, lambda _: np.nan))

    def quantities(self, roles: Mapping[str, str]) -> tuple[Quantity, ...]:
        """`calls` with the models that play the roles."""
        return tuple(replace(q, model=roles.get(q.model, q.model)) for q in self.calls)

    def evaluate(self, values: Callable[[Quantity], F64], roles: Mapping[str, str]) -> tuple[F64, bool]:
        """float64 [seeds], or a number [] where nothing was measured; and whether a `log_ratio` in it is
        (A - B) / mean(B) at these values.

        Args:
            values: float64 [seeds] of a quantity, the seeds in one order.
        """
        differences = False

        def log_ratio(a: F64, b: F64, error_a: F64, error_b: F64) -> F64:
            nonlocal differences
            if np.all(a > 2 * error_a) and np.all(b > 2 * error_b):
                return np.log(a / b)
            differences = True
            return np.asarray((a - b) / np.mean(b))

        def at(quantity: Quantity) -> F64:
            return values(replace(quantity, model=roles.get(quantity.model, quantity.model)))

        with np.errstate(divide="ignore", invalid="ignore"):
            found = _walk(self._tree, at, {**_FUNCTIONS, "log_ratio": (4, log_ratio)})
        return np.asarray(found, dtype=np.float64), differences


_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "log": (1, np.log),
    "abs": (1, np.abs),
    "mean": (1, np.mean),
    "log_ratio": (4, lambda *_: np.nan),
}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


def _walk(
    node: ast.expr,
    values: Callable[[Quantity], Any],
    functions: Mapping[str, tuple[int, Callable[..., Any]]] = _FUNCTIONS,
) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return np.negative(_walk(operand, values, functions))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_walk(left, values, functions), _walk(right, values, functions))
        case ast.Call(func=ast.Name(id=name), args=args) if name in functions:
            count, function = functions[name]
            if len(args) != count or node.keywords:
                raise ValueError(f"{name} takes {count} values")
            return function(*(_walk(arg, values, functions) for arg in args))
        case ast.Call(func=ast.Name(id=name)) if name in _QUANTITIES:
            return values(_quantity(name, node))
    known = ", ".join([*_QUANTITIES, *functions])
    raise ValueError(f"{ast.unparse(node)!r} is not understood; there are + - * / and {known}")


def _quantity(kind: str, call: ast.Call) -> Quantity:
    words = [arg.id for arg in call.args if isinstance(arg, ast.Name)]
    fewest, most = _QUANTITIES[kind]
    if len(words) < len(call.args) or not fewest <= len(words) <= most:
        raise ValueError(f"{ast.unparse(call)!r}: {kind} takes {fewest} to {most} names")
    if words[1] not in _VARIANTS:
        raise ValueError(f"{ast.unparse(call)!r}: weights are one of {', '.join(_VARIANTS)}")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        match keyword.arg, keyword.value:
            case "steps", ast.Constant(value=int() as steps) if kind in ("fid", "drift"):
                options["steps"] = steps
            case "runtime", ast.Name(id=runtime) if kind in ("fid", "drift"):
                options["runtime"] = runtime
            case _:
                raise ValueError(f"{ast.unparse(call)!r}: {kind} knows no {keyword.arg} of that form")
    return Quantity(kind, words[0], words[1], *words[2:], **options)  # type: ignore[arg-type]
