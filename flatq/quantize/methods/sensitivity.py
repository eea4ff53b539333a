"""How far an error of a layer moves the prediction, input by input: `sensitivities`.

Li et al. 2021, "BRECQ", section 3.3, weigh the error of a block's output by the squared gradient of the loss
(the diagonal of its Fisher information). In a diffusion model it differs most between timesteps: at low noise
the same error moves the prediction many times as far as at high noise. So one weight for each input says
most of it, and needs neither the memory nor the probes that one for each element would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from flatq.progress import Progress
from flatq.quantize.methods.stream import Stream, execute

__all__ = ["Weights", "sensitivities"]

_PROBES = 2
"""Directions of the prediction that the squared gradient is averaged over, besides the output's elements."""

Weights = dict[fx.Node, torch.Tensor]
"""operator -> weight of its error on each input of a batch, float32 [n]."""


def sensitivities(
    graph: fx.GraphModule,
    batches: Sequence[tuple[torch.Tensor, ...]],
    nodes: Sequence[fx.Node],
    power: float,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> list[Weights]:
    """The weights of errors of each node's output, batch by batch; the mean over all inputs is 1 for each.

    Before the power it is the mean, over the output's elements, of the squared gradient of the prediction
    projected on random signs, whose expectation is the squared norm of the Jacobian (Hutchinson 1990). Where
    that is zero or beyond float64 throughout, all weights are 1.

    Args:
        graph: traced, float.
        batches: the graph's inputs in order, float32 [n, ...] and the like; the image comes first.
        power: 1 takes the squared gradient as it is, 0 weighs all inputs alike.
        generator: of the signs.
        progress: called with (stage, batches done, all) after each.
    """
    operators = [node for node in graph.graph.nodes if node.op == "call_function"]
    (yields,) = (node.all_input_nodes[0] for node in graph.graph.nodes if node.op == "output")
    found: list[Weights] = []
    for batch, values in zip(batches, Stream(graph, batches).batches, strict=True):
        local = {
            node: value.detach().requires_grad_()
            if torch.is_tensor(value) and value.is_floating_point()
            else value
            for node, value in values.items()
        }
        with torch.enable_grad():
            execute(operators, local)
            # A network that learns variances yields them behind the noise.
            noise = local[yields][:, : batch[0].shape[1]]
        squares = {node: torch.zeros(len(noise), dtype=torch.float64) for node in nodes}
        for _ in range(_PROBES):
            signs = 2.0 * torch.randint(0, 2, noise.shape, generator=generator) - 1.0
            gradients = torch.autograd.grad(
                noise, [local[n] for n in nodes], signs, retain_graph=True, materialize_grads=True
            )
            for node, gradient in zip(nodes, gradients, strict=True):
                squares[node] += gradient.double().square().flatten(1).mean(1)
        found.append(squares)
        if progress is not None:
            progress("weighing errors", len(found), len(batches))
    for node in nodes:
        powers = [weights[node] ** power for weights in found]
        mean = float(torch.cat(powers).mean())
        usable = 0 < mean < float("inf")
        for weights, raised in zip(found, powers, strict=True):
            weights[node] = (raised / mean if usable else torch.ones_like(raised)).float()
    return found
