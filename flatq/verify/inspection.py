"""What a runtime says that it runs, in a form common to all runtimes, and the owners of its products."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Found", "Inspection", "Ran", "ancestors", "attention_of", "with_attentions"]


@dataclass(frozen=True)
class Found:
    """An operator that runs a candidate of the plan, or a part of it.

    Attributes:
        kernel: its name, as the runtime has it.
        precision: of the arithmetic, such as `u8s8` or `f32`.
        integer: whether integers are multiplied.
        remark: if not, what the runtime's graph tells of the reason.
        products: how many of the candidate's products it stands for; an attention has two.
    """

    kernel: str
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
    found: Mapping[str, list[Found]]
    stored_bits: Mapping[str, int]
    unmatched: tuple[str, ...]
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Ran:
    """A run of one layer alone, or of one product of an attention.

    Attributes:
        output: float32.
        kernels: the operators that the runtime made of it, by the runtime's names.
        integer: whether the products were summed in integers.
    """

    output: NDArray[np.float32]
    kernels: tuple[str, ...]
    integer: bool


def with_attentions(
    reads: Mapping[str, Iterable[str]],
    products: Collection[str],
    layers: Mapping[str, str],
    attentions: Collection[str],
) -> dict[str, str]:
    """Name of each operator that multiplies -> its layer or, for two computed tensors, its attention.

    Args:
        reads: name of each operator -> names of what it reads, in order of execution.
        products: names of the operators that multiply.
        layers: those that multiply by a weight -> its layer.
        attentions: names.
    """
    owners = dict(layers)
    for name in reads:
        if name in products and name not in owners:
            owner = attention_of(ancestors(reads, name, owners), attentions)
            if owner is not None:
                owners[name] = owner
    return owners


def ancestors(reads: Mapping[str, Iterable[str]], name: str, owners: Mapping[str, str]) -> set[str]:
    """The owners of what an operator reads, with no other owned operator between."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(reads[name])
    while waiting:
        name = waiting.pop()
        if name in owners:
            found.add(owners[name])
        elif name not in seen:
            seen.add(name)
            waiting += reads.get(name, ())
    return found


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
