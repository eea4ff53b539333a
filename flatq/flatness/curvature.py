"""The Hessian's largest eigenvalue and trace at the weights.

The eigenvalue is found by SciPy's Lanczos method (ARPACK) on Hessian-vector products.
"""

from __future__ import annotations

import numpy as np
import torch

from flatq.flatness.landscape import F64, Landscape, inner
from flatq.flatness.lpf import weight_noise
from flatq.flatness.result import Curvature, Estimate

__all__ = ["curvature"]

_TOLERANCE = 1e-3


def curvature(landscape: Landscape, probes: int, seed: int) -> Curvature:
    """Largest eigenvalue and trace of the mean loss's Hessian.

    The standard error of the eigenvalue is that of v^T H v over the batches, at the eigenvector v that was
    found; of the trace, over the Rademacher probes (Hutchinson 1989).
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    weights = landscape.weights
    sizes = [w.numel() for w in weights.values()]

    def unflatten(flat: F64) -> dict[str, torch.Tensor]:
        parts = torch.split(torch.from_numpy(flat.reshape(-1)), sizes)
        return {
            name: part.view(w.shape).to(w) for part, (name, w) in zip(parts, weights.items(), strict=True)
        }

    def product(flat: F64) -> F64:
        found, _ = landscape.hessian_times(unflatten(flat))
        return torch.cat([part.flatten() for part in found.values()]).double().cpu().numpy()

    total = sum(sizes)
    start = torch.cat([z.flatten() for z in weight_noise(weights, seed, 0).values()]).double().numpy()
    operator = LinearOperator((total, total), matvec=product, dtype=np.float64)
    values, vectors = eigsh(operator, k=1, which="LA", tol=_TOLERANCE, v0=start)
    _, by_batch = landscape.hessian_times(unflatten(vectors[:, 0]))
    traces = []
    for probe in range(probes):
        signs = {name: z.sign() for name, z in weight_noise(weights, seed, probe).items()}
        found, _ = landscape.hessian_times(signs)
        traces.append(inner(signs, found))
    spread = float(by_batch.std(ddof=1) / len(by_batch) ** 0.5) if len(by_batch) > 1 else None
    return Curvature(
        largest_eigenvalue=Estimate(value=float(values[0]), standard_error=spread),
        trace=Estimate.of(np.array(traces)),
    )
