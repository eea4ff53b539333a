"""The walk through a network: what the methods and the correction leave behind."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx
from torch.nn import functional as F  # noqa: N812

from flatq.calib.inputs import CalibrationPlan, CalibrationSet
from flatq.checkpoint import Checkpoint
from flatq.errors import UsageError
from flatq.quantize.artifact import Artifact, read_artifact, write_artifact
from flatq.quantize.grid import QuantGrid
from flatq.quantize.lowering import lower
from flatq.quantize.methods import AdaRound, Gptq, WeightRounding
from flatq.quantize.methods.blocks import blocks, pieces
from flatq.quantize.methods.layer import InputRange, QuantLayer, quant_layers
from flatq.quantize.methods.stream import Stream
from flatq.quantize.methods.walk import batches
from flatq.quantize.rounding import quantize_checkpoint
from flatq.quantize.skip_connections import split_skip_connections, whole_weights
from flatq.quantize.trace import find_layers, trace
from flatq.recipe import PRESETS, recipe_for_bits

CALIBRATION = CalibrationPlan(images=2, steps=2)
QUICK = AdaRound(iterations=20, batch=4, warmup=0.1)
METHODS = {
    # On three of the four inputs: those that AdaRound starts from, as it holds one out.
    "gptq": WeightRounding(method="gptq", samples=3),
    "adaround+bias": WeightRounding(method="adaround", bias_correction=True, adaround=QUICK),
}


def _quantize(checkpoint: Checkpoint, name: str, recipe: str = "w4a8") -> Artifact:
    return quantize_checkpoint(
        checkpoint, PRESETS[recipe], calibration=CALIBRATION, threads=1, rounding=METHODS[name]
    )


@pytest.fixture(scope="module")
def refined(tiny: Checkpoint) -> dict[str, Artifact]:
    return {name: _quantize(tiny, name) for name in METHODS}


def _layers(checkpoint: Checkpoint, artifact: Artifact) -> tuple[fx.GraphModule, dict[fx.Node, QuantLayer]]:
    graph = trace(checkpoint.network(), checkpoint.model)
    decisions = artifact.manifest.decisions
    split_skip_connections(graph, whole_weights(decisions))
    found = quant_layers(
        graph, find_layers(graph), decisions, artifact.integers, artifact.grids, artifact.ranges
    )
    for layer in found.values():
        layer.bias = None if layer.bias is None else artifact.rest[str(layer.bias_name)]
    return graph, found


def _inputs(checkpoint: Checkpoint) -> list[tuple[torch.Tensor, ...]]:
    """Those that the methods saw."""
    from flatq.calib.inputs import collect_inputs
    from flatq.runtime.torch import TorchRuntime

    with TorchRuntime(checkpoint.network(), threads=1) as runtime:
        drawn = collect_inputs(runtime, checkpoint.process, CALIBRATION, checkpoint.model.image_shape)
    return batches(drawn, 256, QUICK.batch, torch.Generator().manual_seed(0))


def test_only_codes_and_biases_change(
    tiny_artifacts: dict[str, Artifact], refined: dict[str, Artifact]
) -> None:
    plain = tiny_artifacts["w4a8"]
    for name, artifact in refined.items():
        assert set(artifact.integers) == set(plain.integers)
        for layer, grid in plain.grids.items():
            assert torch.equal(artifact.grids[layer].scale, grid.scale)
            assert artifact.integers[layer].dtype == torch.int8
            low, high = grid.low, grid.high
            assert low <= int(artifact.integers[layer].min()) <= int(artifact.integers[layer].max()) <= high
        moved = {key for key, value in plain.rest.items() if not torch.equal(value, artifact.rest[key])}
        biases = {f"{layer}.bias" for layer in plain.integers} & set(plain.rest)
        assert moved <= biases
        assert (len(moved) > 0.9 * len(biases)) == artifact.manifest.rounding.bias_correction, name
        changed = sum(not torch.equal(artifact.integers[n], plain.integers[n]) for n in plain.integers)
        assert (changed > 10) == (artifact.manifest.rounding.method != "rtn"), name


def test_learned_codes_are_those_of_gptq_or_their_neighbours(refined: dict[str, Artifact]) -> None:
    moved = 0
    for layer, codes in refined["adaround+bias"].integers.items():
        away = (codes.int() - refined["gptq"].integers[layer].int()).abs()
        assert int(away.max()) <= 1, layer
        moved += int(away.sum())
    assert moved > 0


def _left_mean_errors(checkpoint: Checkpoint, artifact: Artifact) -> dict[str, float]:
    """Of each layer the largest mean error of a channel's outputs, in units of the mean absolute error.

    The halves of a split convolution are added up.
    """
    graph, planned = _layers(checkpoint, artifact)
    drawn = _inputs(checkpoint)
    exact, quantized = Stream(graph, drawn), Stream(graph, drawn)
    errors: dict[str, torch.Tensor] = {}
    for block in blocks(graph, planned):
        for piece in pieces(block):
            exact.advance(piece.nodes)
            quantized.advance(piece.nodes, {layer.node: layer.forward for layer in piece.layers})
            for layer in piece.layers:
                pairs = zip(exact.batches, quantized.batches, strict=True)
                error = torch.cat([(a[layer.node] - b[layer.node]).double() for a, b in pairs])
                whole = layer.name.removesuffix(".half0").removesuffix(".half1")
                if layer.weight.ndim == 4:
                    error = error.movedim(1, -1)
                errors[whole] = errors.get(whole, torch.zeros(())) + error
    return {
        name: float(error.flatten(0, -2).mean(0).abs().max() / error.abs().mean())
        for name, error in errors.items()
    }


def test_corrected_biases_leave_no_mean_error(tiny: Checkpoint, refined: dict[str, Artifact]) -> None:
    left = _left_mean_errors(tiny, refined["adaround+bias"])
    # The walk adds the correction to the outputs, here it is part of the bias. The last bit differs, which on
    # some CPUs gives an activation another code: with split convolutions one of 8192 in the middle block left
    # 4e-3 in the median layer and 0.09 at most, though the biases were the walk's to the bit. A correction
    # without the inputs that AdaRound holds out leaves 0.12 and 1.4.
    assert sorted(left.values())[len(left) // 2] < 1e-2
    assert max(left.values()) < 0.1, max(left, key=lambda layer_name: left[layer_name])


@pytest.mark.slow
def test_corrected_biases_of_split_convolutions_leave_no_mean_error(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InputRange, "__call__", lambda _, x: x)  # no codes that could differ
    recipe = recipe_for_bits(4, split_shortcuts=True)
    rounding = WeightRounding(bias_correction=True)
    split = quantize_checkpoint(tiny, recipe, calibration=CALIBRATION, threads=1, rounding=rounding)
    assert sum(name.endswith(".half1") for name in split.integers) == 4
    assert max(_left_mean_errors(tiny, split).values()) < 1e-4


@pytest.mark.parametrize("name", list(METHODS))
def test_the_methods_lower_the_error_of_the_output(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], refined: dict[str, Artifact], name: str
) -> None:
    exact = tiny.network()

    def error(artifact: Artifact) -> float:
        graph = lower(artifact, "generic").graph
        with torch.no_grad():
            return sum(float((graph(x, t) - exact(x, t)).square().sum()) for x, t in _inputs(tiny))

    # On the inputs that the codes were chosen on; 20 iterations of learning are few.
    assert error(refined[name]) < 0.95 * error(tiny_artifacts["w4a8"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_seed_gives_the_same_bytes(
    tiny: Checkpoint, refined: dict[str, Artifact], name: str, tmp_path: Path
) -> None:
    write_artifact(refined[name], tmp_path / "a")
    write_artifact(_quantize(tiny, name), tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    manifest = read_artifact(tmp_path / "a").manifest
    assert manifest.rounding == METHODS[name]
    assert manifest.precision == f"w4a8-{name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_degenerate_layers_stay_finite(tiny: Checkpoint, name: str) -> None:
    weights = {key: value.clone() for key, value in tiny.weights["raw"].items()}
    for key in ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_q"):
        weights[f"{key}.weight"][2] = 0
    # Nothing but the bias leaves this norm: the convolution behind it reads a constant.
    weights["mid_block.resnets.0.norm1.weight"].zero_()
    weights["mid_block.resnets.1.norm1.weight"].zero_()
    weights["mid_block.resnets.1.norm1.bias"].zero_()
    weights["mid_block.resnets.0.conv2.weight"][0] *= 1e6
    broken = Checkpoint(tiny.model, tiny.process, {"raw": weights}, {})
    artifact = _quantize(broken, name, "w4a4")
    assert all(bool(value.isfinite().all()) for value in artifact.rest.values())
    assert not bool(artifact.integers["unet.down_blocks.0.resnets.0.conv1"][2].any())
    graph = lower(artifact, "onnxruntime").graph
    with torch.no_grad():
        assert all(bool(graph(x, t).isfinite().all()) for x, t in _inputs(tiny))


@pytest.mark.slow
def test_damping_keeps_weights_close_to_their_own_values(
    tiny: Checkpoint, refined: dict[str, Artifact]
) -> None:
    rounding = METHODS["gptq"].model_copy(update={"gptq": Gptq(damping=0.01)})
    less = quantize_checkpoint(tiny, PRESETS["w4a8"], calibration=CALIBRATION, threads=1, rounding=rounding)
    codes = {name: (less.integers[name], default) for name, default in refined["gptq"].integers.items()}
    changed = sum(int((a != b).sum()) for a, b in codes.values())
    assert changed > 0.1 * sum(a.numel() for a, _ in codes.values())


@pytest.mark.slow
def test_one_input_is_not_enough_to_learn_from_and_to_judge(tiny: Checkpoint) -> None:
    rounding = WeightRounding(method="adaround", samples=1, adaround=QUICK)
    with pytest.raises(UsageError, match="no input to learn from"):
        quantize_checkpoint(tiny, PRESETS["w4a8"], calibration=CALIBRATION, threads=1, rounding=rounding)


@pytest.mark.parametrize(
    ("padding", "stride", "dilation", "kernel"),
    [
        (1, 1, 1, 3),
        (0, 2, 1, 3),
        ([2, 1], [1, 2], [2, 1], 3),
        (0, 1, 1, 1),
    ],
)
def test_rows_times_the_weight_are_the_convolution(
    padding: Any, stride: Any, dilation: Any, kernel: int
) -> None:
    class Conv(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 3, kernel, kernel))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight, None, stride, padding, dilation)

    torch.manual_seed(0)
    conv, x = Conv().eval(), torch.randn(2, 3, 9, 8)
    graph = torch.export.export(conv, (x,)).module()
    node = next(n for n in graph.graph.nodes if "conv2d" in str(n.target))
    layer = QuantLayer(
        "conv",
        node,
        conv.weight.detach(),
        None,
        None,
        QuantGrid(torch.ones(()), -8, 7),
        torch.zeros(1, dtype=torch.int8),
    )
    expected = conv(x).detach()
    found = layer.rows(x) @ layer.weight.flatten(1).T
    # Sums of 48 float32 products at most, in another order.
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1).reshape(-1, 4), rtol=1e-5, atol=1e-5)


def test_blocks_are_residual_and_attention_blocks_and_hold_every_operator_once(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact]
) -> None:
    graph, planned = _layers(tiny, tiny_artifacts["w4a8"])
    found = blocks(graph, planned)
    nodes = [n for block in found for n in block.nodes]
    assert nodes == [n for n in graph.graph.nodes if n.op == "call_function"]
    names = [block.name for block in found if len(block.layers) > 1]
    modules = tiny.network().named_modules()
    assert sorted(names) == sorted(
        name for name, m in modules if type(m).__name__ in ("ResnetBlock2D", "Attention")
    )
    assert all(len(piece.layers) <= 1 for block in found for piece in pieces(block))


def test_inputs_are_drawn_without_repetition_and_keep_their_timestep() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1, 1, 1)
    drawn = CalibrationSet(x, np.array([5, 6, 7]), {"label": np.arange(12).reshape(3, 4)}, "")
    found = batches(drawn, 10, 4, torch.Generator().manual_seed(0))
    assert [len(part[0]) for part in found] == [4, 4, 2]
    values, t, label = (torch.cat(parts).flatten() for parts in zip(*found, strict=True))
    assert len(set(values.tolist())) == 10
    assert torch.equal(t, 5 + values.long() // 4)
    assert torch.equal(label, values.long())
    apart = batches(drawn, 10, 4, torch.Generator().manual_seed(0), held_out=3)
    assert [len(part[0]) for part in apart] == [4, 3, 3]
    assert torch.equal(torch.cat([part[0] for part in apart]), torch.cat([part[0] for part in found]))
    everything = itertools.chain(*batches(copy.deepcopy(drawn), 99, 5, torch.Generator()))
    assert sum(len(v) for v in everything) == 36
