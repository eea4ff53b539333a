"""The drift of features that are larger than its memory: time and peak memory, on synthetic features.

    python benchmarks/drift_scale.py [-n 50000] [--dim 2048] [-o scale.json]

Writes two float32 files [n, dim] block by block, then measures the drift of both, memory-mapped, in a process
of its own, so that the peak is that of measuring. The goal: 2 GB of resident memory at 50,000 x 2048, mapped
pages included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main", "measure", "write_features"]

GOAL_BYTES = 2e9


def write_features(folder: Path, n: int, dim: int, seed: int = 0) -> None:
    """x.npy, q.npy [n, dim] float32 and reference.npz, ReLU features of a decaying spectrum."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(1.5, 0.2, dim, dtype=np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.float32, shape=(n, dim))
    q = np.lib.format.open_memmap(folder / "q.npy", mode="w+", dtype=np.float32, shape=(n, dim))
    for start in range(0, n, 2000):
        rows = slice(start, min(start + 2000, n))
        z = rng.normal(size=(rows.stop - start, dim)).astype(np.float32) * scale
        x[rows] = np.maximum(z + 0.4, 0)
        z += 0.1 * scale * rng.normal(size=z.shape).astype(np.float32)
        q[rows] = np.maximum(z + 0.4, 0)
    x.flush()
    q.flush()
    cov = np.diag((0.7 * scale.astype(np.float64)) ** 2)
    np.savez(folder / "reference.npz", mu=np.full(dim, 0.8), sigma=cov)


def measure(folder: Path) -> dict[str, Any]:
    """Drift and peak memory of this process; `folder` as `write_features` leaves it."""
    from flatq.evaluate.drift import fid_drift
    from flatq.evaluate.statistics_file import load_reference

    reference = load_reference(folder / "reference.npz").reference
    x, q = (np.load(folder / name, mmap_mode="r") for name in ("x.npy", "q.npy"))
    start = time.perf_counter()
    drift = fid_drift(x, q, reference)
    return {
        "n": drift.n,
        "dim": drift.dim,
        "corrected": drift.corrected,
        "standard_error": drift.standard_error,
        "seconds": time.perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "goal_bytes": GOAL_BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_features(Path(name), options.n, options.dim)
        command = [sys.executable, __file__, "--measure", name]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(found.strip())
    if options.out is not None:
        options.out.write_text(found)
    sys.exit(json.loads(found)["peak_bytes"] > GOAL_BYTES)


if __name__ == "__main__":
    main()
