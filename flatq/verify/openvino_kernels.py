"""What OpenVINO says that it runs: the operators of a compiled model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Kernel", "kernels_of"]

_DATA = ("Const", "Input", "Output", "Parameter", "Result")


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
