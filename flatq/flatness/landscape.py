"""The loss around a network's weights: values, gradient, Hessian-vector products, on fixed draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatq.flatness.draws import Draws
from flatq.noise import NoiseStream, normal

__all__ = ["F64", "Landscape", "Vector", "inner", "losses_of", "norm", "weight_noise"]

Vector = Mapping[str, torch.Tensor]
"""A direction in weight space: parameter name -> tensor of its shape."""

F64 = NDArray[np.float64]


def losses_of(network: Callable[..., torch.Tensor], draws: Draws) -> torch.Tensor:
    """Mean squared error of the output's first C channels, one value for each draw: float32 [n]."""
    inputs = (draws.x, draws.t) if draws.label is None else (draws.x, draws.t, draws.label)
    predicted = network(*inputs)[:, : draws.target.shape[1]]
    return (predicted - draws.target).square().flatten(1).mean(1)


class Landscape:
    """The mean loss L(w + e) of a network on fixed draws. The network itself is never changed.

    Args:
        network: in evaluation mode.
        draws: on the device of the network.
        batch_size: draws at a time.
    """

    def __init__(self, network: nn.Module, draws: Draws, batch_size: int) -> None:
        self.network, self.draws, self.batch_size = network, draws, batch_size
        self.weights = {name: p.detach() for name, p in network.named_parameters()}

    def losses(self, perturbation: Vector | None = None) -> F64:
        """The loss of each draw at the weights plus a perturbation, [n]."""
        moved = {name: self.weights[name] + e for name, e in (perturbation or {}).items()}
        with torch.no_grad():
            parts = [losses_of(self._at({**self.weights, **moved}), batch) for batch in self._batches()]
        return torch.cat(parts).double().cpu().numpy()

    def gradient(self) -> dict[str, torch.Tensor]:
        """The gradient of the mean loss at the weights."""
        weights = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        total = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        for batch in self._batches():
            loss = losses_of(self._at(weights), batch).sum() / len(self.draws.t)
            for name, part in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[name] += part
        return total

    def hessian_times(self, v: Vector) -> tuple[dict[str, torch.Tensor], F64]:
        """H v of the mean loss, and v^T H_b v of the mean loss of each batch b.

        By two backward passes (Pearlmutter 1994). Fused attention has no second derivative, so attention is
        computed by its plain formula here.
        """
        weights = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        total = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        curvatures = []
        with sdpa_kernel(SDPBackend.MATH):
            for batch in self._batches():
                losses = losses_of(self._at(weights), batch)
                slope = torch.autograd.grad(losses.mean(), list(weights.values()), create_graph=True)
                along = sum((g * v[name]).sum() for name, g in zip(weights, slope, strict=True))
                assert isinstance(along, torch.Tensor)
                parts = torch.autograd.grad(along, list(weights.values()), materialize_grads=True)
                product = dict(zip(weights, parts, strict=True))
                curvatures.append(inner(v, product))
                for name, part in product.items():
                    total[name] += part * (len(losses) / len(self.draws.t))
        return total, np.array(curvatures)

    def _at(self, weights: Vector) -> Callable[..., torch.Tensor]:
        return lambda *inputs: torch.func.functional_call(self.network, dict(weights), inputs)

    def _batches(self) -> Iterator[Draws]:
        for start in range(0, len(self.draws.t), self.batch_size):
            yield self.draws[start : start + self.batch_size]


def inner(a: Vector, b: Vector) -> float:
    """The inner product of two directions, summed in float64."""
    return sum(float(torch.vdot(a[name].double().flatten(), b[name].double().flatten())) for name in a)


def norm(a: Vector) -> float:
    """The Euclidean norm of a direction."""
    return math.sqrt(inner(a, a))


def weight_noise(weights: Vector, seed: int, index: int, first_draw: int = 1) -> dict[str, torch.Tensor]:
    """Standard normal noise for every tensor, the same for all networks of one architecture.

    Args:
        index: number of the perturbation; tensor number i takes draw `first_draw` + i of image index `index`.
    """

    def noise(draw: int, w: torch.Tensor) -> torch.Tensor:
        drawn = normal(seed, [index], draw, (1, 1, w.numel()), stream=NoiseStream.PROBES)
        return torch.from_numpy(drawn).view(w.shape).to(w)

    return {name: noise(draw, w) for draw, (name, w) in enumerate(weights.items(), first_draw)}
