"""The linear-gaussian case against closed forms and quadrature, float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from flatq.flatness.theory import (
    F64,
    divergence,
    langevin_covariance,
    sampled_covariance,
    theorem_covariance,
    worst_divergence,
)

C = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.1], [0.0, -0.1, 0.25]])


def _symmetric(size: float, seed: int = 0) -> F64:
    drawn = np.random.default_rng(seed).standard_normal((3, 3))
    matrix = drawn + drawn.T
    found: F64 = matrix * size / np.linalg.norm(matrix)
    return found


def _antisymmetric(size: float) -> F64:
    drawn = np.random.default_rng(1).standard_normal((3, 3))
    matrix = drawn - drawn.T
    found: F64 = matrix * size / np.linalg.norm(matrix)
    return found


def test_theorem_1_holds_for_symmetric_perturbations() -> None:
    """exp(-I) p with I = -x' D x / 2 has the perturbed score, and that score's own dynamics sample it."""
    d = _symmetric(0.1)
    found = theorem_covariance(C, d)
    np.testing.assert_allclose(-np.linalg.inv(found), -np.linalg.inv(C) + d, atol=1e-12)
    np.testing.assert_allclose(langevin_covariance(C, d), found, atol=1e-12)


def test_an_antisymmetric_part_has_no_density_of_that_form() -> None:
    """Its dynamics settle elsewhere, by an amount of second order: half of it leaves a quarter of the KL."""
    gaps = []
    for size in (0.05, 0.1):
        d = _antisymmetric(size)
        np.testing.assert_allclose(theorem_covariance(C, d), C, atol=1e-12)
        gaps.append(divergence(langevin_covariance(C, d), C))
    assert gaps[1] > 1e-5
    assert gaps[1] / gaps[0] == pytest.approx(4, rel=0.1)


def test_a_perturbation_that_is_too_large_leaves_no_density() -> None:
    with pytest.raises(ValueError, match="cannot be normalized"):
        theorem_covariance(C, np.eye(3) / np.linalg.eigvalsh(C)[-1] * 1.01)


def test_a_diffusion_sampler_makes_another_density_of_the_same_score() -> None:
    """Where D commutes with C each variance c becomes c exp(D sigma_max^2), not c / (1 - D c)."""
    variances, shifts = np.array([2.0, 1.0, 0.25]), np.array([0.01, -0.02, 0.03])
    found = sampled_covariance(np.diag(variances), np.diag(shifts), 4.0)
    np.testing.assert_allclose(np.diag(found), variances * np.exp(shifts * 16), rtol=1e-7)
    np.testing.assert_allclose(sampled_covariance(C, np.zeros((3, 3)), 4.0), C, atol=1e-7)


def test_divergence_by_quadrature() -> None:
    for p, q in ((1.0, 2.0), (0.5, 0.3)):
        one, other = norm(scale=p**0.5), norm(scale=q**0.5)
        expected, _ = quad(lambda x, a=one, b=other: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), -12, 12)
        assert divergence(np.array([[p]]), np.array([[q]])) == pytest.approx(expected, rel=1e-8)


def test_theorem_2s_maximum_is_reached_and_never_exceeded() -> None:
    values, vectors = np.linalg.eigh(C)
    for radius in (0.05, 0.2, 0.4):
        top = radius * np.outer(vectors[:, -1], vectors[:, -1])
        bound = worst_divergence(C, radius)
        assert divergence(C, theorem_covariance(C, top)) == pytest.approx(bound, rel=1e-9)
        for seed in range(300):
            assert divergence(C, theorem_covariance(C, _symmetric(radius, seed))) <= bound * (1 + 1e-12)
    assert worst_divergence(C, 1 / values[-1]) == np.inf


def test_a_density_no_farther_away_can_do_four_times_the_harm() -> None:
    """The bound speaks of densities of Theorem 1's form alone: a shift of the mean as near by KL costs more.

    Loss of the unperturbed score at a density q: E_q |W x - grad log q(x)|^2.
    """
    c = np.diag([2.0, 1.0, 0.25])
    radius = 0.05
    reachable = radius**2 * 2.0 / (1 - radius * 2.0)  # D = radius u u' with u the first axis: tr(D C-hat D)
    kl = worst_divergence(c, radius)
    shift = (2 * kl * 0.25) ** 0.5  # along the last axis: KL = shift^2 / (2 * 0.25)
    shifted = (shift / 0.25) ** 2
    assert shifted > 3.5 * reachable
