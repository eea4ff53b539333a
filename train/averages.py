"""Running averages of a model's weights. What the weights do in between is the loop's work."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Ema"]


class Ema:
    """Exponential moving average with a warm-up, started at the model's weights.

    Update n = 1, 2, ... is `average = d * average + (1 - d) * w` with `d = min(decay, (1 + n) / (10 + n))`,
    so that the random initial weights are soon forgotten. Values that are not floating point are copied.

    Args:
        model: whose weights are averaged. Call `update` after the optimizer's step, at unperturbed weights.
        decay: the d that is reached in the end, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._updates = 0
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - decay)
            else:
                self._average[name].copy_(value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the average, name -> tensor, as the model's own state dict."""
        return {name: value.clone() for name, value in self._average.items()}
