"""How the timesteps of a batch are drawn, and what that weighs. The generator is the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["LossSecondMoment", "Uniform"]

_HISTORY = 10
_UNIFORM_FRACTION = 0.001


class Uniform:
    """Each timestep with the same probability, weight 1.

    A loss times its weight has the mean that uniform timesteps would give it, here and in subclasses.

    Attributes:
        needs_losses: whether `update` has to see every step's losses, for which the host waits.
    """

    needs_losses = False

    def __init__(self, train_steps: int) -> None:
        self._steps = train_steps

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """t int64 [count] in [0, T), and their weights, float32 [count]."""
        return torch.randint(self._steps, (count,), generator=generator), torch.ones(count)

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        """Takes in the losses of a whole joint batch, [N] each, in its order; at unperturbed weights."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class LossSecondMoment(Uniform):
    """Probabilities in proportion to the root mean square of a timestep's last losses (IDDPM section 3.3).

    As guided-diffusion: 10 losses for each timestep, a fraction of 0.001 of uniform timesteps, and uniform
    altogether until every timestep has its 10. The timesteps depend on the losses, so at one seed two methods
    see different ones.
    """

    needs_losses = True

    def __init__(self, train_steps: int) -> None:
        super().__init__(train_steps)
        self._losses = np.zeros((train_steps, _HISTORY))
        self._counts = np.zeros(train_steps, dtype=np.int64)

    def probabilities(self) -> torch.Tensor:
        """float64 [T], of sum 1."""
        steps = len(self._counts)
        if (self._counts < _HISTORY).any():
            return torch.full((steps,), 1 / steps, dtype=torch.float64)
        rms = np.sqrt(np.square(self._losses).mean(1))
        mixed = rms / rms.sum() * (1 - _UNIFORM_FRACTION) + _UNIFORM_FRACTION / steps
        return torch.from_numpy(mixed)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True, generator=generator)
        return t, (1 / (len(p) * p[t])).float()

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if self._counts[step] == _HISTORY:
                self._losses[step] = np.roll(self._losses[step], -1)
                self._counts[step] -= 1
            self._losses[step, self._counts[step]] = loss
            self._counts[step] += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": torch.from_numpy(self._losses.copy()),
            "counts": torch.from_numpy(self._counts.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses[:] = state["losses"].numpy()
        self._counts[:] = state["counts"].numpy()
