"""flatq's quantizer for torchao's PT2E: it annotates the planned layers, and torchao does the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from flatq.quantize.grid import QuantGrid
from flatq.quantize.pt2e import ObserverBase, QuantizationAnnotation, QuantizationSpec, Quantizer
from flatq.quantize.trace import find_layers
from flatq.recipe import ATTENTION_PORTS, Decision, Scheme

__all__ = ["FlatqQuantizer"]


class _FixedPerChannelObserver(ObserverBase):  # type: ignore[misc]
    """Observes nothing and returns the parameters of a given grid, per tensor or per channel.

    torchao passes the channel axis only to observers with PerChannel in their name.
    """

    def __init__(
        self,
        *,
        grid: QuantGrid,
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
        self._grid = grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self._grid.scale.reshape(-1)
        return scale, torch.full_like(scale, self._grid.zero_point, dtype=torch.int64)


def _fixed_spec(grid: QuantGrid) -> QuantizationSpec:
    per_channel = grid.scale.ndim == 1
    return QuantizationSpec(
        dtype=grid.dtype,
        quant_min=grid.low,
        quant_max=grid.high,
        qscheme=torch.per_channel_affine if per_channel else torch.per_tensor_affine,
        ch_axis=0 if per_channel else None,
        observer_or_fake_quant_ctr=_FixedPerChannelObserver.with_args(grid=grid),
    )


class FlatqQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the planned ports of a traced graph.

    Args:
        decisions: of `flatq.layer_decisions.decide_layers`.
        grid: (decision, operator) -> the grid of that port, or None to leave it alone.
    """

    def __init__(
        self, decisions: Iterable[Decision], grid: Callable[[Decision, fx.Node], QuantGrid | None]
    ) -> None:
        super().__init__()
        self._decisions = {(d.node, d.port): d for d in decisions if d.scheme is not None}
        self._grid = grid

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        shared: dict[tuple[fx.Node, Scheme | None], QuantizationSpec] = {}
        for layer in find_layers(model):
            annotations: dict[fx.Node, QuantizationAnnotation] = {}
            for port in ("weight", "input", "output", *ATTENTION_PORTS):
                decision = self._decisions.get((layer.candidate.node, port))
                if decision is None:
                    continue
                operator, source = layer.tensor(port)
                grid = self._grid(decision, operator)
                if grid is None:
                    continue
                annotation = annotations.setdefault(operator, QuantizationAnnotation(_annotated=True))
                if port == "output":
                    annotation.output_qspec = _fixed_spec(grid)
                else:
                    # Layers that read one tensor at one width (query, key, value) share one quantizer.
                    spec = shared.setdefault((source, decision.scheme), _fixed_spec(grid))
                    annotation.input_qspec_map[source] = spec
            for operator, annotation in annotations.items():
                operator.meta["quantization_annotation"] = annotation
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: the plan was made from the same graph."""
