"""Running averages of a model's weights. What the weights do in between is the loop's work.

All of them take the model's weights as they stand: call them after the optimizer's step, at unperturbed
weights. The model's tensors have to stay the same objects, changed in place.
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
    in the warm-up, so that the random initial weights are soon forgotten, and `d = decay` without. Values
    that are not floating point are copied.

    Args:
        model: whose weights are averaged.
        decay: the d that is reached in the end, in [0, 1).
        warmup: whether d rises to it.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self._model = model
        self._decay = decay
        self._warmup = warmup
        self._updates = 0
        state = model.state_dict()  # shares its memory with the model
        self._average = {name: value.detach().clone() for name, value in state.items()}
        floating = [name for name, value in state.items() if value.is_floating_point()]
        self._averages = [self._average[name] for name in floating]
        self._weights = [state[name].detach() for name in floating]
        self._others = [name for name in state if name not in set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights."""
        self._updates += 1
        n = self._updates
        decay = min(self._decay, (1 + n) / (10 + n)) if self._warmup else self._decay
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        if self._others:
            state = self._model.state_dict()
            for name in self._others:
                self._average[name].copy_(state[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """The average becomes the model's weights (Switch EMA); the average itself goes on as it was."""
        torch._foreach_copy_(self._weights, self._averages)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the average, name -> tensor, as the model's own state dict."""
        return {name: value.clone() for name, value in self._average.items()}

    def view(self) -> Mapping[str, torch.Tensor]:
        """The average itself, as `state_dict` names it."""
        return self._average

    def resume_state(self) -> dict[str, Any]:
        """What `load_resume_state` needs to go on; shares the average's memory."""
        return {"updates": self._updates, "average": dict(self._average)}

    def load_resume_state(self, state: Mapping[str, Any]) -> None:
        self._updates = int(state["updates"])
        _copy_into(self._average, state["average"])


class Swa:
    """Equal-weight mean of the weights it is shown (Izmailov et al. 2018), as float64 running mean.

    So the mean is exact to the rounding of the model's dtype, however many weights went in.

    Args:
        model: whose weights are averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.count = 0
        self._mean: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights."""
        self.count += 1
        for name, value in self._model.state_dict().items():
            if not value.is_floating_point() or self.count == 1:
                dtype = torch.float64 if value.is_floating_point() else value.dtype
                self._mean[name] = value.to(dtype, copy=True)
            else:
                self._mean[name].lerp_(value.double(), 1 / self.count)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the mean, name -> tensor, in the model's dtypes; empty before the first update."""
        dtypes = {name: value.dtype for name, value in self._model.state_dict().items()}
        return {name: value.to(dtypes[name], copy=True) for name, value in self._mean.items()}

    def resume_state(self) -> dict[str, Any]:
        """What `load_resume_state` needs to go on; shares the mean's memory."""
        return {"count": self.count, "mean": dict(self._mean)}

    def load_resume_state(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        devices = {name: value.device for name, value in self._model.state_dict().items()}
        self._mean = {name: value.to(devices[name], copy=True) for name, value in state["mean"].items()}


class Averages:
    """All averages of a run, each at its own steps.

    Args:
        model: whose weights are averaged.
        config: names them.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self._emas = {
            ("ema" if index == 0 else f"ema_{decay}"): Ema(model, decay, warmup=config.ema_warmup)
            for index, decay in enumerate(config.ema_decays)
        }
        self._swa = Swa(model)
        self._swa_start, self._swa_period = config.first_swa_step, config.swa_period
        self._switch = config.switch_ema

    @property
    def swa_count(self) -> int:
        """How many weights the SWA mean holds."""
        return self._swa.count

    def update(self, step: int, *, pass_ended: bool) -> None:
        """After the optimizer's step number `step`, from 1.

        Args:
            pass_ended: a pass over the images ended with this step.
        """
        for ema in self._emas.values():
            ema.update()
        start = self._swa_start
        if start and step >= start and (step - start) % self._swa_period == 0:
            self._swa.update()
        if pass_ended if self._switch == "epoch" else self._switch and step % self._switch == 0:
            self._emas["ema"].copy_to_model()

    def view(self, name: str) -> Mapping[str, torch.Tensor] | None:
        """The EMA of this name as it stands, sharing its memory; None where there is none."""
        return self._emas[name].view() if name in self._emas else None

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """Copies by the names that a checkpoint has for them; SWA only once it holds weights."""
        found = {name: ema.state_dict() for name, ema in self._emas.items()}
        if self._swa.count:
            found["swa"] = self._swa.state_dict()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "emas": {name: ema.resume_state() for name, ema in self._emas.items()},
            "swa": self._swa.resume_state(),
            "swa_start": self._swa_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The start of SWA comes along: a share of `steps` stays what it was when the steps are raised."""
        for name, ema in self._emas.items():
            ema.load_resume_state(state["emas"][name])
        self._swa.load_resume_state(state["swa"])
        self._swa_start = int(state["swa_start"])


def _copy_into(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])
