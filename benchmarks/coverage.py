"""How often the 95 % interval of a paired drift covers the true drift, by simulation.

    python benchmarks/coverage.py [--replicates 1000] [--dims 16,64] [--ratios 2.5,5,10]
                                  [--references near,far] [-o coverage.json]
    python benchmarks/coverage.py --sidecar eval/00-ckpt.w4a8.npz --statistics ref.npz [...]

Four kinds of features: gaussian, ReLU of a random network, exponential, elliptical (heavy tails), each with
little and with much noise from quantization. The truth is the drift of a pool of max(50 n, 50,000) pairs,
from which every replicate draws n = ratio x d without replacement. The reference is near the float model's
distribution, where the interval is too wide rather than too narrow, or far from it (another network's).
Goals: 92 to 98 % from 5 samples per direction, 90 to 99 % from 2.5. The JSON holds the environment beside the
numbers.

With --sidecar the pool is what `flatq eval -n N` kept of a real pair of models, N >= 50 n, and the reference
the file of `flatq stats`; n is then the ratio times the reference's rank.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
    from flatq.evaluate.moments import reference_from_features

    n = int(np.ceil(ratio * dim))
    x, q, real = pool(kind, dim, max(50 * n, 50_000), noise, near, seed)
    found = covered(x, q, reference_from_features(real), n, replicates, seed)
    case = {"kind": kind, "dim": dim, "ratio": ratio, "noise": noise, "reference": "near" if near else "far"}
    return case | found


def covered(x: F64, q: F64, reference: Any, n: int, replicates: int, seed: int = 0) -> dict[str, Any]:
    """Coverage of the drift of the pool x, q [size, d] by samples of n of it."""
    from flatq.evaluate.drift import fid_drift
    from flatq.evaluate.frechet import frechet_distance

    truth = frechet_distance(q, reference) - frechet_distance(x, reference)
    rng = np.random.default_rng((seed, n))
    hits = plug_in = 0
    for _ in range(replicates):
        rows = rng.choice(len(x), n, replace=False)
        drift = fid_drift(x[rows], q[rows], reference)
        if drift.low is None or drift.high is None or drift.standard_error is None:
            sys.exit(f"a sample of {n} has no interval: {drift.reason}")
        hits += drift.low <= truth <= drift.high
        plug_in += abs(drift.raw - truth) <= 1.959964 * drift.standard_error
    return {
        "n": n,
        "truth": truth,
        "replicates": replicates,
        "coverage": hits / replicates,
        "plug_in_coverage": plug_in / replicates,
    }


def from_sidecar(sidecar: Path, statistics: Path, ratio: float, replicates: int) -> dict[str, Any]:
    """Coverage on a pool of real pairs."""
    from flatq.evaluate.statistics_file import load_reference

    reference = load_reference(statistics).reference
    kept = np.load(sidecar, allow_pickle=False)
    x, q = kept["features_float"], kept["features_quantized"]
    n = int(np.ceil(ratio * reference.rank))
    if len(x) < 50 * n:
        sys.exit(f"{sidecar} holds {len(x)} pairs; {ratio:g} samples per direction need {50 * n}")
    case = {"kind": sidecar.name, "dim": x.shape[1], "ratio": ratio, "rank": reference.rank}
    return case | {"pool": len(x)} | covered(x, q, reference, n, replicates)


def goal(ratio: float) -> tuple[float, float]:
    """Least and most coverage at a number of samples per direction."""
    return GOALS[max(least for least in GOALS if least <= ratio)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--dims", default="16,64")
    parser.add_argument("--ratios", default="2.5,5,10")
    parser.add_argument("--references", default="near,far")
    parser.add_argument("--sidecar", type=Path)
    parser.add_argument("--statistics", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if (options.sidecar is None) != (options.statistics is None):
        parser.error("--sidecar and --statistics go together")
    dims = [int(dim) for dim in options.dims.split(",")]
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    near = [{"near": True, "far": False}[name] for name in options.references.split(",")]
    if options.sidecar is not None:
        found = (from_sidecar(options.sidecar, options.statistics, r, options.replicates) for r in ratios)
    else:
        found = (
            coverage(kind, dim, ratio, noise, options.replicates, close)
            for close, dim, ratio, kind, noise in itertools.product(near, dims, ratios, KINDS, NOISES)
        )
    cases = []
    for case in found:
        low, high = goal(case["ratio"])
        cases.append(case | {"goal": [low, high], "ok": low <= case["coverage"] <= high})
        print(json.dumps(cases[-1]), flush=True)
    if options.out is not None:
        from common import mark, write_json

        write_json(options.out, {**mark(), "cases": cases})
    sys.exit(not all(case["ok"] for case in cases))


if __name__ == "__main__":
    main()
