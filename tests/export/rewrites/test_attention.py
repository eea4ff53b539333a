"""Attention rewritten: against float64 in the forms in which it is decomposed, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_graphs import model, node, operators, run

from flatq.export.rewrites import tune

HEADS, SIZE, QUERIES, KEYS = 3, 4, 10, 6
SHAPES = {"q": QUERIES, "k": KEYS, "v": KEYS}


def _attention(
    *,
    flat: bool = True,
    scales: tuple[str, ...] = ("query", "key"),
) -> onnx.ModelProto:
    """q, k, v [batch, tokens, heads * size] -> y, as torch's exporter writes it.

    Args:
        flat: the keys are turned as [batch * heads, tokens, size].
        scales: where a factor 0.5 stands: query, key, scores; "divided" for a division of the scores by 2.
    """
    nodes = []
    for name in "qkv":
        nodes += [
            node("Reshape", f"{name} {name}_split", f"{name}4"),
            node("Transpose", f"{name}4", f"{name}h", perm=[0, 2, 1, 3]),
        ]
    if flat:
        nodes += [
            node("Reshape", "kh flat", "k3"),
            node("Transpose", "k3", "k3t", perm=[0, 2, 1]),
            node("Reshape", "k3t unflat", "kt"),
        ]
    else:
        nodes += [node("Transpose", "kh", "kt", perm=[0, 1, 3, 2])]
    query, key, scores = "qh", "kt", "s"
    if "query" in scales:
        nodes.append(node("Mul", "qh half", query := "qs"))
    if "key" in scales:
        nodes.append(node("Mul", "kt half", key := "ks"))
    nodes.append(node("MatMul", f"{query} {key}", "s"))
    if "scores" in scales:
        nodes.append(node("Mul", "s half", scores := "ss"))
    if "divided" in scales:
        nodes.append(node("Div", f"{scores} two", scores := "sd"))
    nodes += [
        node("Softmax", scores, "p", axis=-1),
        node("MatMul", "p vh", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot join", "y"),
    ]
    constants: dict[str, Any] = {f"{k}_split": np.array([-1, n, HEADS, SIZE]) for k, n in SHAPES.items()}
    constants |= {
        "flat": np.array([-1, KEYS, SIZE]),
        "unflat": np.array([-1, HEADS, SIZE, KEYS]),
        "join": np.array([-1, QUERIES, HEADS * SIZE]),
        "half": np.float32(0.5),
        "two": np.float32(2),
    }
    used = {name for entry in nodes for name in entry.input}
    return model(
        nodes,
        {name: ["batch", n, HEADS * SIZE] for name, n in SHAPES.items()},
        {"y": ["batch", QUERIES, HEADS * SIZE]},
        {name: np.asarray(value) for name, value in constants.items() if name in used},
    )


def _feeds(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        name: rng.standard_normal((n, tokens, HEADS * SIZE)).astype(np.float32) * np.float32(2)
        for name, tokens in SHAPES.items()
    }


def _expected(feeds: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """Vaswani et al. 2017 (arXiv 1706.03762), eq. 1, head by head in float64."""
    n = len(feeds["q"])
    out = np.empty((n, QUERIES, HEADS * SIZE))
    for i in range(n):
        for h in range(HEADS):
            q, k, v = (
                feeds[name][i, :, h * SIZE : (h + 1) * SIZE].astype(np.float64) for name in ("q", "k", "v")
            )
            scores = np.exp(q @ k.T * scale)
            out[i, :, h * SIZE : (h + 1) * SIZE] = scores / scores.sum(1, keepdims=True) @ v
    return out


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("flat", "scales", "scale"),
    [
        (True, ("query", "key"), 0.25),
        (False, ("query", "key"), 0.25),
        (False, ("scores",), 0.5),
        (True, ("key", "divided"), 0.25),
        (False, (), 1.0),
    ],
)
def test_it_computes_the_definition(n: int, flat: bool, scales: tuple[str, ...], scale: float) -> None:
    tuned = _attention(flat=flat, scales=scales)
    (done,) = tune(tuned, "onnxruntime")
    assert (done.rule, done.node, done.refused) == ("attention", "p", None)
    assert (done.inputs, done.output) == (("q", "k", "v"), "y")
    onnx.checker.check_model(tuned, full_check=True)
    assert operators(tuned) == ["MultiHeadAttention"]
    assert {entry.domain: entry.version for entry in tuned.opset_import} == {"": 21, "com.microsoft": 1}
    feeds = _feeds(n)
    # Scores of up to about 30, each rounded to 24 bits.
    np.testing.assert_allclose(run(tuned, feeds)[0], _expected(feeds, scale), rtol=1e-5, atol=1e-5)


def _with(
    *,
    inputs: dict[str, str] | None = None,
    attributes: dict[str, dict[str, Any]] | None = None,
    constants: dict[str, list[int]] | None = None,
    before: dict[str, tuple[onnx.NodeProto, ...]] | None = None,
    output: str | None = None,
) -> onnx.ModelProto:
    """An attention with other inputs or attributes of nodes, constants, nodes put in, or one more output."""
    made = _attention()
    made.graph.output[0].type.tensor_type.ClearField("shape")
    nodes = []
    for entry in made.graph.node:
        name = entry.output[0]
        nodes += (before or {}).get(name, ())
        if name in (inputs or {}):
            nodes.append(node(entry.op_type, (inputs or {})[name], name))
            nodes[-1].attribute.extend(entry.attribute)
        else:
            nodes.append(entry)
        for key, value in (attributes or {}).get(name, {}).items():
            del nodes[-1].attribute[:]
            nodes[-1].attribute.append(onnx.helper.make_attribute(key, value))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    for value in made.graph.initializer:
        if value.name in (constants or {}):
            value.CopyFrom(onnx.numpy_helper.from_array(np.array((constants or {})[value.name]), value.name))
    if output is not None:
        made.graph.node.append(node("Identity", output, "z"))
        made.graph.output.append(onnx.helper.make_empty_tensor_value_info("z"))
    return made


_QUANTIZED = (node("QuantizeLinear", "qs half", "qq"), node("DequantizeLinear", "qq half", "qdq"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"before": {"p": (node("Add", "s half", "masked"),)}, "inputs": {"p": "masked"}},
            "the scores come from Add, not MatMul (masked)",
        ),
        ({"attributes": {"p": {"axis": 2}}}, "the weights do not sum to 1 over the keys (p)"),
        ({"output": "p"}, "the weights go to MatMul and Identity, not to one MatMul (p)"),
        ({"output": "s"}, "the scores are read elsewhere too (s)"),
        ({"inputs": {"o": "vh p"}}, "the weights are the product's second factor (o)"),
        (
            {"before": {"s": _QUANTIZED}, "inputs": {"s": "qdq ks"}},
            "the queries come from DequantizeLinear, not Transpose (qdq)",
        ),
        ({"inputs": {"s": "q ks"}}, "the queries are an input or a constant (s)"),
        ({"attributes": {"vh": {"perm": [0, 2, 3, 1]}}}, "the values are transposed otherwise (vh)"),
        ({"attributes": {"ot": {"perm": [0, 2, 3, 1]}}}, "the attended values are transposed otherwise (ot)"),
        ({"attributes": {"k3t": {"perm": [1, 2, 0]}}}, "the keys are turned otherwise (k3t)"),
        (
            {"constants": {"flat": [-1, SIZE, KEYS]}},
            "the keys are not flattened to [batch * heads, tokens, size] (k3)",
        ),
        (
            {"constants": {"unflat": [-1, SIZE, HEADS, KEYS]}},
            "the keys are not turned to [batch, heads, size, tokens] (p)",
        ),
        (
            {"constants": {"v_split": [-1, KEYS, SIZE, HEADS]}},
            "queries, keys and values have heads of different number or size (p)",
        ),
        (
            {"constants": {"q_split": [-1, QUERIES // 2, HEADS, SIZE]}},
            "the heads do not divide the last axis alone (q4)",
        ),
        (
            {"constants": {"join": [-1, QUERIES // 2, HEADS * SIZE]}},
            "the heads do not divide the last axis alone (y)",
        ),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(changes: dict[str, Any], reason: str) -> None:
    made = _with(**changes)
    before = made.SerializeToString(deterministic=True)
    (done,) = tune(made, "onnxruntime")
    assert done.refused == reason
    assert (done.inputs, done.output) == ((), "")
    assert made.SerializeToString(deterministic=True) == before
