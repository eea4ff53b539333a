"""The paper's two theorems where everything can be computed: a linear score of gaussian data.

The data are N(0, C) and the score model is s(x) = W x, exact at W = -C^-1. A weight perturbation D makes it
(W + D) x. Theorem 1 says that this is the score of p-hat(x) = exp(-I(x, D)) p(x); Theorem 2 bounds how far
p-hat is from p for all D of a given norm. `docs/theory.md` says what follows, and
`python -m flatq.flatness.theory` prints its numbers. All in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "divergence",
    "langevin_covariance",
    "sampled_covariance",
    "theorem_covariance",
    "worst_divergence",
]

F64 = NDArray[np.float64]


def theorem_covariance(covariance: F64, perturbation: F64) -> F64:
    """Covariance of Theorem 1's p-hat: (C^-1 - S)^-1, with S the symmetric part of the perturbation.

    I(x, D) = -x' D x / 2 + const has the perturbed score as its gradient only where D is symmetric; the
    antisymmetric part is no gradient of anything, and drops out of I.

    Args:
        covariance: C, [d, d], positive definite.
        perturbation: D, [d, d].

    Raises:
        ValueError: C^-1 - S is not positive definite, so that p-hat has no finite integral.
    """
    symmetric = (perturbation + perturbation.T) / 2
    precision = np.linalg.inv(covariance) - symmetric
    if np.linalg.eigvalsh(precision)[0] <= 0:
        raise ValueError("the perturbed density cannot be normalized: C^-1 - D is not positive definite")
    found: F64 = np.linalg.inv(precision).astype(np.float64)
    return found


def langevin_covariance(covariance: F64, perturbation: F64) -> F64:
    """Covariance that the dynamics dx = (W + D) x dt + sqrt(2) dB settle to: the density that the perturbed
    score itself samples, whether or not D is symmetric."""
    from scipy.linalg import solve_continuous_lyapunov

    drift = -np.linalg.inv(covariance) + perturbation
    found: F64 = solve_continuous_lyapunov(drift, -2 * np.eye(len(covariance)))
    return found


def sampled_covariance(covariance: F64, perturbation: F64, sigma_max: float) -> F64:
    """Covariance of what a diffusion sampler makes of the perturbed score.

    The score at noise level s is -(C + s^2)^-1 x, and the same D is added at every level. The probability
    flow dx/ds = -s score(x, s) (Song et al. 2021) is followed from s = sigma_max, where x has covariance
    C + sigma_max^2, to 0; it is linear, so that the covariance follows an ordinary differential equation.
    """
    from scipy.integrate import solve_ivp

    d = len(covariance)
    identity = np.eye(d)

    def slope(s: float, flat: F64) -> F64:
        matrix = -np.linalg.inv(covariance + s**2 * identity) + perturbation
        c = flat.reshape(d, d)
        change: F64 = -s * (matrix @ c + c @ matrix.T)
        return change.ravel()

    start = (covariance + sigma_max**2 * identity).ravel()
    found: F64 = solve_ivp(slope, (sigma_max, 0.0), start, rtol=1e-10, atol=1e-12).y[:, -1].reshape(d, d)
    return found


def divergence(p: F64, q: F64) -> float:
    """KL(N(0, p) || N(0, q)) = 1/2 [sum_i (r_i - log r_i) - d], r the eigenvalues of q^-1 p, in nats."""
    ratios = np.linalg.eigvals(np.linalg.solve(q, p)).real
    return float(0.5 * np.sum(ratios - np.log(ratios) - 1))


def worst_divergence(covariance: F64, radius: float) -> float:
    """The largest KL(p || p-hat) over symmetric D of Frobenius norm at most `radius`, in nats.

    With a the eigenvalues of C^1/2 D C^1/2, the divergence is 1/2 sum (-a - log(1 - a)) = 1/2 sum_k>=2
    sum_i a_i^k / k, at most its value with all of |a| <= radius c in one entry, c the largest eigenvalue of
    C; D = radius u u', u its eigenvector, reaches that. Infinite from radius 1 / c on.
    """
    reach = radius * float(np.linalg.eigvalsh(covariance)[-1])
    return float("inf") if reach >= 1 else 0.5 * (-reach - float(np.log1p(-reach)))


def main() -> None:
    """Print the tables of docs/theory.md."""
    covariance = np.diag([2.0, 1.0, 0.25])
    rng = np.random.default_rng(0)
    print("| perturbation | norm | KL to Theorem 1's density: Langevin | diffusion sampler, sigma_max 5 |")
    print("|---|---|---|---|")
    for kind in ("symmetric", "antisymmetric", "general"):
        for norm in (0.02, 0.1):
            drawn = rng.standard_normal((3, 3))
            matrix = {"symmetric": drawn + drawn.T, "antisymmetric": drawn - drawn.T, "general": drawn}[kind]
            matrix *= norm / np.linalg.norm(matrix)
            expected = theorem_covariance(covariance, matrix)
            own = divergence(langevin_covariance(covariance, matrix), expected)
            sampled = divergence(sampled_covariance(covariance, matrix, 5.0), expected)
            print(f"| {kind} | {norm} | {own:.2e} | {sampled:.2e} |")
    print("\n| radius | largest of 10,000 random perturbations | Theorem 2's maximum |\n|---|---|---|")
    for radius in (0.05, 0.1, 0.2, 0.4):
        found = 0.0
        for _ in range(10_000):
            drawn = rng.standard_normal((3, 3))
            matrix = drawn + drawn.T
            matrix *= radius / np.linalg.norm(matrix)
            found = max(found, divergence(covariance, theorem_covariance(covariance, matrix)))
        print(f"| {radius} | {found:.5f} | {worst_divergence(covariance, radius):.5f} |")


if __name__ == "__main__":
    main()
