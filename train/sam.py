"""Sharpness-aware minimization: the gradient at the worst point nearby. The step is the optimizer's.

- Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization" (SAM),
- Mueller et al. 2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs" (SAM-ON).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from flatq.errors import UsageError

__all__ = ["backward", "norm_parameters", "perturbed", "sam_gradients"]


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

    Raises:
        UsageError: rho is not positive and finite.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise UsageError(
            "SAM's radius must be positive",
            expected="a finite rho > 0",
            got=str(rho),
            next_step='use the method "adm" to train without SAM',
        )
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    devices = sorted({w.device.index for w in weights if w.device.type == "cuda"})
    cpu_state = torch.get_rng_state()
    cuda_states = [torch.cuda.get_rng_state(device) for device in devices]

    with unsynchronised():
        loss = backward(weights, closure)
    moved = [(w, w.grad) for w in (weights if only is None else only) if w.grad is not None]
    if not moved:
        return loss, loss
    gradients = [g for _, g in moved]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # divided first: rho / norm may overflow where the gradient is tiny
    torch._foreach_div_(gradients, norm.masked_fill(norm == 0, torch.inf))
    with perturbed([w for w, _ in moved], gradients, rho):
        torch.set_rng_state(cpu_state)
        for device, state in zip(devices, cuda_states, strict=True):
            torch.cuda.set_rng_state(state, device)
        sharp_loss = backward(weights, closure)
    return loss, sharp_loss


@contextmanager
def perturbed(
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
