"""What a model takes is what its specs say: a timestep may be float32, from the network to the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flatq.checkpoint import Checkpoint
from flatq.deployment import read_deployment
from flatq.errors import ModelError
from flatq.export.deploy import export_checkpoint
from flatq.inputs import InputSpec
from flatq.models import open_model
from flatq.runtime.base import bind_inputs

INPUTS = (
    InputSpec(name="x", dtype="float32", shape=(3, 4, 4)),
    InputSpec(name="t", dtype="float32", shape=()),
    InputSpec(name="text", dtype="float32", shape=(7, None)),
)
X, T, TEXT = np.zeros((2, 3, 4, 4), np.float32), np.arange(2), np.zeros((2, 7, 5), np.float32)


def test_inputs_are_bound_by_name_and_in_order() -> None:
    feed = bind_inputs(INPUTS, X, T, {"text": TEXT})
    assert list(feed) == ["x", "t", "text"]
    assert feed["t"].dtype == np.float32


@pytest.mark.parametrize(
    ("cond", "reason"),
    [
        ({}, "conditions do not fit"),
        ({"text": TEXT, "label": T}, "conditions do not fit"),
        ({"text": TEXT[:1]}, "text does not fit"),
        ({"text": TEXT[:, :6]}, "text does not fit"),
        ({"text": TEXT.astype(np.float64)}, "text does not fit"),
        ({"text": TEXT + np.nan}, "text holds values that are not finite"),
    ],
)
def test_other_conditions_are_refused(cond: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        bind_inputs(INPUTS, X, T, cond)


def test_a_network_of_float_timesteps_runs_exported(tiny: Checkpoint, tmp_path: Path) -> None:
    model = tiny.model.model_copy(update={"timestep_dtype": "float32"})
    floats = Checkpoint(model, tiny.process, tiny.weights, tiny.provenance, tiny.digest, tiny.source)
    export_checkpoint(floats, "onnxruntime", tmp_path / "fp32")
    assert read_deployment(tmp_path / "fp32")[0].inputs[1].dtype == "float32"
    x, t = np.ones((2, *model.image_shape), np.float32), np.array([7, 900])
    with open_model(tmp_path / "fp32").runtime as runtime:
        found = runtime(x, t)
        np.testing.assert_array_equal(found, runtime(x, t.astype(np.float32)))
    import torch

    with torch.no_grad():
        expected = tiny.network()(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
