"""What a runtime says that it runs, in a form common to all runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Found", "Inspection", "add", "attention_of"]


@dataclass(frozen=True)
class Found:
    """What runs one candidate of the plan.

    Attributes:
        kernels: operators, by the runtime's names.
        precision: of the arithmetic, such as `u8s8` or `f32`.
        integer: whether integers are multiplied.
        remark: if not, what the runtime's graph tells of the reason.
        products: how many of the candidate's products they stand for; an attention has two.
    """

    kernels: tuple[str, ...]
    precision: str
    integer: bool
    remark: str | None = None
    products: int = 1


@dataclass(frozen=True)
class Inspection:
    """A runtime's own account of a model.

    Attributes:
        runtime: its identity.
        source: where the account is from.
        found: by candidate's name; a candidate that nothing was found for is left out.
        stored_bits: width of the weight in the model file, by candidate's name.
        unmatched: operators that multiply and accumulate and belong to no candidate.
        operators: how often each operator runs.
    """

    runtime: Mapping[str, Any]
    source: str
    found: Mapping[str, Found]
    stored_bits: Mapping[str, int]
    unmatched: tuple[str, ...]
    operators: Mapping[str, int]


def add(found: dict[str, Found], name: str, kernel: Found) -> None:
    """Record what runs a candidate, beside what was recorded of it before."""
    before = found.get(name)
    found[name] = (
        kernel
        if before is None
        else Found(
            (*before.kernels, *kernel.kernels),
            ", ".join(dict.fromkeys([before.precision, kernel.precision])),
            before.integer and kernel.integer,
            before.remark or kernel.remark,
            before.products + kernel.products,
        )
    )


def attention_of(ancestors: Iterable[str], candidates: Iterable[str]) -> str | None:
    """The attention that a product of two computed tensors belongs to.

    Args:
        ancestors: names of the candidates whose outputs it reads, with nothing between that multiplies.
        candidates: names of the attentions.

    Returns:
        The innermost attention that all ancestors are part of, or are; None where there is none.
    """
    read = list(ancestors)
    around = [c for c in candidates if read and all(a == c or a.startswith(f"{c}.") for a in read)]
    return max(around, key=len, default=None)
