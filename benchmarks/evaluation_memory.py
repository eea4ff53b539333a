"""Peak memory of an evaluation, which must not grow with the size of an image.

    python benchmarks/evaluation_memory.py [-n 50000] [--size 64] [--dim 2048] [-o out.json]

The networks, which would take days, are stubs: samples are seeded noise, features a few sums of pixels. What
keeps, reads and compares them is flatq's own. The peak is this process's, Python and libraries counted in.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatq.evaluate import samples
from flatq.evaluate.cache import Cache
from flatq.evaluate.compare import compare
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Moments, reference_from_moments
from flatq.evaluate.reference import MeasuredReference
from flatq.evaluate.samples import SampleSet, Sampling
from flatq.evaluate.statistics_file import ReferenceSource
from flatq.models import Model, Opening
from flatq.process import ProcessConfig
from flatq.sampling_settings import SamplingSettings

__all__ = ["GOALS", "main"]

GOALS = {64: 3e9, 256: 4e9}
"""Bytes at 50,000 images, by their height and width."""


class _Stub:
    """Stands where a runtime would; its name is in the cache's key."""

    def __init__(self, name: str) -> None:
        self.identity = {"runtime": name}

    def __call__(self, x: NDArray[np.float32], *_: Any) -> NDArray[np.float32]:
        return x

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _noise(runtime: Any, process: Any, plan: Any, indices: range, shape: tuple[int, ...], **_: Any) -> Any:
    """In the sampler's place: images that depend on their first index, a little off for the second model."""
    x = np.random.default_rng(indices.start).standard_normal((len(indices), *shape), np.float32) / 3
    return x if runtime.identity["runtime"] == "float" else x + np.float32(0.02) * np.roll(x, 1, axis=-1)


def measure(n: int, size: int, dim: int, folder: Path) -> dict[str, Any]:
    """Two models of n images, compared; peak bytes and seconds."""
    weights = np.random.default_rng(0).standard_normal((3 * 16 * 16, dim)).astype(np.float32) / 300

    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        step = size // 16
        found: NDArray[np.float32] = pixels[:, :, ::step, ::step].reshape(len(pixels), -1) @ weights
        return np.maximum(found, 0)

    shape = (3, size, size)
    net = Extractor("onnx", "stub", "ab" * 32, dim, shape, "none", {"backend": "stub"}, features, 256)
    statistics = reference_from_moments(Moments(n, np.full(dim, 2.0), np.diag(np.linspace(1, 2, dim))))
    source = ReferenceSource("statistics", "stub", "cd" * 32, n, shape)
    reference = MeasuredReference(net, statistics, source)
    sampling = Sampling(SamplingSettings(), 0, 64, "round", net, Cache(folder, print))
    samples.sample = _noise  # type: ignore[attr-defined]
    start = time.perf_counter()
    sides = []
    for name in ("float", "quantized"):
        opening = Opening(Path(name))
        process = ProcessConfig(schedule="cosine")
        model = Model(_Stub(name), process, shape, None, name, "fp32", "raw", name, 1, None, opening)
        drawn = SampleSet(model, sampling)
        drawn.grow(n)
        drawn.images(np.arange(min(n, 32)))
        sides.append(drawn.features(n, reference))
    found = compare(*sides)
    return {
        "n": n,
        "size": size,
        "dim": dim,
        "raw": found.drift.raw,
        "seconds": time.perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "goal_bytes": GOALS.get(size),
    }


def main() -> None:
    """Measure, print and write what was found; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(options.n, options.size, options.dim, Path(name))
    print(json.dumps(found))
    if options.out is not None:
        options.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    sys.exit(found["goal_bytes"] is not None and found["peak_bytes"] > found["goal_bytes"])


if __name__ == "__main__":
    main()
