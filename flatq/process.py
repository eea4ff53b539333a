"""The diffusion process in numpy: parameterisation, learned variance, and the two updates.

Ported from guided-diffusion (`gaussian_diffusion.py`; MIT, (c) 2021 OpenAI); betas and timesteps come from
`flatq.schedule`. Symbols follow

- Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM),
- Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (IDDPM),
- Song, Meng, Ermon 2021, "Denoising Diffusion Implicit Models" (DDIM),
- Salimans, Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models" (v-prediction).

Coefficients are float64; they are cast to the dtype of x (float32 in use, float64 in oracles) where they meet
it, as in the original. Only its DDIM step works out sigma and its companions in float32, which moves x by up
to 6e-6 at 20 steps.

No networks, no random numbers (`flatq.noise`), no loop over steps (`flatq.sampler`), no torch. Values that
are not finite pass through; to find them is the sampler's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatq.errors import DataError, ModelError, UsageError
from flatq.schedule import Schedule, Spacing, as_index, beta_schedule, spaced_timesteps

__all__ = ["FloatArray", "Process", "ProcessConfig"]

FloatArray = npt.NDArray[np.floating[Any]]
_Scalar = TypeVar("_Scalar", bound=np.generic)
Index = int | npt.NDArray[np.integer[Any]]


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


@dataclass(frozen=True, eq=False)
class Process:
    """A respaced diffusion process; build it by `Process.from_config`.

    Everywhere, i is the index into the kept timesteps: i = 0 is the last step that sampling takes, and
    `timesteps[i]` is what the network is given. All arrays are read-only, [steps].

    Attributes:
        config: the process that the network was trained for.
        timesteps: int64, ascending, in [0, train_steps).
        betas: float64, in (0, 1); those of the respaced process (IDDPM eq. 19).
    """

    config: ProcessConfig
    timesteps: npt.NDArray[np.int64]
    betas: npt.NDArray[np.float64]

    @classmethod
    def from_config(cls, config: ProcessConfig, steps: int | str | None = None) -> Self:
        """The process that keeps the timesteps of `spaced_timesteps`, by the configuration's spacing.

        Raises:
            UsageError: steps that cannot be had, or a schedule that does not exist at this train_steps.
        """
        timesteps = spaced_timesteps(config.train_steps, steps, config.spacing, config.steps_offset)
        kept = np.cumprod(1.0 - config.training_betas())[timesteps]
        betas: npt.NDArray[np.float64] = 1 - kept / np.append(1.0, kept[:-1])
        return cls(config, _frozen(timesteps), _frozen(betas))

    @property
    def steps(self) -> int:
        """The number of sampling steps, 1..train_steps."""
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
    def _log_first(self) -> float:
        """The log variance that stands in at i = 0, where beta-tilde is 0.

        That of i = 1; log beta_0 where there is one step only (the original fails there). No update uses
        it, as no noise is added at i = 0; it does reach the log_variance of `predict`.
        """
        return math.log(self.posterior_variance[1] if self.steps > 1 else self.betas[0])

    @cached_property
    def posterior_log_variance_clipped(self) -> npt.NDArray[np.float64]:
        """log beta-tilde_i, at i = 0 that of i = 1 (log beta_0 where there is one step only)."""
        return _frozen(np.append(self._log_first, np.log(self.posterior_variance[1:])))

    @cached_property
    def fixed_large_log_variance(self) -> npt.NDArray[np.float64]:
        """log beta_i, at i = 0 as in `posterior_log_variance_clipped` (guided-diffusion's FIXED_LARGE)."""
        return _frozen(np.append(self._log_first, np.log(self.betas[1:])))

    def output_channels(self, image_channels: int) -> int:
        """See `ProcessConfig.output_channels`."""
        return self.config.output_channels(image_channels)

    def add_noise(self, x0: FloatArray, noise: FloatArray, i: Index) -> FloatArray:
        """A sample of q(x_i | x_0) (DDPM eq. 4): sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise.

        Args:
            x0: float32 or float64 [n, C, H, W], in [-1, 1].
            noise: the same shape, standard normal.
            i: one index, or an integer array [n] with one per image, each in [0, steps).

        Returns:
            the dtype and shape of x0.

        Raises:
            DataError: x0 or noise of a wrong shape or dtype.
            UsageError: i out of range, or not one per image.
        """
        _check_images("x0", x0)
        noise = _like(noise, x0)
        i = self._check_index(i, len(x0))
        return (
            _coef(np.sqrt(self.alphas_cumprod), i, x0) * x0
            + _coef(np.sqrt(1 - self.alphas_cumprod), i, x0) * noise
        )

    def predict(
        self, model_out: FloatArray, x: FloatArray, i: Index, clip: bool = True
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What the network's output says about x_i.

        Args:
            model_out: float [n, output_channels(C), H, W]; cast to the dtype of x.
            x: float32 or float64 [n, C, H, W].
            i: one index, or an integer array [n], each in [0, steps).
            clip: False leaves pred_x0 as it is even where the process has a clip_range.

        Returns:
            pred_x0, eps and log_variance, each of the shape and dtype of x. eps is the noise that leads from
            pred_x0 to x (DDPM eq. 4), so it follows the clipped pred_x0. log_variance is log sigma_i**2 of
            p(x_{i-1} | x_i): log beta_i, log beta-tilde_i, or for "learned_range" IDDPM eq. 15 with
            v = (output + 1) / 2.

        Raises:
            ModelError: model_out of a wrong shape or not floating.
            DataError: x of a wrong shape or dtype.
            UsageError: i out of range, or not one per image.
        """
        _check_images("x", x)
        i = self._check_index(i, len(x))
        out, learned = self._split(model_out, x)
        x0 = self._x0_from_output(out, x, i)
        if clip and self.config.clip_range is not None:
            x0 = np.clip(x0, -self.config.clip_range, self.config.clip_range)
        eps = (_coef(np.sqrt(1 / self.alphas_cumprod), i, x) * x - x0) / _coef(
            np.sqrt(1 / self.alphas_cumprod - 1), i, x
        )
        if learned is None:
            small = self.config.variance == "fixed_small"
            fixed = self.posterior_log_variance_clipped if small else self.fixed_large_log_variance
            log_variance = np.broadcast_to(_coef(fixed, i, x), x.shape).copy()
        else:
            v = (learned + 1) / 2
            log_variance = v * _coef(np.log(self.betas), i, x) + (1 - v) * _coef(
                self.posterior_log_variance_clipped, i, x
            )
        return x0, eps, log_variance

    def ancestral_step(
        self, x: FloatArray, model_out: FloatArray, i: int, noise: FloatArray | None, clip: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """One step of ancestral sampling, from p(x_{i-1} | x_i) (DDPM algorithm 2, by way of eq. 7).

        Args:
            x: x_i, float32 or float64 [n, C, H, W].
            model_out: float [n, output_channels(C), H, W].
            i: in [0, steps).
            noise: standard normal, the shape of x; None exactly at i = 0, where none is added.
            clip: False leaves pred_x0 as it is even where the process has a clip_range.

        Returns:
            x_{i-1} and pred_x0, of the shape and dtype of x.

        Raises:
            ModelError, DataError: as `predict`; DataError also for noise of a wrong shape.
            UsageError: i out of range; noise given where it is not used, or missing where it is.
        """
        i = as_index("The step index", i)
        pred_x0, _, log_variance = self.predict(model_out, x, i, clip)
        mean = _coef(self.posterior_mean_coef1, i, x) * pred_x0 + _coef(self.posterior_mean_coef2, i, x) * x
        noise = _check_noise(noise, x, needed=i > 0, rule="i > 0")
        if noise is not None:
            mean = mean + np.exp(0.5 * log_variance) * noise
        return mean, pred_x0

    def ddim_step(
        self,
        x: FloatArray,
        model_out: FloatArray,
        i: int,
        eta: float = 0.0,
        noise: FloatArray | None = None,
        clip: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """One step of DDIM (eq. 12, sigma of eq. 16), with eps recomputed from the clipped pred_x0.

        Args:
            x: x_i, float32 or float64 [n, C, H, W].
            model_out: float [n, output_channels(C), H, W]; a learned variance is not used.
            i: in [0, steps).
            eta: in [0, 1]; 0 is deterministic, 1 has the variance beta-tilde_i.
            noise: standard normal, the shape of x; given exactly where it is used: i > 0 and eta > 0.
            clip: False leaves pred_x0 as it is even where the process has a clip_range.

        Returns:
            x_{i-1} and pred_x0, of the shape and dtype of x.

        Raises:
            ModelError, DataError: as `predict`; DataError also for noise of a wrong shape.
            UsageError: i or eta out of range; noise given where it is not used, or missing where it is.
        """
        i = as_index("The step index", i)
        if not 0 <= eta <= 1:
            raise UsageError("eta is out of range.", expected="a number in [0, 1]", got=repr(eta))
        pred_x0, eps, _ = self.predict(model_out, x, i, clip)
        alpha_bar, alpha_bar_prev = float(self.alphas_cumprod[i]), float(self.alphas_cumprod_prev[i])
        sigma = (
            eta
            * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))
            * math.sqrt(1 - alpha_bar / alpha_bar_prev)
        )
        direction = math.sqrt(max(1 - alpha_bar_prev - sigma**2, 0.0))  # Python floats keep the dtype of x
        x_prev = math.sqrt(alpha_bar_prev) * pred_x0 + direction * eps
        noise = _check_noise(noise, x, needed=i > 0 and eta > 0, rule="i > 0 and eta > 0")
        if noise is not None:
            x_prev = x_prev + sigma * noise
        return x_prev, pred_x0

    def _x0_from_output(self, out: FloatArray, x: FloatArray, i: Index) -> FloatArray:
        """pred_x0 before clipping: the one place that knows what the output means (`config.prediction`)."""
        if self.config.prediction == "sample":
            return out
        if self.config.prediction == "v":  # Salimans, Ho 2022, appendix D
            return (
                _coef(np.sqrt(self.alphas_cumprod), i, x) * x
                - _coef(np.sqrt(1 - self.alphas_cumprod), i, x) * out
            )
        # "epsilon", DDPM eq. 4 solved for x_0
        return (
            _coef(np.sqrt(1 / self.alphas_cumprod), i, x) * x
            - _coef(np.sqrt(1 / self.alphas_cumprod - 1), i, x) * out
        )

    def _split(self, model_out: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """The output proper and, for "learned_range", the variance channels, in the dtype of x."""
        n, channels, *sides = x.shape
        expected = (n, self.output_channels(channels), *sides)
        if model_out.shape != expected or not np.issubdtype(model_out.dtype, np.floating):
            raise ModelError(
                "The network's output does not fit the diffusion process.",
                expected=f"float {list(expected)}, for images of {channels} channels and variance "
                f"{self.config.variance}",
                got=f"{model_out.dtype} {list(model_out.shape)}",
                next_step="check `variance` of the process: learned_range has twice the image's channels",
            )
        out = model_out.astype(x.dtype, copy=False)
        return out[:, :channels], out[:, channels:] if self.config.variance == "learned_range" else None

    def _check_index(self, i: Index, n: int) -> Index:
        if not isinstance(i, np.ndarray):
            i = as_index("The step index", i)
            low = high = i
        else:
            if i.shape != (n,) or not np.issubdtype(i.dtype, np.integer):
                raise UsageError(
                    "The step indices do not fit the batch.",
                    expected=f"one integer, or an integer array [{n}]",
                    got=f"{i.dtype} {list(i.shape)}",
                )
            if n == 0:
                return i
            low, high = int(i.min()), int(i.max())
        if low < 0 or high >= self.steps:
            raise UsageError(
                "A step index is out of range.",
                expected=f"0 to {self.steps - 1} (the index among the kept timesteps, not the timestep)",
                got=str(low if low < 0 else high),
            )
        return i


def _frozen(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    array.flags.writeable = False
    return array


def _coef(table: npt.NDArray[np.float64], i: Index, x: FloatArray) -> FloatArray:
    """table[i] in the dtype of x, shaped [1 or n, 1, 1, 1] (guided-diffusion's `_extract_into_tensor`)."""
    picked: FloatArray = table[np.atleast_1d(i)].astype(x.dtype)
    return picked.reshape(-1, 1, 1, 1)


def _check_images(name: str, x: FloatArray) -> None:
    if x.ndim != 4 or x.dtype not in (np.float32, np.float64):
        raise DataError(
            f"{name} is no batch of images.",
            expected="float32 or float64 [n, C, H, W]",
            got=f"{x.dtype} {list(x.shape)}",
        )


def _like(noise: FloatArray, x: FloatArray) -> FloatArray:
    if noise.shape != x.shape or not np.issubdtype(noise.dtype, np.floating):
        raise DataError(
            "The noise does not fit the images.",
            expected=f"float {list(x.shape)}",
            got=f"{noise.dtype} {list(noise.shape)}",
        )
    return noise.astype(x.dtype, copy=False)


def _check_noise(noise: FloatArray | None, x: FloatArray, *, needed: bool, rule: str) -> FloatArray | None:
    """The noise in the dtype of x; refused unless it is there exactly where it is used."""
    if needed != (noise is not None):
        raise UsageError(
            "This step uses noise and got none." if needed else "This step uses no noise and got some.",
            expected=f"noise exactly where {rule}",
            got="None" if noise is None else f"{noise.dtype} {list(noise.shape)}",
            next_step="draw noise only for steps that use it: any other draw shifts the streams",
        )
    return None if noise is None else _like(noise, x)
