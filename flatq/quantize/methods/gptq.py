"""GPTQ: columns are rounded one after the other, and those that follow make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", algorithm 1.

Algorithm 1 takes the inputs of the quantized layer for those of the float one. Li, Yin, Lee, Xiao, Panda
2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", holds the layer to what the
float one makes of the float inputs, so that it makes up for what was rounded before it. Their update works
column by column; here the float weight that does so best is found first, and then rounded: `compensated`.
"""

from __future__ import annotations

import math

import torch

from flatq.errors import ModelError
from flatq.quantize.grid import QuantGrid
from flatq.quantize.methods.options import Gptq

__all__ = ["Moments", "compensated", "gptq_integers", "output_error"]

_JITTER = 0.01
"""What the factorization adds to the Hessian's diagonal at first, as a fraction of its mean."""


class Moments:
    """Of the inputs X of a quantized layer and X' of the float one, streamed: their rows need not be kept.

    Args:
        columns: of the weight as a matrix.

    Attributes:
        hessian: 2 X X^T, of the layer's squared output error; float64 [columns, columns].
        cross: 2 (X' - X) X^T, float64 [columns, columns].
    """

    def __init__(self, columns: int) -> None:
        self.hessian = torch.zeros(columns, columns, dtype=torch.float64)
        self.cross = torch.zeros(columns, columns, dtype=torch.float64)

    def add(self, rows: torch.Tensor, exact: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Rows of X^T and of X'^T, float32 [n, columns]. Weights of their errors: [n]."""
        if weight is not None:
            root = weight.sqrt()[:, None]
            rows, exact = rows * root, exact * root
        # Sums of squares beyond 2^80 come near the end of float32; a power of two changes no digit.
        unit = 2.0 ** max(0, math.frexp(float(rows.abs().amax()))[1] - 40)
        scaled = rows / unit if unit > 1 else rows
        self.hessian += 2 * unit**2 * (scaled.T @ scaled).double()
        self.cross += 2 * unit**2 * (((exact - rows) / unit).T @ scaled).double()


def compensated(weight: torch.Tensor, moments: Moments, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight V of least |V X - W X'|^2 + r |V - W|^2, and the Hessian of that as a function of V.

    Args:
        weight: W, float [out, columns].
        damping: r, as a fraction of the mean of the Hessian's diagonal.

    Returns:
        V and 2 (X X^T + r), float64 [out, columns] and [columns, columns]. Without inputs, W and zeros.

    Raises:
        ModelError: the inputs were not finite.
    """
    exact, hessian = weight.double(), moments.hessian
    _check_finite(hessian, moments.cross)
    mean = float(hessian.diagonal().mean())
    if not mean > 0:
        return exact, hessian
    kept = hessian + damping * mean * torch.eye(len(hessian), dtype=torch.float64)
    return exact + torch.linalg.solve(kept, moments.cross.T @ exact.T).T, kept


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Squared error of each output channel, summed over the inputs: float64 [out].

    Args:
        difference: of two weights, float64 [out, columns].
        hessian: float64 [columns, columns].
    """
    return ((difference @ hessian) * difference).sum(1) / 2


def gptq_integers(
    weight: torch.Tensor, grid: QuantGrid, hessian: torch.Tensor, options: Gptq
) -> torch.Tensor:
    """The integers of a weight matrix, int8 [out, columns].

    A channel whose error on the Hessian's inputs is not below that of rounding to nearest is rounded to
    nearest. Columns that read nothing but zeros are rounded to nearest, too.

    Args:
        weight: float [out, columns].
        grid: of the weight.
        hessian: float64 [columns, columns], symmetric, positive semidefinite of any rank.
        options: the order and the block; the damping is in the Hessian of `compensated`.

    Raises:
        ModelError: the Hessian is not finite.
    """
    _check_finite(hessian)
    exact = weight.double()
    nearest = grid.quantize(exact)
    ordered, order = _ordered(hessian, options)
    back = order.argsort()
    factor = _inverse_factor(ordered)
    chosen = _round_columns(exact[:, order], grid, factor, options.block)[:, back]
    error, plain = (output_error(grid.dequantize(n) - exact, hessian) for n in (chosen, nearest))
    return torch.where((error < plain)[:, None], chosen, nearest).to(torch.int8)


def _check_finite(*moments: torch.Tensor) -> None:
    if not all(bool(moment.isfinite().all()) for moment in moments):
        raise ModelError(
            "GPTQ cannot work on inputs that are not finite",
            expected="finite activations",
            got="NaN or infinity during calibration",
            next_step="check the checkpoint with `flatq sample` first",
        )


def _ordered(hessian: torch.Tensor, options: Gptq) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian with ones on the diagonal of dead columns, permuted, and the permutation."""
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    alive_mean = float(diagonal[~dead].mean()) if bool((~dead).any()) else 1.0
    order = torch.arange(len(diagonal))
    if options.act_order:
        order = diagonal.argsort(descending=True, stable=True)
    filled = hessian / alive_mean
    filled.diagonal()[dead] = 1.0
    return filled[order][:, order], order


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of H, with as much on its diagonal as rounding errors ask for."""
    mean = float(hessian.diagonal().mean())
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    jitter = _JITTER
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian + jitter * mean * eye)
        if not int(failed):
            factor: torch.Tensor
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return factor
        # At a jitter far above 1 the matrix is all but the identity, so this ends.
        jitter *= 10


def _round_columns(weight: torch.Tensor, grid: QuantGrid, factor: torch.Tensor, block: int) -> torch.Tensor:
    """Algorithm 1: float64 integers [out, columns]; errors go to later columns by the factor's rows."""
    rest = weight.clone()
    integers = torch.empty_like(rest)
    for start in range(0, rest.shape[1], block):
        end = min(start + block, rest.shape[1])
        part, local = rest[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(part)
        for j in range(end - start):
            column = part[:, j : j + 1]
            integers[:, start + j] = (chosen := grid.quantize(column))[:, 0]
            errors[:, j : j + 1] = (column - grid.dequantize(chosen)) / local[j, j]
            part[:, j + 1 :] -= errors[:, j : j + 1] * local[j, j + 1 :]
        rest[:, end:] -= errors @ factor[start:end, end:]
    return integers
