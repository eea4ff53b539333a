"""Attention decomposed: the graph, its ranges, and what the artifact holds of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_weights
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from flatq.backends import RuntimeSettings
from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint, save_checkpoint
from flatq.layer_decisions import decide_layers
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.attention import decompose, planned_attentions, quantized_attentions
from flatq.quantize.lowering import Lowered, lower
from flatq.quantize.methods import WeightRounding
from flatq.quantize.methods.layer import quant_products
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.trace import find_layers, trace
from flatq.recipe import ATTENTION_PORTS, PRESETS, recipe_for_bits

CALIBRATION = CalibrationPlan(images=2, steps=2)
ATTENTION = "unet.mid_block.attentions.0"


def _quantized(checkpoint: Checkpoint, method: str = "rtn", **options: Any) -> Artifact:
    recipe = recipe_for_bits(**{"bits": 8, "attention_bits": 8, "activation_range": "minmax", **options})
    rounding = WeightRounding.model_validate({"method": method, "adaround": {"iterations": 3}})
    return quantize_checkpoint(checkpoint, recipe, calibration=CALIBRATION, threads=1, rounding=rounding)


def _inputs(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) * 999 // max(n - 1, 1)


def test_in_float_the_network_stays_what_it_was_and_so_do_its_candidates(tiny: Checkpoint) -> None:
    network = tiny.network()
    graph = trace(network, tiny.model)
    before = [layer.candidate for layer in find_layers(graph)]
    names = planned_attentions(graph, recipe_for_bits(8, attention_bits=8))
    assert names == [c.node for c in before if c.kind == "attention"]
    assert len(names) == 4
    with torch.no_grad():
        expected = network(*_inputs())
        decompose(graph, names)
        found = graph(*_inputs())
    # Another order of float32 operations.
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert [layer.candidate for layer in find_layers(graph)] == before
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not any("scaled_dot_product" in target for target in targets)
    assert targets.count("aten.matmul.default") == 2 * len(names)


def test_where_nothing_is_asked_for_the_graph_stays_as_it_was(tiny: Checkpoint) -> None:
    graph = trace(tiny.network(), tiny.model)
    assert planned_attentions(graph, PRESETS["w8a8"]) == []
    code = graph.code
    decompose(graph, [])
    assert graph.code == code
    decompose(graph, [ATTENTION])
    assert graph.code != code


class _Attending(nn.Module):
    """One attention, called as `arguments` say."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.arguments = arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x - 1, **self.arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"is_causal": True}, "a causal mask"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.bool)}, "a mask"),
        ({"dropout_p": 0.5}, "dropout"),
        ({"scale": 0.3}, ""),
    ],
)
def test_what_is_more_than_two_products_stays_float_with_a_reason(
    arguments: dict[str, Any], words: str
) -> None:
    module = _Attending(**arguments)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    graph: Any = torch.export.export(module, (x,)).module()
    recipe = recipe_for_bits(8, attention_bits=8)
    (layer,) = find_layers(graph)
    decisions = decide_layers(recipe, [layer.candidate])
    if words:
        ((port, scheme, reason),) = [(d.port, d.scheme, d.reason) for d in decisions]
        assert (port, scheme) == ("products", None)
        assert f"attention with {words} is not decomposed" in reason
        assert planned_attentions(graph, recipe) == []
        return
    assert tuple(d.port for d in decisions) == ATTENTION_PORTS
    decompose(graph, planned_attentions(graph, recipe))
    exact = torch.softmax(x.double() @ (x.double() * 2).mT * 0.3, -1) @ (x.double() - 1)
    torch.testing.assert_close(graph(x).double(), exact, atol=1e-5, rtol=1e-5)


def test_ranges_are_those_of_the_factors(tiny: Checkpoint) -> None:
    """Seen by hooks of diffusers' own modules, on the inputs that calibration draws."""
    artifact = _quantized(tiny)
    network = tiny.network()
    block = network.get_submodule(ATTENTION)
    seen: dict[str, list[torch.Tensor]] = {"query": [], "key": [], "value": []}
    for name, letter in zip(seen, "qkv", strict=True):
        block.get_submodule(f"to_{letter}").register_forward_hook(
            lambda _module, _args, output, name=name: seen[name].append(output.detach())
        )
    from flatq.calib.inputs import collect_inputs
    from flatq.runtime.torch import TorchRuntime

    with TorchRuntime(network, threads=1) as runtime:
        collect_inputs(runtime, tiny.process, CALIBRATION, tiny.model.image_shape)
    found = {port: artifact.ranges[f"{ATTENTION}.{port}"] for port in ATTENTION_PORTS}
    size = 8  # of a head
    for name, values in seen.items():
        factor = 1 / math.sqrt(size) if name == "query" else 1.0
        joined = torch.cat(values) * factor
        expected = [[float(joined.min()), float(joined.max())]]
        torch.testing.assert_close(found[name], torch.tensor(expected), atol=1e-5, rtol=1e-5)
    shares = []
    for query, key in zip(seen["query"], seen["key"], strict=True):
        q, k = (v.unflatten(-1, (-1, size)).transpose(1, 2).double() for v in (query, key))
        shares.append(torch.softmax(q @ k.mT / math.sqrt(size), -1))
    joined = torch.cat(shares)
    expected = torch.tensor([[float(joined.min()), float(joined.max())]])
    torch.testing.assert_close(found["probabilities"], expected, atol=1e-5, rtol=1e-5)
    assert {name for name in artifact.ranges if name.startswith(f"{ATTENTION}.")} >= {
        f"{ATTENTION}.{port}" for port in ATTENTION_PORTS
    }


def _values(lowered: Lowered, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}

    class Keep(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            values[node.name] = super().run_node(node)
            return values[node.name]

    with torch.no_grad():
        Keep(lowered.graph).run(*inputs)
    return values


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "generic"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_lowered_products_are_the_formula(bits: int, target: Any, tiny: Checkpoint) -> None:
    """Both factors on the grid of the closed form, by target, and the products' results in float."""
    artifact = _quantized(tiny, attention_bits=bits)
    lowered = lower(artifact, target)
    values = _values(lowered, _inputs(2))
    assert len(lowered.products) == 4
    nodes = {node.name: node for node in lowered.graph.graph.nodes}
    scores, attended = (nodes[name] for name in lowered.products[ATTENTION])
    softmax = next(iter(scores.users))
    assert softmax.target is torch.ops.aten.softmax.int  # no quantizer behind the scores
    assert all("quantize" not in str(user.target) for user in attended.users)
    read = [(scores, 0), (scores, 1), (attended, 0), (attended, 1)]
    for port, (node, index) in zip(ATTENTION_PORTS, read, strict=True):
        dequantize = node.args[index]
        quantize = dequantize.args[0]
        assert "dequantize_per_tensor" in str(dequantize.target), port
        source = quantize.args[0]
        if source.target is torch.ops.aten.clamp.default:
            assert bits == 4
            source = source.args[0]
        low, high = artifact.ranges[f"{ATTENTION}.{port}"][0].double().tolist()
        if port == "probabilities" and target != "tensorrt":
            first, last, step = 0, 2**bits - 1, high / (2**bits - 1)
        else:
            last = 2 ** (bits - 1) - 1
            first, step = -last - 1, max(-low, high) / (last if bits == 8 else min(last, last + 1))
        expected = (values[source.name].double() / step).round().clamp(first, last) * step
        error = (values[dequantize.name].double() - expected).abs()
        # A value on the edge of two codes may go either way.
        assert float((error < 1e-5 * step).double().mean()) > 0.999, port
        assert len(np.unique(values[quantize.name].numpy())) <= 2**bits
        middle = 2 ** (bits - 1) if target == "onnxruntime" and port != "probabilities" else 0
        assert int(quantize.args[2]) == middle


@pytest.mark.slow
def test_the_methods_see_what_quantized_products_yield(tiny: Checkpoint) -> None:
    """Layers in front of the first attention are rounded as ever, what reads it for what it yields now."""
    first = "unet.down_blocks.1.attentions.0"
    for method in ("rtn", "gptq"):
        coarse, exact = (
            _quantized(tiny, method, bits=4, attention_bits=bits, activation_bits=32) for bits in (4, 32)
        )
        same = {name: torch.equal(codes, exact.integers[name]) for name, codes in coarse.integers.items()}
        assert same[f"{first}.to_v"]
        assert same[f"{first}.to_out.0"] == (method == "rtn")


def test_what_stands_in_for_a_product_is_the_formula(tiny: Checkpoint) -> None:
    artifact = _quantized(tiny)
    graph = trace(tiny.network(), tiny.model)
    decompose(graph, quantized_attentions(artifact.manifest.decisions))
    layers = find_layers(graph)
    found = quant_products(layers, artifact.manifest.decisions, artifact.ranges)
    assert len(found) == 8
    (layer,) = (layer for layer in layers if layer.candidate.node == ATTENTION)
    assert layer.scores is not None
    generator = torch.Generator().manual_seed(0)
    steps = {}
    for port in ATTENTION_PORTS:
        low, high = artifact.ranges[f"{ATTENTION}.{port}"][0].double().tolist()
        steps[port] = high / 255 if port == "probabilities" else max(-low, high) / 127
    for node, (one, other), shape in (
        (layer.scores, ("query", "key"), (2, 4, 5, 8)),
        (layer.node, ("probabilities", "value"), (2, 4, 8, 8)),
    ):
        bottom = 0 if one == "probabilities" else -128
        # Codes and beyond: multiples of a step, so that none is on an edge.
        a, b = (torch.randint(-300, 300, s, generator=generator).double() for s in (shape, (2, 4, 8, 6)))
        result = found[node]((a * steps[one]).float(), (b * steps[other]).float())
        top = 255 if one == "probabilities" else 127
        exact = (a.clamp(bottom, top) @ b.clamp(-128, 127)) * steps[one] * steps[other]
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """2 x 2 images, so that the middle block attends to one token; the first attention's keys are zero."""
    config = ModelConfig(
        image_size=2,
        image_channels=1,
        out_channels=1,
        unet={
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "attn_norm_num_groups": 4,
        },
    )
    weights = random_weights(config)
    for name in ("weight", "bias"):
        weights[f"down_blocks.0.attentions.0.to_k.{name}"].zero_()
    saved = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(saved, tmp_path_factory.mktemp("lone") / "lone.pt")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_constant_keys_and_one_token_give_numbers(bits: int, lone: Checkpoint, tmp_path: Path) -> None:
    from flatq.export.deploy import export_artifact
    from flatq.models import open_model

    artifact = _quantized(lone, attention_bits=bits, activation_range="mse")
    assert all(bool(value.isfinite().all()) for value in artifact.ranges.values())
    lowered = lower(artifact, "onnxruntime")
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 1, 2, 2, generator=generator), torch.tensor([0, 500, 999])
    values = _values(lowered, (x, t))
    nodes = {node.name: node for node in lowered.graph.graph.nodes}
    uniform, single = (
        nodes[lowered.products[name][1]]
        for name in ("unet.down_blocks.0.attentions.0", "unet.mid_block.attentions.0")
    )
    step = 0.25 / (2**bits - 1)
    assert torch.allclose(values[uniform.args[0].name], torch.tensor(0.25), atol=step)
    # The only weight is 1, and its own code: the value itself comes out.
    torch.testing.assert_close(values[single.name], values[single.args[1].name], rtol=1e-6, atol=0)
    write_artifact(artifact, tmp_path / "a")
    export_artifact(tmp_path / "a", "onnxruntime", tmp_path / "a" / "onnxruntime")
    with open_model(tmp_path / "a", RuntimeSettings(threads=1)).runtime as runtime:
        assert np.isfinite(runtime(x.numpy(), t.numpy())).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq", "adaround"])
def test_the_same_seed_gives_the_same_bytes(method: str, tiny: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_artifact(_quantized(tiny, method, activation_range="mse"), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_it_comes_back_from_the_file(tiny: Checkpoint, tmp_path: Path) -> None:
    artifact = _quantized(tiny)
    write_artifact(artifact, tmp_path / "a")
    again = read_artifact(tmp_path / "a")
    assert again.manifest.decisions == artifact.manifest.decisions
    assert again.ranges.keys() == artifact.ranges.keys()
    lowered = lower(again, "onnxruntime")
    with torch.no_grad():
        expected = lower(artifact, "onnxruntime").graph(*_inputs())
        assert torch.equal(lowered.graph(*_inputs()), expected)


def test_an_artifact_from_before_the_option_still_loads(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """Its manifest has nothing that the option added: it is what the preset writes today."""
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    content = json.loads((tmp_path / "a" / "flatq.json").read_text())
    (rule,) = (r for r in content["recipe"]["rules"] if r["kinds"] == ["attention"])
    assert rule["activation"] is None
    ports = {d["port"] for d in content["decisions"] if d["kind"] == "attention"}
    assert ports == {"products"}
    assert set(content["decisions"][0]) == {
        "node", "kind", "port", "shape", "macs", "group", "scheme", "reason",
    }  # fmt: skip
    assert set(content["recipe"]) == {
        "name", "rules", "edges", "activation_range", "percentile", "weight_range", "split_shortcuts",
        "low_rank", "equalize",
    }  # fmt: skip
    assert lower(read_artifact(tmp_path / "a"), "generic").products == {}
