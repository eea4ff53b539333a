"""flatq's quantizer for torchao's PT2E: it annotates the planned layers, and torchao does the rest.

Importing this defines the operators `torch.ops.quantized_decomposed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from flatq.library_logs import quiet_import
from flatq.quantize.grid import QuantGrid
from flatq.quantize.trace import find_layers
from flatq.recipe import Decision, Scheme

with quiet_import():
    from torchao.quantization.pt2e.observer import ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

__all__ = ["FlatqQuantizer", "convert_pt2e", "prepare_pt2e"]


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
        self._decisions = [d for d in decisions if d.scheme is not None]
        self._grid = grid

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        layers = {layer.candidate.node: layer for layer in find_layers(model)}
        shared: dict[tuple[fx.Node, Scheme | None], QuantizationSpec] = {}
        for decision in self._decisions:
            operator, source = layers[decision.node].tensor(decision.port)
            grid = self._grid(decision, operator)
            if grid is None:
                continue
            annotation = operator.meta.setdefault(
                "quantization_annotation", QuantizationAnnotation(_annotated=True)
            )
            if decision.port == "output":
                annotation.output_qspec = _fixed_spec(grid)
            else:
                # Layers that read one tensor at one width (query, key, value) share one quantizer.
                spec = shared.setdefault((source, decision.scheme), _fixed_spec(grid))
                annotation.input_qspec_map[source] = spec
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: the plan was made from the same graph."""
