"""Float branches of low rank: the factors, the graph, what the artifact holds of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx
from torch.nn import functional as F  # noqa: N812

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.errors import ArtifactError
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.low_rank import branched, factor, split_branches
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.methods import WeightRounding
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.trace import trace
from flatq.recipe import recipe_for_bits

CALIBRATION = CalibrationPlan(images=2, steps=2)
CONV, LINEAR = "unet.down_blocks.0.downsamplers.0.conv", "unet.mid_block.attentions.0.to_q"
"""A convolution of stride 2, and a linear layer on three axes without a bias of its own in some networks."""


def _quantized(checkpoint: Checkpoint, method: str = "rtn") -> Artifact:
    recipe = recipe_for_bits(4, 4, low_rank=4)
    rounding = WeightRounding.model_validate({"method": method})
    return quantize_checkpoint(checkpoint, recipe, calibration=CALIBRATION, threads=1, rounding=rounding)


@pytest.fixture(scope="module")
def artifact(tiny: Checkpoint) -> Artifact:
    return _quantized(tiny)


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return second.double().flatten(1) @ first.double().flatten(1)


@pytest.mark.parametrize("shape", [(6, 5), (5, 3, 3, 3), (4, 7, 1, 1)])
@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_left_are_the_smaller_singular_values(shape: tuple[int, ...], rank: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    first, second = factor(weight, rank)
    assert first.shape == (rank, *shape[1:])
    assert second.shape == (shape[0], rank, *[1] * (len(shape) - 2))
    left = (weight.double().flatten(1) - _product(first, second)).square().sum()
    values = np.linalg.svd(weight.double().flatten(1).numpy(), compute_uv=False)
    assert float(left) == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-6)


def test_a_branch_of_full_rank_is_the_layer() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for rank in (5, 100):
        first, second = factor(weight, rank)
        assert len(first) == 5
        # Two factors in float32, each to 2^-24, and sums of five products.
        torch.testing.assert_close(_product(first, second), weight.double().flatten(1), atol=2e-6, rtol=0)


def test_weights_of_lower_rank_and_of_zeros_give_numbers() -> None:
    one = torch.outer(torch.arange(4.0), torch.arange(1.0, 7.0))
    for weight in (one, torch.zeros(4, 6), torch.zeros(4, 6, 1, 1)):
        first, second = factor(weight, 3)
        assert bool(first.isfinite().all() and second.isfinite().all())
        torch.testing.assert_close(_product(first, second), weight.double().flatten(1), atol=1e-5, rtol=0)


def test_in_float_the_network_stays_what_it_was(tiny: Checkpoint) -> None:
    network = tiny.network()
    weight = network.state_dict()[f"{CONV}.weight"].clone()
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 3, 16, 16, generator=generator), torch.tensor([0, 500, 999])
    with torch.no_grad():
        before = network(x, t)
        plain = trace(network, tiny.model)
        factors = split_branches(plain, {CONV: 4, LINEAR: 4})
        after = plain(x, t)
    assert set(factors) == {f"{n}.low_rank.{part}.weight" for n in (CONV, LINEAR) for part in ("down", "up")}
    assert torch.equal(
        network.state_dict()[f"{CONV}.weight"], weight.float()
    )  # the network's own is left alone
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)  # another order of float32 sums


def _values(lowered: Lowered, inputs: tuple[torch.Tensor, ...]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            values[node] = super().run_node(node)
            return values[node]

    with torch.no_grad():
        Keep(lowered.graph).run(*inputs)
    return values


@pytest.mark.parametrize("name", [CONV, LINEAR])
def test_the_output_is_the_formula(name: str, artifact: Artifact) -> None:
    """Q(W - L2 L1) on the quantized input, plus L2 (L1 x) on the float one."""
    lowered = lower(artifact, "generic")
    generator = torch.Generator().manual_seed(1)
    values = _values(lowered, (torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([3, 700])))
    nodes = {str(node.target): node for node in values if node.op == "get_attr"}
    (down,) = nodes[f"{name}.low_rank.down.weight"].users
    (up,) = nodes[f"{name}.low_rank.up.weight"].users
    (total,) = up.users
    x = values[down.args[0]]  # type: ignore[index]

    low, high = artifact.ranges[f"{name}.input"][0].double().tolist()
    step = float(np.float32((max(high, 0) - min(low, 0)) / 15))
    zero = round(-min(low, 0) / step)
    read = ((x.double() / step).round() + zero).clamp(0, 15).sub(zero) * step
    codes, scale = artifact.integers[name].double(), artifact.grids[name].scale.double()
    weight = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
    first, second = (artifact.rest[f"{name}.low_rank.{part}.weight"].double() for part in ("down", "up"))
    bias = artifact.rest[f"{name}.bias"].double() if f"{name}.bias" in artifact.rest else None
    if codes.ndim == 4:
        expected = F.conv2d(read, weight, bias, stride=2, padding=1)
        expected += F.conv2d(F.conv2d(x.double(), first, stride=2, padding=1), second)
    else:
        expected = F.linear(read, weight, bias) + F.linear(F.linear(x.double(), first), second)
    # Sums of up to 144 products in float32; a value on the edge of two codes may be a step of 4 bits off.
    error = (values[total] - expected).abs()
    assert float(error.median()) < 1e-6
    assert float((error < 1e-4).double().mean()) > 0.99


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_branch_reads_floats_and_the_sum_stands_behind_the_layers_quantizer(
    target: Any, artifact: Artifact
) -> None:
    lowered = lower(artifact, target)
    assert len(branched(artifact.manifest.decisions)) > 20
    nodes = {str(n.target): n for n in lowered.graph.graph.nodes if n.op == "get_attr"}
    (down,) = nodes[f"{CONV}.low_rank.down.weight"].users
    (up,) = nodes[f"{CONV}.low_rank.up.weight"].users
    (total,) = up.users
    main = total.args[0]
    assert "dequantize" not in str(down.args[0].target) or target == "onnxruntime"
    assert ("dequantize_per_tensor" in str(main.target)) == (target == "onnxruntime")
    assert lowered.layers[CONV] in {str(n.target) for n in lowered.graph.graph.nodes}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_same_seed_gives_the_same_bytes(method: str, tiny: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_artifact(_quantized(tiny, method), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_the_factors_come_back_from_the_file(artifact: Artifact, tmp_path: Path) -> None:
    write_artifact(artifact, tmp_path / "a")
    again = read_artifact(tmp_path / "a")
    assert branched(again.manifest.decisions) == branched(artifact.manifest.decisions)
    for key, value in artifact.rest.items():
        assert torch.equal(again.rest[key], value), key
    assert all(bool(value.isfinite().all()) for value in again.rest.values())


def test_an_artifact_from_before_the_option_still_loads(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    write_artifact(tiny_artifacts["w4a4"], tmp_path / "a")
    path = tmp_path / "a" / "flatq.json"
    content = json.loads(path.read_text())
    assert content["recipe"].pop("low_rank") == 0
    path.write_text(json.dumps(content))
    assert lower(read_artifact(tmp_path / "a"), "generic").layers


def test_a_missing_factor_is_refused(artifact: Artifact) -> None:
    rest = {k: v for k, v in artifact.rest.items() if k != f"{CONV}.low_rank.up.weight"}
    with pytest.raises(ArtifactError, match="do not fit"):
        lower(dataclasses.replace(artifact, rest=rest), "generic")
