"""GroupNormalization rewritten: against float64, with and without a scale and shift, and refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx_graphs import copy, model, node, operators, run

from flatq.export.rewrites import tune

C, GROUPS, EPSILON = 12, 4, 1e-3
RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal(C).astype(np.float32)
BIAS = RNG.standard_normal(C).astype(np.float32)


def _norm(source: str = "x", output: str = "n") -> onnx.NodeProto:
    return node("GroupNormalization", f"{source} weight bias", output, num_groups=GROUPS, epsilon=EPSILON)


def _plain(*size: int) -> onnx.ModelProto:
    return model(
        [_norm()], {"x": ["batch", C, *size]}, {"n": ["batch", C, *size]}, {"weight": WEIGHT, "bias": BIAS}
    )


def _modulated(*rest: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    return model(
        [_norm(), node("Mul", "n scale", "m"), node("Add", "shift m", "y"), *rest],
        {"x": ["batch", C, 5, 3], "scale": ["batch", C, 1, 1], "shift": ["batch", C, 1, 1]},
        {name: ["batch", C, 5, 3] for name in outputs},
        {"weight": WEIGHT, "bias": BIAS},
    )


def _x(n: int, *size: int) -> np.ndarray:
    """Channels of different means and widths."""
    widths, means = RNG.uniform(0.1, 3, (2, C, *[1] * len(size)))
    return (RNG.standard_normal((n, C, *size)) * widths + means).astype(np.float32)


def _expected(x: np.ndarray) -> np.ndarray:
    """Wu, He 2018 (arXiv 1803.08494), eq. 1 to 4 and 6, in float64."""
    groups = x.astype(np.float64).reshape(len(x), GROUPS, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + EPSILON)
    columns = (1, C, *[1] * (x.ndim - 2))
    return normal.reshape(x.shape) * WEIGHT.reshape(columns) + BIAS.reshape(columns)


@pytest.mark.parametrize("size", [(5, 3), (7,)])
@pytest.mark.parametrize("n", [1, 3])
def test_it_computes_the_definition(n: int, size: tuple[int, ...]) -> None:
    tuned = _plain(*size)
    (done,) = tune(tuned, "onnxruntime")
    assert (done.rule, done.node, done.refused) == ("group-norm", "n", None)
    assert (done.inputs, done.output) == (("x",), "n")
    onnx.checker.check_model(tuned, full_check=True)
    assert operators(tuned) == ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
    x = _x(n, *size)
    # Some ten float32 operations on numbers of size 1 to 10.
    np.testing.assert_allclose(run(tuned, {"x": x})[0], _expected(x), rtol=1e-5, atol=1e-5)


def test_a_scale_and_a_shift_are_folded_in() -> None:
    tuned = _modulated()
    (done,) = tune(tuned, "onnxruntime")
    assert (done.inputs, done.output) == (("x", "scale", "shift"), "y")
    onnx.checker.check_model(tuned, full_check=True)
    feeds = {"x": _x(3, 5, 3), "scale": _x(3, 1, 1), "shift": _x(3, 1, 1)}
    expected = _expected(feeds["x"]) * feeds["scale"] + feeds["shift"]
    np.testing.assert_allclose(run(tuned, feeds)[0], expected, rtol=1e-5, atol=1e-5)
    # On whole tensors: one product and one sum. The others are on [batch, C, 1, 1].
    assert sorted(operators(tuned)) == sorted(
        ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add", "Mul", "Mul", "Add"]
    )
    assert list(tuned.graph.node[-2].input) == ["n.back", "n.scale"]


@pytest.mark.parametrize(
    "changed",
    [
        _modulated(node("Neg", "n", "z"), outputs=("y", "z")),
        _modulated(outputs=("y", "n")),
    ],
)
def test_what_others_read_is_kept(changed: onnx.ModelProto) -> None:
    plain = copy(changed)
    (done,) = tune(changed, "onnxruntime")
    assert done.output == "n"
    feeds = {"x": _x(2, 5, 3), "scale": _x(2, 1, 1), "shift": _x(2, 1, 1)}
    for found, expected in zip(run(changed, feeds), run(plain, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mean_far_from_zero_costs_no_more_than_before() -> None:
    plain = _plain(16, 16)
    tuned = copy(plain)
    tune(tuned, "onnxruntime")
    x = _x(2, 16, 16) + np.float32(300)
    before, after = (np.abs(run(m, {"x": x})[0] - _expected(x)).max() for m in (plain, tuned))
    assert after <= before
    assert after < 1e-3  # half a unit in the last place of 300, over the smallest group's width, twice


def _computed_weight() -> onnx.ModelProto:
    return model(
        [node("Add", "weight one", "w"), node("GroupNormalization", "x w bias", "n", num_groups=GROUPS)],
        {"x": ["batch", C, 5, 3], "one": [C]},
        {"n": ["batch", C, 5, 3]},
        {"weight": WEIGHT, "bias": BIAS},
    )


def _free_size() -> onnx.ModelProto:
    size = ["batch", C, "height", 3]
    return model([_norm()], {"x": size}, {"n": size}, {"weight": WEIGHT, "bias": BIAS})


def _unknown_shape() -> onnx.ModelProto:
    size = ["batch", C, 5, 3]
    made = model(
        [node("Identity", "x", "r"), _norm("r")], {"x": size}, {"n": size}, {"weight": WEIGHT, "bias": BIAS}
    )
    made.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    made.graph.node[0].domain = "elsewhere"
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (_computed_weight, "weight or bias is computed, not a constant (n)"),
        (_free_size, "a size other than the batch's is not fixed (n)"),
        (_unknown_shape, "the shape of the input is not known (n)"),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(refused: Callable[[], onnx.ModelProto], reason: str) -> None:
    made = refused()
    before = made.SerializeToString(deterministic=True)
    (done,) = tune(made, "onnxruntime")
    assert done.refused == reason
    assert made.SerializeToString(deterministic=True) == before
