"""The threads of the runtimes: as many as asked for, and asleep between calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
import torch

from flatq.runtime.base import default_threads
from flatq.runtime.torch import TorchRuntime

_IDLE = """
import sys, time
from pathlib import Path
import numpy as np
from flatq.runtime.onnxruntime import OnnxRuntime

x, t = np.ones((8, 3, 32, 32), np.float32), np.zeros(8, np.int64)
with OnnxRuntime(Path(sys.argv[1]), threads=2) as runtime:
    runtime(x, t)
    fractions = []
    for _ in range(15):
        runtime(x, t)
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(0.02)
        fractions.append((time.process_time() - cpu) / (time.perf_counter() - wall))
print(float(np.median(fractions)))
"""


class _Counting(torch.nn.Module):
    """Returns its image and keeps the number of threads that torch has during the call."""

    found = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.found = torch.get_num_threads()
        return x


def test_each_torch_runtime_has_its_own_threads_and_leaves_the_callers_alone() -> None:
    x, t = np.zeros((1, 1, 4, 4), np.float32), np.zeros(1, np.int64)
    before = torch.get_num_threads()
    counts = [before + 1, before + 2]
    modules = [_Counting(), _Counting()]
    runtimes = [TorchRuntime(module, threads=count) for module, count in zip(modules, counts, strict=True)]
    assert torch.get_num_threads() == before
    with runtimes[0], runtimes[1]:
        for runtime in runtimes:
            runtime(x, t)
            assert torch.get_num_threads() == before
    assert [module.found for module in modules] == counts
    assert [runtime.identity["threads"] for runtime in runtimes] == counts
    assert torch.get_num_threads() == before


def test_onnx_runtime_takes_no_processor_time_between_calls(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = onnx.parser.parse_graph(
        """net (float[N, 3, 32, 32] x, int64[N] t) => (float[N, 64, 32, 32] y) {
            z = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, weight)
            y = Relu (z)
        }"""
    )
    weight = np.random.default_rng(0).standard_normal((64, 3, 3, 3)).astype(np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    ran = subprocess.run([sys.executable, "-c", _IDLE, str(path)], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.02


def test_threads_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has them; a launcher's own OMP_NUM_THREADS does not count."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = default_threads()
    assert cores >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", f"{cores + 3}")
    assert default_threads() == cores + 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", f"{cores}")
    assert default_threads() == 1
