"""flatq's quantizer for torchao's PT2E: it annotates the planned layers, and torchao does the rest.

Two uses: calibration observes every planned port, and lowering fixes the numbers found there where the
target wants Q/DQ nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flatq.quantize.pt2e import (
    MinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from flatq.quantize.trace import Layer, find_layers
from flatq.recipe import ATTENTION_PORTS, Decision, Scheme

__all__ = ["FlatqQuantizer", "Qparams", "activation_qparams", "code_range", "fixed_spec", "observing_spec"]


@dataclass(frozen=True)
class Qparams:
    """value = (code - zero_point) * scale.

    Attributes:
        scale: float32, [] or [channels].
        zero_point: int64, same shape.
        low, high: smallest and largest code.
        dtype: torch.int8 or torch.uint8, what the codes are stored in.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    low: int
    high: int
    dtype: torch.dtype

    def unsigned(self) -> Qparams:
        """The same values with codes from 0 on."""
        if self.dtype == torch.uint8:
            return self
        return Qparams(self.scale, self.zero_point - self.low, 0, self.high - self.low, torch.uint8)


def code_range(scheme: Scheme) -> tuple[int, int, torch.dtype]:
    """Smallest code, largest code and storage of a scheme.

    Symmetric 8-bit codes leave out -128, as the runtimes' symmetric kernels do; affine codes are unsigned.
    """
    if scheme.symmetric:
        half = 2 ** (scheme.bits - 1)
        return (-half + 1 if scheme.bits == 8 else -half), half - 1, torch.int8
    return 0, 2**scheme.bits - 1, torch.uint8


def activation_qparams(low: float, high: float, scheme: Scheme) -> Qparams:
    """Scale and zero point that cover [low, high] and represent 0 exactly.

    A range that is empty gets the scale 1: its only value is 0. Symmetric 8-bit codes reach down to -128, as
    the runtimes' QuantizeLinear does, though the scale is that of -127..127: a clip in front of it would cost
    a kernel.
    """
    first, last, dtype = code_range(scheme)
    first = -128 if scheme.symmetric and scheme.bits == 8 else first
    low, high = min(low, 0.0), max(high, 0.0)
    width = max(-low, high) / min(-first, last) if scheme.symmetric else (high - low) / (last - first)
    # Runtimes flush denormals to zero, and a scale of zero divides by it.
    scale = max(width, float(torch.finfo(torch.float32).tiny)) if width else 1.0
    zero_point = 0 if scheme.symmetric else min(max(round(first - low / scale), first), last)
    return Qparams(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point), first, last, dtype)


class _FixedPerChannelObserver(ObserverBase):  # type: ignore[misc]
    """Observes nothing and returns the parameters that it was given, per tensor or per channel.

    torchao passes the channel axis only to observers with PerChannel in their name.
    """

    def __init__(
        self,
        *,
        qparams: Qparams,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        ch_axis: int | None,
        **_: Any,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme, self.ch_axis = qscheme, ch_axis
        self._qparams = qparams

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._qparams.scale.reshape(-1), self._qparams.zero_point.reshape(-1)


def fixed_spec(qparams: Qparams) -> QuantizationSpec:
    """Quantize with exactly these parameters; per channel (axis 0) where the scale has channels."""
    per_channel = qparams.scale.ndim == 1
    return QuantizationSpec(
        dtype=qparams.dtype,
        quant_min=qparams.low,
        quant_max=qparams.high,
        qscheme=torch.per_channel_affine if per_channel else torch.per_tensor_affine,
        ch_axis=0 if per_channel else None,
        observer_or_fake_quant_ctr=_FixedPerChannelObserver.with_args(qparams=qparams),
    )


def observing_spec(scheme: Scheme, *, weight: bool) -> QuantizationSpec:
    """Observe minimum and maximum; torchao's own observers, with the smallest scale float32 can divide by."""
    low, high, dtype = code_range(scheme)
    per_channel = scheme.granularity == "per_channel"
    smallest = float(torch.finfo(torch.float32).tiny)
    observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    if per_channel:
        qscheme = torch.per_channel_symmetric if scheme.symmetric else torch.per_channel_affine
    else:
        qscheme = torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine
    return QuantizationSpec(
        dtype=dtype,
        quant_min=low,
        quant_max=high,
        qscheme=qscheme,
        ch_axis=0 if per_channel else None,
        observer_or_fake_quant_ctr=observer.with_args(eps=smallest if weight else 2.0**-24),
    )


class FlatqQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the planned ports of a traced graph.

    Args:
        decisions: of `flatq.plan.plan`.
        spec: (decision) -> how that port is quantized, or None to leave it alone.
    """

    def __init__(
        self, decisions: list[Decision], spec: Callable[[Decision, fx.Node], QuantizationSpec | None]
    ) -> None:
        super().__init__()
        self._decisions = {(d.node, d.port): d for d in decisions}
        self._spec = spec

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        shared: dict[tuple[fx.Node, Scheme | None], QuantizationSpec] = {}
        for layer in find_layers(model):
            node, name = layer.node, layer.candidate.node
            if layer.scores is not None:
                self._annotate_products(layer)
                continue
            specs: dict[str, QuantizationSpec | None] = {}
            for port in ("weight", "input", "output"):
                decision = self._decisions.get((name, port))
                specs[port] = self._spec(decision, node) if decision and decision.scheme else None
            inputs = {}
            if specs["input"] is not None:
                # Layers that read one tensor at one width (query, key, value) share one quantizer.
                source, *_ = node.all_input_nodes
                scheme = self._decisions[name, "input"].scheme
                inputs[source] = shared.setdefault((source, scheme), specs["input"])
            if specs["weight"] is not None:
                inputs[node.all_input_nodes[1]] = specs["weight"]
            if inputs or specs["output"] is not None:
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=specs["output"], _annotated=True
                )
        return model

    def _annotate_products(self, layer: Layer) -> None:
        """The factors of both products of an attention; what they yield is read in float by its softmax."""
        maps: dict[fx.Node, dict[fx.Node, QuantizationSpec]] = {}
        for port in ATTENTION_PORTS:
            operator, index = layer.reader(port)
            decision = self._decisions.get((layer.candidate.node, port))
            spec = self._spec(decision, operator) if decision and decision.scheme else None
            if spec is not None:
                factor = operator.args[index]
                assert isinstance(factor, fx.Node)
                maps.setdefault(operator, {})[factor] = spec
        for operator, inputs in maps.items():
            operator.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=inputs, _annotated=True
            )

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: the plan was made from the same graph."""
