"""Coverage of the interval, by the benchmark's own simulation: short here, in full with -m slow."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

KINDS = ("gaussian", "relu", "exponential", "elliptical")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("benchmark_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [2.5, 5.0])
def test_short(benchmark: ModuleType, kind: str, ratio: float) -> None:
    """120 replicates of a fixed seed: 4 standard errors of 95 % are 8 %."""
    found = benchmark.coverage(kind, 16, ratio, 0.8, 120)
    assert found["coverage"] >= 0.87
    assert tuple(benchmark.KINDS) == KINDS


def test_the_goals(benchmark: ModuleType) -> None:
    assert benchmark.goal(2.5) == benchmark.goal(4.9) == (0.90, 0.99)
    assert benchmark.goal(5.0) == benchmark.goal(10.0) == (0.92, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [2.5, 5.0, 10.0])
@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("noise", [0.2, 0.8])
def test_in_full(benchmark: ModuleType, kind: str, ratio: float, dim: int, noise: float) -> None:
    """The lower end of the goals. The upper one the benchmark reports: near the reference the interval is too
    wide, up to 99.5 %, which costs samples and never a wrong verdict."""
    low, _ = benchmark.goal(ratio)
    assert benchmark.coverage(kind, dim, ratio, noise, 1000)["coverage"] >= low
