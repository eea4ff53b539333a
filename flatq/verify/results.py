"""What verification finds, as data: `Parity`, `Audit`, their parts and their files. No torch, no runtime.

The numbers come from `flatq.verify.parity` and `flatq.verify.audit`; tables are drawn in
`flatq.verify.tables`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flatq.deployment import AUDIT, PARITY, Deployment
from flatq.errors import ArtifactError, ModelError, one_line
from flatq.recipe import Kind

__all__ = [
    "CHANNEL_EQUAL_AT_LEAST",
    "EQUAL_AT_LEAST",
    "Audit",
    "AuditEntry",
    "EndToEnd",
    "LayerParity",
    "Parity",
    "read_audit",
    "read_parity",
]

EQUAL_AT_LEAST, CHANNEL_EQUAL_AT_LEAST = 0.999, 0.99
"""Share of a layer's elements, and of those of each output channel, that have to be equal: `LayerParity`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LayerParity(_Part):
    """One layer on the runtime against the torch Q/DQ graph, both given the same input tensor.

    Attributes:
        layer, kind: of the plan; of a product of attention a name of `flatq.verify.reference`.
        kernels: what the runtime made of the layer cut out of the exported model.
        step: what one step of the output is: `output`, one step of its quantizer; `accumulator`, one step of
            the integer sum behind a float output; `rounding`, what another order of summing moves an output
            that was summed in float. See `flatq.verify.reference.Result`.
        elements: number of output elements compared.
        max_steps: the largest difference, in steps.
        equal: fraction of the elements that are equal: the same integer, or within half a step where the
            output is float.
        worst_channel, worst_equal: the output channel (of a product, the head) that is equal least often, and
            how often it is.
        problem: why the layer could not be compared, None where it was.
    """

    layer: str
    kind: Kind
    kernels: tuple[str, ...] = ()
    step: Literal["output", "accumulator", "rounding"] | None = None
    elements: int = Field(default=0, ge=0)
    max_steps: float = 0.0
    equal: float = 0.0
    worst_channel: int | None = None
    worst_equal: float = 0.0
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """At most one step anywhere, and equal on enough of the elements, in all and in every channel."""
        return (
            self.problem is None
            and self.max_steps <= 1.001
            and self.equal >= EQUAL_AT_LEAST
            and self.worst_equal >= CHANNEL_EQUAL_AT_LEAST
        )

    def describe(self) -> str:
        """One clause on what was found."""
        if self.problem is not None or self.step is None:
            return self.problem or "not compared"
        step = {"output": "output step", "accumulator": "accumulator step", "rounding": "rounding bound"}
        channel = f" (channel {self.worst_channel}: {100 * self.worst_equal:.4g} %)" if self.equal < 1 else ""
        return f"up to {self.max_steps:.4g} {step[self.step]}s off, {100 * self.equal:.4g} % equal{channel}"


class EndToEnd(_Part):
    """Signal to quantization-noise ratios of whole network evaluations on the same inputs, dB.

    Attributes:
        deployed_to_lowered: the deployment against the torch Q/DQ graph: what the kernels add, as the network
            amplifies it.
        lowered_to_float: the torch Q/DQ graph against the float network: quantization.
        deployed_to_float: the deployment against the float network: both.
    """

    deployed_to_lowered: float
    lowered_to_float: float | None = None
    deployed_to_float: float | None = None


class Parity(_Part):
    """A deployment against the torch Q/DQ graph that it was exported from (`verify.json`).

    Attributes:
        target: the runtime that the graph was lowered for.
        model_digest: `Deployment.digest` of what was verified.
        runtime: identity of the runtime that ran it.
        timesteps, images: the inputs: so many images at each training timestep.
        layers: one for each planned layer and each quantized product of an attention, in order of execution.
        end_to_end: whole network evaluations.
    """

    format: Literal["flatq-parity"] = "flatq-parity"
    version: Literal[1] = 1
    target: str
    model_digest: str
    runtime: dict[str, Any]
    timesteps: tuple[int, ...]
    images: int = Field(gt=0)
    layers: tuple[LayerParity, ...]
    end_to_end: EndToEnd

    @property
    def failed(self) -> tuple[LayerParity, ...]:
        """The layers that are not what the torch graph computes."""
        return tuple(layer for layer in self.layers if not layer.passed)

    @property
    def broken(self) -> bool:
        """Whether the deployment's output is not a number, or more noise than signal.

        End to end no tighter bound is right: a value on the edge of two steps is rounded either way, and the
        network amplifies it to about the quantization error itself.
        """
        return not self.end_to_end.deployed_to_lowered > 0

    @property
    def passed(self) -> bool:
        """Every layer passed and the whole is not broken."""
        return not self.failed and not self.broken

    def check(self) -> None:
        """Raise where something failed.

        Raises:
            ModelError: it names the layers.
        """
        if self.failed:
            shown = [f"{layer.layer}: {layer.describe()}" for layer in self.failed[:5]]
            more = [f"and {len(self.failed) - 5} more"] if len(self.failed) > 5 else []
            raise ModelError(
                f"{len(self.failed)} of {len(self.layers)} layers on {self.target} do not match the PyTorch "
                "reference",
                expected=f"at most one step anywhere, equal on {100 * EQUAL_AT_LEAST:g} % of the elements "
                f"and {100 * CHANNEL_EQUAL_AT_LEAST:g} % of every channel's",
                got="; ".join([*shown, *more]),
                next_step="export again; if it stays, report it with the versions that `flatq doctor` prints",
            )
        if self.broken:
            raise ModelError(
                f"the network as a whole on {self.target} does not match the PyTorch reference, though every "
                "quantized layer alone does",
                expected="more signal than noise",
                got=f"SQNR {self.end_to_end.deployed_to_lowered:.1f} dB",
                next_step="report it with the versions that `flatq doctor` prints",
            )


class AuditEntry(_Part):
    """What a runtime makes of one candidate of the plan.

    Attributes:
        layer, kind, macs: of the plan; macs are for one image.
        planned: whether the recipe quantizes it.
        kernels: the operators that run it, as the runtime names them; empty where none was found.
        precision: of the arithmetic, as the runtime tells: `u8s8`, `s8s8`, `f32`, `bf16` ...; None where no
            kernel was found.
        integer: whether the products are computed in integers.
        stored_bits: width of the weight in the model file; None where there is no weight.
        reason: why it is not integer, None where it is.
    """

    layer: str
    kind: Kind
    macs: int = Field(ge=0)
    planned: bool
    kernels: tuple[str, ...]
    precision: str | None
    integer: bool
    stored_bits: int | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _float_has_a_reason(self) -> Self:
        if self.integer == (self.reason is not None):
            raise ValueError("exactly the entries that are not integer have a reason")
        return self


class Audit(_Part):
    """The kernels that a runtime really runs for a deployment (`audit.json`).

    Attributes:
        target: the runtime that the graph was lowered for.
        model_digest: `Deployment.digest` of what was audited.
        runtime: identity of the runtime that was asked.
        source: where it says so, for instance `optimized graph and profile`.
        entries: one for each candidate of the plan, in order of execution.
        unmatched: nodes of the runtime that multiply and accumulate, or hold weights, and belong to no
            candidate.
        operators: how often each operator runs in the whole graph, by the runtime's names.
    """

    format: Literal["flatq-audit"] = "flatq-audit"
    version: Literal[1] = 1
    target: str
    model_digest: str
    runtime: dict[str, Any]
    source: str
    entries: tuple[AuditEntry, ...]
    unmatched: tuple[str, ...] = ()
    operators: dict[str, int] = {}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all candidates for one image."""
        return sum(entry.macs for entry in self.entries)

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that run in integers; of an attention, both products or none."""
        integer = sum(entry.macs for entry in self.entries if entry.integer)
        return integer / self.macs if self.macs else 0.0

    @property
    def fallbacks(self) -> tuple[AuditEntry, ...]:
        """The candidates that do not run in integers, each with its reason."""
        return tuple(entry for entry in self.entries if not entry.integer)


_File = TypeVar("_File", Parity, Audit)


def read_parity(folder: Path, deployment: Deployment) -> Parity | None:
    """The parity kept in a deployment folder, None where there is none.

    Raises:
        ArtifactError: the file is damaged, of another version, or is about another model.
    """
    return _read(Parity, folder / PARITY, deployment)


def read_audit(folder: Path, deployment: Deployment) -> Audit | None:
    """The audit kept in a deployment folder, None where there is none.

    Raises: as `read_parity`.
    """
    return _read(Audit, folder / AUDIT, deployment)


def _read(kind: type[_File], path: Path, deployment: Deployment) -> _File | None:
    if not path.is_file():
        return None
    try:
        found = kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(
            f"{path} cannot be read",
            expected=f"format flatq-{kind.__name__.lower()}, version 1",
            got=one_line(error),
            next_step="export again with this version of flatq",
        ) from error
    if found.model_digest != deployment.digest:
        raise ArtifactError(
            f"{path} is about another model than the one beside it",
            expected=f"digest {deployment.digest[:16]}...",
            got=f"digest {found.model_digest[:16]}...",
            next_step="export again",
        )
    return found
