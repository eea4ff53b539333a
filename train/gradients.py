"""Gradients at perturbed weights: SAM and gaussian weight noise. The step is the optimizer's.

- Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization" (SAM),
- Mueller et al. 2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs" (SAM-ON),
- Xia et al. 2025 (DNQ, arXiv 2511.01462) model the error of quantized weights as gaussian noise and train
  with it. That idea is followed here and not the paper's scaling, which was not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

__all__ = ["backward", "noise_gradients", "norm_parameters", "sam_gradients"]


def sam_gradients(
    parameters: Iterable[torch.nn.Parameter],
    closure: Callable[[], torch.Tensor],
    rho: float,
    *,
    only: Sequence[torch.nn.Parameter] | None = None,
    unsynchronised: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves the gradient at w + e in `.grad`, where e = rho * g / ||g||_2 and g is the gradient at w.

    The norm is taken over all perturbed parameters together. Both passes start from the same state of
    torch's global generators, so that they share the dropout mask. The weights come back from a copy, bit
    for bit, also where the second pass fails. Where g is zero there is no direction, and e = 0. SAM,
    algorithm 1. Clipping is for the caller, and so touches the second gradient only.

    Args:
        parameters: the weights; those that need no gradient are left alone. What `.grad` held is dropped.
        closure: the loss at the present weights, a scalar, without backward. It must use the same x0, t and
            noise at each call: else e follows the noise of the draw and not the slope.
        rho: radius, positive and finite.
        only: the parameters that e perturbs; None for all. Each gets its gradient either way.
        unsynchronised: around the first pass. Among several processes it must keep their gradients apart:
            each perturbs by its own, and only the second pass is shared (Foret et al. 2021, section 4.1).

    Returns:
        The loss at w and at w + e, scalars on the weights' device: nothing here waits for the device.
    """
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    devices = sorted({w.device.index for w in weights if w.device.type == "cuda"})
    with torch.random.fork_rng(devices), unsynchronised():
        loss = backward(weights, closure)
    found = [(w, w.grad) for w in (weights if only is None else only) if w.grad is not None]
    moved, gradients = [w for w, _ in found], [gradient for _, gradient in found]
    norm = torch.nn.utils.get_total_norm(gradients)
    # divided first: rho / norm may overflow where the gradient is tiny
    torch._foreach_div_(gradients, norm.masked_fill(norm == 0, torch.inf))
    with _perturbed(moved, gradients, rho):
        return loss, backward(weights, closure)


def noise_gradients(
    parameters: Sequence[torch.nn.Parameter],
    closure: Callable[[], torch.Tensor],
    sigma: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Leaves the gradient at w + e in `.grad`, where e ~ N(0, (sigma * range)^2), range = max(w) - min(w).

    The noise is scaled to each tensor's range, as is the rounding error of a quantizer per tensor: b bits
    have the step range / (2^b - 1) and the error step / sqrt(12); sigma is 0.0192 for 4 bits, 0.00113 for 8.

    Only tensors of two or more dimensions are moved: the weights of convolutions and linear layers, which a
    quantizer rounds, and not biases and normalization. The weights come back from a copy, bit for bit.

    Args:
        parameters: all weights; what `.grad` held is dropped.
        closure: the loss at the present weights, a scalar, without backward.
        sigma: standard deviation as a fraction of each tensor's range, above 0.
        generator: of the noise, on the weights' device.

    Returns:
        The loss at w + e, a scalar on the weights' device.
    """
    moved = [w for w in parameters if w.dim() > 1]
    noise = []
    with torch.no_grad():
        for w in moved:
            low, high = w.aminmax()
            drawn = torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype)
            noise.append(drawn.mul_(high - low))
    with _perturbed(moved, noise, sigma):
        return backward(parameters, closure)


@contextmanager
def _perturbed(
    weights: Sequence[torch.Tensor], directions: Sequence[torch.Tensor], scale: float
) -> Iterator[None]:
    """The weights moved by scale * directions; they come back from a copy, bit for bit, whatever happens."""
    held = tuple(weights)
    copies = [w.detach().clone() for w in held]
    try:
        with torch.no_grad():
            torch._foreach_add_(held, tuple(directions), alpha=scale)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(held, copies)


def backward(weights: Iterable[torch.nn.Parameter], closure: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Leaves the gradient of the closure's loss in `.grad`, dropping what was there; gives the loss."""
    for w in weights:
        w.grad = None
    with torch.enable_grad():
        loss = closure()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def norm_parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Weights and biases of the normalization layers, which is what SAM-ON perturbs.

    The linear layers that make a residual block's scale and shift from the timestep are not among them.
    """
    kinds = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    return [p for module in network.modules() if isinstance(module, kinds) for p in module.parameters()]
