"""torch as a runtime: traced graphs on a device other than the one they were traced on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import lower
from flatq.runtime.torch import TorchRuntime, move_to


def test_a_lowered_graph_runs_on_another_device(tiny_artifacts: dict[str, Artifact]) -> None:
    meta = torch.device("meta")
    graph = move_to(lower(tiny_artifacts["w8a8"], "onnxruntime").graph, meta)
    output = graph(torch.empty(2, 3, 16, 16, device=meta), torch.zeros(2, dtype=torch.int64, device=meta))
    assert output.device == meta
    assert output.shape == (2, 3, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_a_lowered_graph_computes_the_same_on_cuda(tiny_artifacts: dict[str, Artifact], recipe: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 16, 16), dtype=np.float32)
    t = np.array([0, 10, 500, 999], dtype=np.int64)
    outputs = []
    for device in ("cpu", "cuda"):
        graph = lower(tiny_artifacts[recipe], "onnxruntime").graph
        with TorchRuntime(graph, device=device) as runtime:
            outputs.append(runtime(x, t))
    error = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    assert error < 0.02  # a value on the edge between two steps may round to the other one
