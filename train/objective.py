"""The training objective: predict the noise and, where it is learned, the variance. Draws nothing.

- Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM),
- Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (IDDPM),
- Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models" (IP).

The coefficients are `flatq.process`'s, in float64; they are cast to float32 where they meet images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flatq.process import Process, ProcessConfig

__all__ = ["Losses", "Objective"]

Network = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Losses:
    """One value for each image, float32 [N].

    Attributes:
        mse: of the predicted noise, the mean over the image.
        vb: the term of the variational bound that trains the variance, scaled as in `Objective`; None where
            the variance is not learned.
    """

    mse: torch.Tensor
    vb: torch.Tensor | None

    @property
    def total(self) -> torch.Tensor:
        """What is trained on."""
        return self.mse if self.vb is None else self.mse + self.vb


class Objective:
    """The loss of each image of a batch: the squared error of the predicted noise (DDPM eq. 14).

    With a learned variance the loss is hybrid (IDDPM eq. 16 in guided-diffusion's "rescaled" form): the
    squared error plus T / 1000 times the term of the variational bound at t, in bits for each dimension, so
    that the bound's sum over T steps has the weight 0.001 that IDDPM gives it. The bound does not train the
    mean: its gradient stops there.

    Args:
        process: what the network is trained for.
        device: of the batches.
    """

    def __init__(self, process: ProcessConfig, device: torch.device | str = "cpu") -> None:
        full = Process.from_config(process)
        self.config = process
        names = (
            "alphas_cumprod",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
            "posterior_log_variance_clipped",
        )
        self._table = {name: torch.from_numpy(getattr(full, name).copy()).to(device) for name in names}
        self._table["log_betas"] = torch.from_numpy(full.betas.copy()).log().to(device)

    def __call__(
        self,
        network: Network,
        x0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
        shift: torch.Tensor | None = None,
        label: torch.Tensor | None = None,
    ) -> Losses:
        """The losses of a batch.

        Args:
            network: `(x_t, t) -> output`, float [N, C or 2C, H, W].
            x0: float32 [N, C, H, W], images in [-1, 1].
            t: int64 [N], timesteps in [0, T).
            noise: float32 [N, C, H, W], standard normal; what the network has to predict.
            shift: IP's gamma * xi: x_t is built from noise + shift, and noise is still the target (IP,
                algorithm 2). None builds it from the noise.
            label: int64 [N], the network's third argument; None for a network without classes.
        """
        x_t = _noised(x0, t, noise if shift is None else noise + shift, self._table["alphas_cumprod"])
        output = (network(x_t, t) if label is None else network(x_t, t, label)).float()
        predicted, learned = output, None
        if self.config.variance == "learned_range":
            predicted, learned = output.chunk(2, dim=1)
        mse = (predicted - noise).square().flatten(1).mean(1)
        if learned is None:
            return Losses(mse, None)
        bits = self._bound(predicted.detach(), learned, x0, x_t, t)
        return Losses(mse, bits * (self.config.train_steps / 1000))

    def _bound(
        self,
        predicted: torch.Tensor,
        learned: torch.Tensor,
        x0: torch.Tensor,
        x_t: torch.Tensor,
        t: torch.Tensor,
    ) -> torch.Tensor:
        """L_t of the variational bound in bits for each dimension, [N]; at t = 0 the decoder's.

        IDDPM eq. 4 to 7: the divergence of q(x_{t-1} | x_t, x_0), with the true x_0, from the prediction.
        """
        kept = self._at("alphas_cumprod", t)
        pred_x0 = (1 / kept).sqrt().float() * x_t - (1 / kept - 1).sqrt().float() * predicted
        coef1 = self._at("posterior_mean_coef1", t).float()
        coef2 = self._at("posterior_mean_coef2", t).float()
        true_mean, mean = coef1 * x0 + coef2 * x_t, coef1 * pred_x0 + coef2 * x_t
        true_log = self._at("posterior_log_variance_clipped", t).float()
        v = (learned + 1) / 2  # IDDPM eq. 15
        log_variance = v * self._at("log_betas", t).float() + (1 - v) * true_log
        divergence = 0.5 * (
            log_variance
            - true_log
            - 1
            + (true_log - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
        )
        decoder = -_decoder_log_likelihood(x0, mean, 0.5 * log_variance)
        nats = torch.where(t == 0, decoder.flatten(1).mean(1), divergence.flatten(1).mean(1))
        return nats / math.log(2)

    def _at(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """float64 [N, 1, 1, 1]."""
        return self._table[name][t].view(-1, 1, 1, 1)


def _noised(
    x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """A sample of q(x_t | x_0), float32 (DDPM eq. 4)."""
    kept = alphas_cumprod[t].view(-1, 1, 1, 1)
    return kept.sqrt().float() * x0 + (1 - kept).sqrt().float() * noise


def _decoder_log_likelihood(x0: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log of the gaussian's mass on the pixel's bin of width 2 / 255 (DDPM eq. 13), nats, like x0.

    The outermost bins reach to infinity. The mass is floored at 1e-12. guided-diffusion takes a tanh in place
    of the error function, which moves the mass by up to 2e-4.
    """
    centred, sharpness = x0 - mean, (-log_scale).exp()
    above = torch.special.ndtr(sharpness * (centred + 1 / 255))
    below = torch.special.ndtr(sharpness * (centred - 1 / 255))
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return mass.clamp_min(1e-12).log()
