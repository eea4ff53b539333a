"""How often the 95 % interval of a paired drift covers the true drift, by simulation.

    python benchmarks/coverage.py [--replicates 1000] [--dims 16,64] [--ratios 2.5,5,10]
                                  [--references near,far] [-o coverage.json]

Four kinds of features: gaussian, ReLU of a random network, exponential, elliptical (heavy tails), each with
little and with much noise from quantization. The truth is the drift of a pool of max(50 n, 50,000) pairs,
from which every replicate draws n = ratio x d without replacement. The reference is near the float model's
distribution, where the interval is too wide rather than too narrow, or far from it (another network's).
Goals: 92 to 98 % from 5 samples per direction, 90 to 99 % from 2.5. The JSON holds the environment beside the
numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GOALS", "KINDS", "coverage", "main", "pool"]

F64 = NDArray[np.float64]
GOALS = {5.0: (0.92, 0.98), 2.5: (0.90, 0.99)}
"""Least and most coverage from so many samples per direction."""
NOISES = (0.2, 0.8)
"""Of the quantized model's latents, whose own deviation is 1."""


def _map(rng: np.random.Generator, dim: int) -> F64:
    matrix: F64 = rng.normal(size=(dim, dim)) / np.sqrt(dim) * np.linspace(1.5, 0.4, dim)
    return matrix


def _gaussian(rng: np.random.Generator, dim: int) -> Callable[[F64], F64]:
    matrix = _map(rng, dim)
    return lambda z: z @ matrix


def _relu(rng: np.random.Generator, dim: int) -> Callable[[F64], F64]:
    matrix = _map(rng, dim)
    return lambda z: np.maximum(z @ matrix + 0.3, 0.0) + 0.05 * z


def _exponential(rng: np.random.Generator, dim: int) -> Callable[[F64], F64]:
    matrix = _map(rng, dim)
    return lambda z: -np.log(np.maximum(_upper(z), 1e-12)) @ matrix


def _elliptical(rng: np.random.Generator, dim: int) -> Callable[[F64], F64]:
    matrix = _map(rng, dim)
    # one radius for a sample, a smooth function of its latents, so that float and quantized share it
    return lambda z: (z @ matrix) * np.exp(0.4 * z[:, :1])


def _upper(z: F64) -> F64:
    """1 - the normal distribution function, to 1e-4 (a logistic curve): uniform enough for an exponential."""
    tail: F64 = 1.0 / (1.0 + np.exp(1.702 * z))
    return tail


KINDS = {"gaussian": _gaussian, "relu": _relu, "exponential": _exponential, "elliptical": _elliptical}


def pool(
    kind: str, dim: int, size: int, noise: float, near: bool = True, seed: int = 0
) -> tuple[F64, F64, F64]:
    """Features [size, dim] of the float and the quantized model, and of a reference of 4000 images."""
    rng = np.random.default_rng((seed, dim))
    net = KINDS[kind](rng, dim)
    z = rng.normal(size=(size, dim))
    reference = 1.1 * rng.normal(size=(4000, dim))
    reference = net(reference) if near else KINDS[kind](np.random.default_rng(dim), dim)(reference)
    return net(z), net(z + noise * rng.normal(size=z.shape)), reference


def coverage(
    kind: str, dim: int, ratio: float, noise: float, replicates: int, near: bool = True, seed: int = 0
) -> dict[str, Any]:
    """One case: coverage of the FID drift, and what the plug-in drift would have covered."""
    from flatq.evaluate.drift import fid_drift
    from flatq.evaluate.frechet import frechet_distance
    from flatq.evaluate.moments import reference_from_features

    n = int(np.ceil(ratio * dim))
    x, q, real = pool(kind, dim, max(50 * n, 50_000), noise, near, seed)
    reference = reference_from_features(real)
    truth = frechet_distance(q, reference) - frechet_distance(x, reference)
    rng = np.random.default_rng((seed, n))
    hits = plug_in = 0
    for _ in range(replicates):
        rows = rng.choice(len(x), n, replace=False)
        drift = fid_drift(x[rows], q[rows], reference)
        assert drift.low is not None
        assert drift.high is not None
        assert drift.standard_error is not None
        hits += drift.low <= truth <= drift.high
        plug_in += abs(drift.raw - truth) <= 1.959964 * drift.standard_error
    return {
        "kind": kind,
        "dim": dim,
        "n": n,
        "ratio": ratio,
        "noise": noise,
        "reference": "near" if near else "far",
        "replicates": replicates,
        "coverage": hits / replicates,
        "plug_in_coverage": plug_in / replicates,
    }


def goal(ratio: float) -> tuple[float, float]:
    """Least and most coverage at a number of samples per direction."""
    return GOALS[max(least for least in GOALS if least <= ratio)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--dims", default="16,64")
    parser.add_argument("--ratios", default="2.5,5,10")
    parser.add_argument("--references", default="near,far")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    cases, missed = [], 0
    dims = [int(dim) for dim in options.dims.split(",")]
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    near = [{"near": True, "far": False}[name] for name in options.references.split(",")]
    for close, dim, ratio, kind, noise in itertools.product(near, dims, ratios, KINDS, NOISES):
        case = coverage(kind, dim, ratio, noise, options.replicates, close)
        low, high = goal(ratio)
        ok = low <= case["coverage"] <= high
        missed += not ok
        cases.append(case | {"goal": [low, high], "ok": ok})
        print(json.dumps(cases[-1]), flush=True)
    if options.out is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True)
        environment = {
            "commit": commit.stdout.strip(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "cores": os.cpu_count(),
        }
        options.out.write_text(json.dumps({"environment": environment, "cases": cases}, indent=2) + "\n")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
