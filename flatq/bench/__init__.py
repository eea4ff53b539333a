"""The benchmark: how long a network evaluation takes, float and quantized, on every runtime side by side.

`timing` has the clock, the rounds and the statistics; `models_on_runtimes` what runs where; `worker` runs one
of them in a process of its own; `result` is what is kept and drawn.
"""

from __future__ import annotations

from flatq.bench.models_on_runtimes import BenchTask
from flatq.bench.result import BenchResult, read_result, write_result
from flatq.bench.run import bench

__all__ = ["BenchResult", "BenchTask", "bench", "read_result", "write_result"]
