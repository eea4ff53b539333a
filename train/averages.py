"""Running averages of a model's weights. What the weights do in between is the loop's work.

All of them take the model's weights as they stand: call them after the optimizer's step, at unperturbed
weights. The model's tensors are floating point and have to stay the same objects, changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flatq.train.config import TrainConfig

__all__ = ["Averages", "Ema", "Swa"]


class Ema:
    """Exponential moving average, started at the model's weights.

    Update n = 1, 2, ... is `average = d * average + (1 - d) * w`, with `d = min(decay, (1 + n) / (10 + n))`
    in the warm-up, so that the random initial weights are soon forgotten, and `d = decay` without.

    Args:
        model: whose weights are averaged.
        decay: the d that is reached in the end, in [0, 1).
        warmup: whether d rises to it.

    Attributes:
        average: name -> tensor, as in the model's state dict.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self._decay = decay
        self._warmup = warmup
        self._updates = 0
        self._weights = model.state_dict()  # shares its memory with the model
        self.average = {name: value.clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights."""
        self._updates += 1
        n = self._updates
        decay = min(self._decay, (1 + n) / (10 + n)) if self._warmup else self._decay
        torch._foreach_lerp_(list(self.average.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """The average becomes the model's weights (Switch EMA); the average itself goes on as it was."""
        torch._foreach_copy_(list(self._weights.values()), list(self.average.values()))

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`; shares the average's memory."""
        return {"updates": self._updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = int(state["updates"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])


class Swa:
    """Equal-weight mean of the weights at each update (Izmailov et al. 2018), as float64 running mean.

    So the mean is exact to the rounding of the model's dtype, however many weights went in.

    Args:
        model: whose weights are averaged.

    Attributes:
        count: how many weights the mean holds.
    """

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._weights = model.state_dict()
        self._mean: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights."""
        self.count += 1
        for name, value in self._weights.items():
            mean = self._mean.setdefault(name, torch.zeros_like(value, dtype=torch.float64))
            mean.lerp_(value.double(), 1 / self.count)

    def average(self) -> dict[str, torch.Tensor]:
        """A copy of the mean, name -> tensor, in the model's dtypes; empty before the first update."""
        return {name: value.to(self._weights[name].dtype, copy=True) for name, value in self._mean.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`; shares the mean's memory."""
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        devices = {name: value.device for name, value in self._weights.items()}
        self._mean = {name: value.to(devices[name], copy=True) for name, value in state["mean"].items()}


class Averages:
    """All averages of a run, each at its own steps.

    Args:
        model: whose weights are averaged.
        config: names them.

    Attributes:
        emas: the moving averages by the names that a checkpoint has for them. swa: the equal-weight mean.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.emas = {
            ("ema" if index == 0 else f"ema_{decay}"): Ema(model, decay, warmup=config.ema_warmup)
            for index, decay in enumerate(config.ema_decays)
        }
        self.swa = Swa(model)
        self._swa_start, self._swa_period = config.first_swa_step, config.swa_period
        self._switch = config.switch_ema

    def update(self, step: int, *, epoch_ended: bool) -> None:
        """After the optimizer's step number `step`, from 1.

        Args:
            epoch_ended: an epoch ended with this step.
        """
        for ema in self.emas.values():
            ema.update()
        start = self._swa_start
        if start and step >= start and (step - start) % self._swa_period == 0:
            self.swa.update()
        if epoch_ended if self._switch == "epoch" else self._switch and step % self._switch == 0:
            self.emas["ema"].copy_to_model()

    @property
    def ema(self) -> Mapping[str, torch.Tensor] | None:
        """The first EMA as it stands, sharing its memory; None where there is none."""
        return self.emas["ema"].average if self.emas else None

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """Copies by the names that a checkpoint has for them; SWA only once it holds weights."""
        found = {
            name: {key: value.clone() for key, value in ema.average.items()}
            for name, ema in self.emas.items()
        }
        return found | ({"swa": self.swa.average()} if self.swa.count else {})

    def state_dict(self) -> dict[str, Any]:
        return {
            "emas": {name: ema.state_dict() for name, ema in self.emas.items()},
            "swa": self.swa.state_dict(),
            "swa_start": self._swa_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """SWA starts where it did: a fraction of `steps` stays that step when the steps are raised."""
        for name, ema in self.emas.items():
            ema.load_state_dict(state["emas"][name])
        self.swa.load_state_dict(state["swa"])
        self._swa_start = int(state["swa_start"])
