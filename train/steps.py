"""Optimizer steps, and the state that they leave behind. When to evaluate, save or stop is the loop's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from flatq.errors import ModelError, UsageError
from flatq.network import Denoiser, build_network
from flatq.train.averages import Averages
from flatq.train.batches import Batch, Batches, read_images
from flatq.train.config import TrainConfig, model_config_for
from flatq.train.distributed import Workers
from flatq.train.gradients import backward, noise_gradients, norm_parameters, sam_gradients
from flatq.train.objective import Objective
from flatq.train.record import CURVE_EVERY, Curve, Scalars
from flatq.train.state import check_agreement
from flatq.train.streams import stream, stream_seed
from flatq.train.timesteps import LossSecondMoment, Uniform

__all__ = ["Steps", "zero_outputs"]


class Steps:
    """A network in training, with all that decides how it goes on.

    Args:
        config: the run.
        folder: of the run; TensorBoard's scalars go there.
        workers: the processes that share the batch.

    Attributes:
        step: optimizer steps done. passes: forward and backward passes done.
        saved_step: the last step that was saved, None where none was.
    """

    def __init__(self, config: TrainConfig, folder: Path, workers: Workers) -> None:
        if config.batch_size % workers.count:
            raise UsageError(
                "the processes do not divide the batch",
                expected=f"a batch size divisible by {workers.count}",
                got=str(config.batch_size),
                next_step="choose another --batch-size; it counts the images of all processes",
            )
        self.config, self.workers = config, workers
        self.images = read_images(config)
        labels = config.label_count(self.images.labels)
        self.model = model_config_for(config, self.images.shape, labels)
        torch.default_generator.manual_seed(stream_seed(config.seed, "weights"))
        network = build_network(self.model)
        if config.zero_init:
            zero_outputs(network)
        self.network = network.train().to(workers.device)
        dropout = stream_seed(config.seed, "dropout", workers.rank)
        torch.default_generator.manual_seed(dropout)
        if workers.device.type == "cuda":
            torch.cuda.manual_seed(dropout)
        self._wrapped = workers.wrap(self.network)
        self._called: Callable[..., torch.Tensor] = (
            torch.compile(self._wrapped) if config.compile else self._wrapped
        )
        self._unsynchronised = workers.unsynchronised(self._wrapped)
        self.parameters = list(self.network.parameters())
        self._sam_on = norm_parameters(self.network) if config.sam_on == "norm" else None
        self._weight_noise = stream(config.seed, "weight_noise", workers.rank, workers.device)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.averages = Averages(self.network.unet, config)
        self.objective = Objective(config.process)
        self.timesteps = (Uniform if config.timesteps == "uniform" else LossSecondMoment)(config.train_steps)
        self.batches = Batches(
            self.images.pixels,
            config,
            self.images.labels if config.labels else None,
            self.model.null_label,
        )
        self.curve = Curve()
        self.scalars = Scalars(folder, config.tensorboard and workers.main)
        self._unread: list[torch.Tensor] = []  # losses of the last steps, [1] each, [2] with SAM
        self.step = 0
        self.passes = 0
        self._began = time.monotonic()
        self.saved_step: int | None = None

    def advance(self) -> None:
        """One optimizer step."""
        config, step = self.config, self.step + 1
        joint = self.batches.draw(self.timesteps)
        batch = joint.part(self.workers.rank, self.workers.count, self.workers.device)
        per_image: list[torch.Tensor] = []
        means: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            losses = self._losses(batch)
            mean = (losses * batch.weight).mean()
            per_image.append(losses.detach())
            means.append(mean.detach())
            return mean

        if config.method == "sam" and (step - 1) % config.sam_every == 0:
            sam_gradients(
                self.parameters,
                closure,
                config.rho,
                only=self._sam_on,
                unsynchronised=self._unsynchronised,
            )
        elif config.method == "noise":
            noise_gradients(self.parameters, closure, config.sigma, self._weight_noise)
        else:
            backward(self.parameters, closure)
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(step)
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_grad)
        self.optimizer.step()
        self.averages.update(step, epoch_ended=self.batches.epoch_ended)
        self.step, self.passes = step, self.passes + len(means)
        self._unread.append(torch.stack(means))
        if self.timesteps.needs_losses:
            self.read_losses()
            self.timesteps.update(joint.t, self.workers.gather(per_image[0]).cpu())
        elif step % CURVE_EVERY == 0:
            self.read_losses()

    def read_losses(self) -> None:
        """Brings the losses of the steps since the last call to the curve. Every process has to take part.

        Raises:
            ModelError: one of them is not finite.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = iter(self.workers.mean(torch.cat(unread)).tolist())
        for step, losses in enumerate(unread, self.step - len(unread) + 1):
            found = list(islice(values, len(losses)))
            if not all(map(math.isfinite, found)):
                raise self.diverged(f"loss {found[0]}, at the perturbed weights {found[-1]}", step)
            point = self.curve.add(step, found[0], found[1] if len(found) > 1 else None)
            if point is not None:
                seen = point | {
                    "learning_rate": self.config.rate(step),
                    "images_per_second": self.step * self.config.batch_size / max(self.elapsed(), 1e-9),
                }
                self.scalars.add(step, {f"train/{n}": value for n, value in seen.items() if n != "step"})

    def _losses(self, batch: Batch) -> torch.Tensor:
        """float32 [N] at the present weights."""

        def called(*inputs: torch.Tensor) -> torch.Tensor:
            bf16 = self.config.precision == "bf16"
            with torch.autocast(self.workers.device.type, torch.bfloat16, enabled=bf16):
                return self._called(*inputs)

        return self.objective(called, batch.x0, batch.t, batch.noise, batch.shift, batch.label).total

    def elapsed(self) -> float:
        """Seconds in training, all sessions of the run."""
        return time.monotonic() - self._began

    def state(self) -> dict[str, Any]:
        """All that decides how the run goes on; shares its memory. Every process has to take part."""
        self.read_losses()
        device = self.workers.device
        rng = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "weight_noise": self._weight_noise.get_state(),
        }
        return {
            "config": self.config.model_dump(mode="json"),
            "data_digest": self.images.digest,
            "step": self.step,
            "passes": self.passes,
            "elapsed_s": self.elapsed(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict(),
            "timesteps": self.timesteps.state_dict(),
            "batches": self.batches.state_dict(),
            "curve": vars(self.curve),
            "rng": self.workers.gather_objects(rng),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken.

        Raises:
            UsageError: it is another run's.
        """
        check_agreement(state, self.config, self.images.digest, self.workers.count)
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        for part in ("averages", "timesteps", "batches"):
            getattr(self, part).load_state_dict(state[part])
        self.curve = Curve(**state["curve"])
        self.step, self.passes = int(state["step"]), int(state["passes"])
        self._began = time.monotonic() - float(state["elapsed_s"])
        self.saved_step = self.step or None
        rng = state["rng"][self.workers.rank]
        torch.set_rng_state(rng["cpu"])
        self._weight_noise.set_state(rng["weight_noise"])
        if self.workers.device.type == "cuda" and rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.workers.device)

    def diverged(self, got: str, step: int) -> ModelError:
        config = self.config
        saved = self.saved_step
        kept = "nothing was written" if saved is None else f"step {saved} is the last saved"
        others = {"sam": f" or rho ({config.rho:g})", "noise": f" or sigma ({config.sigma:g})"}
        return ModelError(
            f"the training diverged by step {step}; {kept}",
            expected="finite losses and weights",
            got=got,
            next_step=f"lower lr ({config.lr:g}){others.get(config.method, '')}",
        )


@torch.no_grad()
def zero_outputs(network: Denoiser) -> None:
    """Sets to zero what guided-diffusion starts at zero (`zero_module`).

    That is the last convolution of each residual block, the output of each attention, and the last
    convolution: so each block starts as its skip connection, and the network predicts zero.
    """
    for name, parameter in network.unet.named_parameters():
        if name.startswith("conv_out.") or ".conv2." in name or ".to_out.0." in name:
            parameter.zero_()
