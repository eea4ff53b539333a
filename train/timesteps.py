"""How the timesteps of a batch are drawn, and what that weighs. The generator is the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from flatq.errors import UsageError

__all__ = ["LossSecondMoment", "TimestepSampler", "Uniform", "timestep_sampler"]

_HISTORY = 10
_UNIFORM_SHARE = 0.001


class TimestepSampler(Protocol):
    """Draws timesteps. A loss times its weight has the mean that uniform timesteps would give it.

    Attributes:
        needs_losses: whether `update` has to see every step's losses, for which the host waits.
    """

    needs_losses: bool

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """t int64 [count] in [0, T), and their weights, float32 [count]."""
        ...

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        """Takes in the losses of a whole joint batch, [N] each, in its order; at unperturbed weights."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def timestep_sampler(name: str, train_steps: int) -> TimestepSampler:
    """The sampler of this name, "uniform" or "loss-second-moment", over [0, train_steps).

    Raises:
        UsageError: another name.
    """
    if name == "uniform":
        return Uniform(train_steps)
    if name == "loss-second-moment":
        return LossSecondMoment(train_steps)
    raise UsageError("the timesteps cannot be drawn so", expected="uniform or loss-second-moment", got=name)


class Uniform:
    """Each timestep with the same probability, weight 1."""

    needs_losses = False

    def __init__(self, train_steps: int) -> None:
        self._steps = train_steps

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(self._steps, (count,), generator=generator), torch.ones(count)

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class LossSecondMoment:
    """Probabilities in proportion to the root mean square of a timestep's last losses (IDDPM section 3.3).

    As guided-diffusion: 10 losses for each timestep, a share of 0.001 of uniform timesteps, and uniform
    altogether until every timestep has its 10. The timesteps depend on the losses, so at one seed two methods
    see different ones.
    """

    needs_losses = True

    def __init__(self, train_steps: int) -> None:
        self._losses = np.zeros((train_steps, _HISTORY))
        self._counts = np.zeros(train_steps, dtype=np.int64)

    def probabilities(self) -> torch.Tensor:
        """float64 [T], of sum 1."""
        steps = len(self._counts)
        if (self._counts < _HISTORY).any():
            return torch.full((steps,), 1 / steps, dtype=torch.float64)
        rms = np.sqrt(np.square(self._losses).mean(1))
        mixed = rms / rms.sum() * (1 - _UNIFORM_SHARE) + _UNIFORM_SHARE / steps
        return torch.from_numpy(mixed)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True, generator=generator)
        return t, (1 / (len(p) * p[t])).float()

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if self._counts[step] == _HISTORY:
                self._losses[step, :-1] = self._losses[step, 1:]
                self._losses[step, -1] = loss
            else:
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
