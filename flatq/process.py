"""The diffusion process: parameterisation, learned variance and posterior, for numpy and torch arrays alike.

Conventions are guided-diffusion's (`gaussian_diffusion.py`), from which nothing is copied; its recorded
trajectories are the tests' oracle. Betas and timesteps come from `flatq.schedule`. Symbols follow

- Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM),
- Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (IDDPM),
- Salimans, Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models" (v-prediction).

Coefficients are float64 and are cast to the dtype of x before they multiply it (float32 in use, float64 in
tests). guided-diffusion's DDIM step alone computes sigma in float32, which moves x by up to 6e-6 at 20 steps.

No networks, no random numbers (`flatq.noise`), no loop over steps (`flatq.samplers`), and no torch unless it
is given tensors. Values that are not finite pass through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatq.errors import ModelError
from flatq.schedule import Schedule, Spacing, beta_schedule, spaced_timesteps

__all__ = ["Array", "Prediction", "Process", "ProcessConfig"]

Array: TypeAlias = Any
"""A numpy array or a torch tensor; those of one call are of one kind, and on one device."""

Index: TypeAlias = Any
"""One int, or an integer array [n] with one index for each image, of the kind of the images."""


class ProcessConfig(BaseModel):
    """What a network was trained for. Stored in checkpoints and manifests; unknown keys are refused.

    Args:
        schedule: the training betas, see `beta_schedule`; "table": the `betas` given.
        train_steps: T, the number of training timesteps.
        beta_ends: first and last beta, see `beta_schedule`.
        betas: all T of them, for the schedule "table" only.
        prediction: what the first C channels of the network's output mean: the noise, x_0 ("sample"), or
            v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x_0.
        variance: of the ancestral update: "fixed_large" (sigma_i**2 = beta_i; guided-diffusion's
            learn_sigma=False), "fixed_small" (beta-tilde_i) or "learned_range" (C further channels
            interpolate the log variance; learn_sigma=True).
        clip_range: pred_x0 is limited to [-clip_range, clip_range]; None leaves it as it is.
        spacing, steps_offset: which timesteps a sampler keeps, see `spaced_timesteps`.

    Raises:
        pydantic.ValidationError: an unknown key or value; a reader of files turns it into its own error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Schedule | Literal["table"]
    train_steps: int = Field(default=1000, ge=1)
    beta_ends: tuple[float, float] | None = None
    betas: tuple[float, ...] | None = None
    prediction: Literal["epsilon", "v", "sample"] = "epsilon"
    variance: Literal["fixed_large", "fixed_small", "learned_range"] = "fixed_large"
    clip_range: float | None = Field(default=1.0, gt=0)
    spacing: Spacing = "respaced"
    steps_offset: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _table_is_whole(self) -> Self:
        if (self.schedule == "table") != (self.betas is not None):
            raise ValueError('betas are given with the schedule "table", and only with it')
        if self.betas is not None and len(self.betas) != self.train_steps:
            raise ValueError(f"{len(self.betas)} betas for {self.train_steps} training steps")
        if self.betas is not None and not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("betas lie in (0, 1)")
        return self

    def training_betas(self) -> npt.NDArray[np.float64]:
        """The betas of all training timesteps, float64 [train_steps].

        Raises:
            UsageError: as `beta_schedule`.
        """
        if self.schedule == "table":
            return np.array(self.betas, dtype=np.float64)
        return beta_schedule(self.schedule, self.train_steps, self.beta_ends)

    def output_channels(self, image_channels: int) -> int:
        """Channels that the network gives for images of C: C, or 2C with a learned variance."""
        return 2 * image_channels if self.variance == "learned_range" else image_channels


class Prediction(NamedTuple):
    """What a network's output says about x_i, in the dtype of x.

    Attributes:
        x0: the predicted image, the shape of x; clipped if the process clips.
        log_variance: log sigma_i**2 of p(x_{i-1} | x_i), broadcasts to the shape of x.
    """

    x0: Array
    log_variance: Array

    @property
    def sigma(self) -> Array:
        """The standard deviation of p(x_{i-1} | x_i)."""
        half = 0.5 * self.log_variance
        return np.exp(half) if isinstance(half, np.ndarray) else half.exp()


@dataclass(frozen=True, eq=False)
class Process:
    """A respaced diffusion process; build it by `Process.from_config`.

    Everywhere, i is the index into the kept timesteps: i = 0 is the last step that sampling takes, and
    `timesteps[i]` is what the network is given. All tables are read-only, [steps].

    Attributes:
        config: the process that the network was trained for.
        timesteps: int64, ascending, in [0, train_steps).
        betas: float64, in (0, 1); those of the respaced process (IDDPM eq. 19).
    """

    config: ProcessConfig
    timesteps: npt.NDArray[np.int64]
    betas: npt.NDArray[np.float64]
    _tensors: dict[tuple[str, Any], Array] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_config(cls, config: ProcessConfig, steps: int | str | None = None) -> Self:
        """The process that keeps the timesteps of `spaced_timesteps`, by the configuration's spacing.

        Raises:
            UsageError: steps that cannot be had, or a schedule that does not exist at this train_steps.
        """
        timesteps = spaced_timesteps(config.train_steps, steps, config.spacing, config.steps_offset)
        timesteps.flags.writeable = False
        kept = np.cumprod(1.0 - config.training_betas())[timesteps]
        return cls(config, timesteps, _frozen(1 - kept / np.append(1.0, kept[:-1])))

    @property
    def steps(self) -> int:
        """The number of kept timesteps, 1..train_steps."""
        return len(self.timesteps)

    @cached_property
    def alphas_cumprod(self) -> npt.NDArray[np.float64]:
        """alpha-bar_i (DDPM eq. 4): equal to the training process's at the kept timesteps."""
        alphas = 1.0 - self.betas
        return _frozen(np.cumprod(alphas, dtype=np.float64))

    @cached_property
    def alphas_cumprod_prev(self) -> npt.NDArray[np.float64]:
        """alpha-bar_{i-1}, with 1 before the first."""
        return _frozen(np.append(1.0, self.alphas_cumprod[:-1]))

    @cached_property
    def posterior_variance(self) -> npt.NDArray[np.float64]:
        """beta-tilde_i, the variance of q(x_{i-1} | x_i, x_0) (DDPM eq. 7); 0 at i = 0."""
        return _frozen(self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod))

    @cached_property
    def posterior_mean_coef1(self) -> npt.NDArray[np.float64]:
        """The factor of x_0 in the mean of q(x_{i-1} | x_i, x_0) (DDPM eq. 7)."""
        return _frozen(self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod))

    @cached_property
    def posterior_mean_coef2(self) -> npt.NDArray[np.float64]:
        """The factor of x_i in the mean of q(x_{i-1} | x_i, x_0) (DDPM eq. 7)."""
        return _frozen((1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod))

    @cached_property
    def log_betas(self) -> npt.NDArray[np.float64]:
        """log beta_i."""
        return _frozen(np.log(self.betas))

    @cached_property
    def posterior_log_variance_clipped(self) -> npt.NDArray[np.float64]:
        """log beta-tilde_i; at i = 0, where that is -inf, the one of i = 1 (log beta_0 with a single step).

        No update uses the value at i = 0, as no noise is added there.
        """
        first = self.posterior_variance[1] if self.steps > 1 else self.betas[0]
        return _frozen(np.log(np.append(first, self.posterior_variance[1:])))

    @cached_property
    def fixed_large_log_variance(self) -> npt.NDArray[np.float64]:
        """log beta_i, at i = 0 as in `posterior_log_variance_clipped` (guided-diffusion's FIXED_LARGE)."""
        return _frozen(np.append(self.posterior_log_variance_clipped[0], self.log_betas[1:]))

    def add_noise(self, x0: Array, noise: Array, i: Index) -> Array:
        """A sample of q(x_i | x_0) (DDPM eq. 4): sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise.

        Args:
            x0: float32 or float64 [n, C, H, W], in [-1, 1].
            noise: the same shape and dtype, standard normal.
            i: one index, or an integer array [n] with one per image, each in [0, steps).
        """
        kept = self.at("alphas_cumprod", i, x0)
        return _root(kept, x0) * x0 + _root(1 - kept, x0) * noise

    def predict(self, model_out: Array, x: Array, i: Index, clip: bool = True) -> Prediction:
        """What the network's output says about x_i.

        Args:
            model_out: float [n, output_channels(C), H, W]; cast to the dtype of x.
            x: float32 or float64 [n, C, H, W].
            i: one index, or an integer array [n], each in [0, steps).
            clip: False leaves x0 as it is even where the process has a clip_range.

        Returns:
            log_variance is log beta_i, log beta-tilde_i, or for "learned_range" IDDPM eq. 15 with
            v = (output + 1) / 2.

        Raises:
            ModelError: model_out of a wrong shape.
        """
        channels = x.shape[1]
        expected = (x.shape[0], self.config.output_channels(channels), *x.shape[2:])
        if tuple(model_out.shape) != expected:
            raise ModelError(
                "the model's output does not fit its process",
                expected=f"{list(expected)}, for images of {channels} channels and variance "
                f"{self.config.variance}",
                got=str(list(model_out.shape)),
                next_step="check the variance setting of the checkpoint's process: learned_range has twice "
                "the image's channels",
            )
        model_out = _cast(model_out, x)
        x0 = self._x0_from_output(model_out[:, :channels], x, i)
        if clip and self.config.clip_range is not None:
            x0 = x0.clip(-self.config.clip_range, self.config.clip_range)
        if self.config.variance != "learned_range":
            small = self.config.variance == "fixed_small"
            name = "posterior_log_variance_clipped" if small else "fixed_large_log_variance"
            return Prediction(x0, _cast(self.at(name, i, x), x))
        v = (model_out[:, channels:] + 1) / 2
        large, small_log = (
            _cast(self.at(name, i, x), x) for name in ("log_betas", "posterior_log_variance_clipped")
        )
        return Prediction(x0, v * large + (1 - v) * small_log)

    def epsilon(self, x0: Array, x: Array, i: Index) -> Array:
        """The noise that leads from x_0 to x_i (DDPM eq. 4); of a clipped x_0, not the predicted one."""
        kept = self.at("alphas_cumprod", i, x)
        return (_root(1 / kept, x) * x - x0) / _root(1 / kept - 1, x)

    def posterior_mean(self, x0: Array, x: Array, i: Index) -> Array:
        """The mean of q(x_{i-1} | x_i, x_0) (DDPM eq. 7)."""
        coef1, coef2 = (
            _cast(self.at(name, i, x), x) for name in ("posterior_mean_coef1", "posterior_mean_coef2")
        )
        return coef1 * x0 + coef2 * x

    def _x0_from_output(self, out: Array, x: Array, i: Index) -> Array:
        """x_0 before clipping: the one place that knows what the output means (`config.prediction`)."""
        if self.config.prediction == "sample":
            return out
        kept = self.at("alphas_cumprod", i, x)
        if self.config.prediction == "v":  # Salimans, Ho 2022, appendix D
            return _root(kept, x) * x - _root(1 - kept, x) * out
        return _root(1 / kept, x) * x - _root(1 / kept - 1, x) * out  # DDPM eq. 4 solved for x_0

    def at(self, table: str, i: Index, x: Array) -> Array:
        """The table of this name at i, float64 [n or 1, 1, 1, 1], of the kind and on the device of x."""
        values = getattr(self, table)
        if not isinstance(x, np.ndarray):
            key = (table, x.device)
            if key not in self._tensors:  # copied to a GPU once, so that a step waits for none
                import torch

                self._tensors[key] = torch.from_numpy(values.copy()).to(x.device)
            values = self._tensors[key]
        return values[i].reshape(-1, 1, 1, 1)


def _frozen(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    array.flags.writeable = False
    return array


def _root(values: Array, x: Array) -> Array:
    """The square root in float64, then in the dtype of x."""
    return _cast(values**0.5, x)


def _cast(values: Array, x: Array) -> Array:
    return values.astype(x.dtype, copy=False) if isinstance(x, np.ndarray) else values.to(x.dtype)
