"""The training objective: predict the noise and, where it is learned, the variance. Draws nothing.

- Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM),
- Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (IDDPM),
- Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models" (IP).

The arithmetic of the process is `flatq.process`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flatq.process import Process, ProcessConfig

__all__ = ["Losses", "Objective"]


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
    """

    def __init__(self, process: ProcessConfig) -> None:
        self._process = Process.from_config(process)

    def __call__(
        self,
        network: Callable[..., torch.Tensor],
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
        config = self._process.config
        x_t = self._process.add_noise(x0, noise if shift is None else noise + shift, t)
        output = (network(x_t, t) if label is None else network(x_t, t, label)).float()
        predicted = output[:, : x0.shape[1]]
        mse = (predicted - noise).square().flatten(1).mean(1)
        if config.variance != "learned_range":
            return Losses(mse, None)
        of_bound = torch.cat([predicted.detach(), output[:, x0.shape[1] :]], dim=1)
        return Losses(mse, self._bound(of_bound, x0, x_t, t) * (config.train_steps / 1000))

    def _bound(
        self, output: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """L_t of the variational bound in bits for each dimension, [N]; at t = 0 the decoder's.

        IDDPM eq. 4 to 7: the divergence of q(x_{t-1} | x_t, x_0), with the true x_0, from the prediction.
        """
        process = self._process
        predicted = process.predict(output, x_t, t, clip=False)
        log_variance = predicted.log_variance
        true_mean, mean = (process.posterior_mean(image, x_t, t) for image in (x0, predicted.x0))
        true_log = process.at("posterior_log_variance_clipped", t, x_t).float()
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
