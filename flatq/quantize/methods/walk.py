"""The walk through a network in which methods choose integers and biases are corrected: `refine`.

Two streams go through the same traced graph on the same inputs: the float network, and the one quantized so
far, with activations fake-quantized to the ranges observed. So each layer and block sees the inputs that it
will see, and what went wrong before it can be made up for. It costs a forward pass of each in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx

from flatq.calib.inputs import CalibrationSet
from flatq.errors import UsageError
from flatq.progress import Progress
from flatq.quantize.grid import QuantGrid
from flatq.quantize.methods.adaround import reconstruct
from flatq.quantize.methods.blocks import Block, blocks, pieces
from flatq.quantize.methods.gptq import Moments, compensated, gptq_integers
from flatq.quantize.methods.layer import QuantLayer, quant_layers, quant_products
from flatq.quantize.methods.options import WeightRounding
from flatq.quantize.methods.sensitivity import Weights, sensitivities
from flatq.quantize.methods.stream import Stream
from flatq.quantize.trace import Layer
from flatq.recipe import Decision

__all__ = ["batches", "refine"]

_Tensors = dict[str, torch.Tensor]

_HELD_OUT = 8
"""One of so many inputs judges what AdaRound learns from the others."""


def refine(
    graph: fx.GraphModule,
    layers: Sequence[Layer],
    decisions: Sequence[Decision],
    integers: Mapping[str, torch.Tensor],
    grids: Mapping[str, QuantGrid],
    ranges: Mapping[str, torch.Tensor],
    inputs: CalibrationSet,
    rounding: WeightRounding,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[_Tensors, _Tensors, _Tensors, dict[str, str]]:
    """Choose integers by a method, on the grids given; learn biases and ranges, or correct biases.

    Args:
        graph: traced, float, without observers; left as it is.
        integers, grids, ranges: as in `flatq.quantize.artifact.Artifact`, rounded to nearest.
        seed: of the choice of inputs and of the learning.

    Returns:
        Layer -> int8, for every planned layer; name of the parameter -> float32 [out], for the biases learned
        or corrected; the ranges, with the learned ones; and layer or block -> why it was left as it was,
        where it was.

    Raises:
        ModelError: a layer that the method does not know.
        UsageError: a single input for AdaRound, which learns from some and is judged on others.
    """
    generator = torch.Generator().manual_seed(seed)
    planned = quant_layers(graph, layers, decisions, integers, grids, ranges)
    cut = blocks(graph, planned, quant_products(layers, decisions, ranges))
    learning, size = rounding.method == "adaround", rounding.adaround.batch
    count = min(rounding.samples, inputs.x.shape[0] * inputs.x.shape[1])
    held_out = max(count // _HELD_OUT, 1) if learning else 0
    if held_out == count:
        raise UsageError(
            "AdaRound has no input to learn from besides the one that it is judged on",
            expected="at least 2 calibration inputs",
            got=str(count),
            next_step="raise --samples, --calib-images or --steps",
        )
    drawn = batches(inputs, count, size, generator, held_out)
    seen = len(drawn) - math.ceil(held_out / size)
    weights: list[Weights] = [{} for _ in drawn]
    if rounding.method != "rtn" and planned:
        outputs = [node for block in cut if block.layers for node in block.outputs]
        weighed = list(dict.fromkeys([*planned, *outputs]))
        weights = sensitivities(graph, drawn[:seen], weighed, rounding.sensitivity, generator, progress)
        if held_out:
            weights += sensitivities(graph, drawn[seen:], weighed, rounding.sensitivity, generator)
    if learning:  # starts where GPTQ ends
        first = rounding.model_copy(update={"method": "gptq", "bias_correction": False})
        _walk(graph, cut, drawn[:seen], weights[:seen], first, generator, progress)
    biases, notes = _walk(graph, cut, drawn, weights, rounding, generator, progress, len(drawn) - seen)
    return (
        {layer.name: layer.integers for layer in planned.values()},
        biases,
        dict(ranges) | _ranges(planned.values(), ranges),
        notes,
    )


def _walk(
    graph: fx.GraphModule,
    cut: Sequence[Block],
    drawn: Sequence[tuple[torch.Tensor, ...]],
    weights: Sequence[Weights],
    rounding: WeightRounding,
    generator: torch.Generator,
    progress: Progress | None,
    held_out: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Go through all blocks and set their layers; the biases that changed, and the notes, as in `refine`.

    The last `held_out` batches are those that learning is judged on.
    """
    learning, total = rounding.method == "adaround", sum(len(block.layers) for block in cut)
    quantized = Stream(graph, drawn)
    exact = Stream(graph, drawn) if rounding.method != "rtn" or rounding.bias_correction else None
    notes: dict[str, str] = {}
    biases: dict[str, torch.Tensor] = {}
    done = 0
    steps, learned = rounding.adaround.iterations * sum(bool(b.layers) for b in cut), 0

    def step() -> None:
        nonlocal learned
        learned += 1
        if progress is not None and learned % 10 == 0:
            progress("learning to round", learned, steps)

    for block in cut:
        if learning and block.layers:
            assert exact is not None
            outcome = reconstruct(
                block,
                exact.batches,
                quantized.batches,
                weights,
                rounding.adaround,
                generator,
                held_out=held_out,
                step=step,
            )
            if not outcome.learned < outcome.given:
                notes[block.name] = "as GPTQ rounds it: learning did not lower the block's held-out error"
            for layer in block.layers:
                if layer.bias_name is not None and layer.bias is not None:
                    biases[layer.bias_name] = layer.bias
        for piece in pieces(block):
            _pass(piece, exact, quantized, weights, rounding, biases, notes)
            done += len(piece.layers)
            if progress is not None and piece.layers and not learning:
                progress(f"{rounding.method}, layer by layer", done, total)
    return biases, notes


def _ranges(layers: Iterable[QuantLayer], before: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the layers' inputs as they are now."""
    found: dict[str, torch.Tensor] = {}
    for layer in layers:
        if layer.input is not None and layer.range is not None:
            rows = found.setdefault(layer.input.range_name, before[layer.input.range_name].clone())
            rows[layer.input.group] = torch.tensor([layer.range.low, layer.range.high])
    return found


def _pass(
    piece: Block,
    exact: Stream | None,
    quantized: Stream,
    weights: Sequence[Weights],
    rounding: WeightRounding,
    biases: dict[str, torch.Tensor],
    notes: dict[str, str],
) -> None:
    """Both streams go through a piece, which ends in its layer if it has one."""
    if not piece.layers:
        if exact is not None:
            exact.advance(piece.nodes)
        quantized.advance(piece.nodes, piece.products)
        return
    (layer,) = piece.layers
    quantized.advance(piece.nodes[:-1], piece.products)
    if exact is not None:
        exact.advance(piece.nodes[:-1])
    if rounding.method == "gptq":
        assert exact is not None
        _gptq(layer, exact, quantized, weights, rounding)
    if exact is not None:
        exact.advance([layer.node])
    quantized.advance([layer.node], {layer.node: layer.forward})
    if not rounding.bias_correction:
        return
    if layer.bias_name is None:
        notes[layer.name] = "no bias to correct"
        return
    assert exact is not None
    shift = _mean_error(layer, exact, quantized)
    if layer.bias is not None:
        biases[layer.bias_name] = layer.bias
        layer.bias = layer.bias + shift
    biases[layer.bias_name] = biases[layer.bias_name] + shift
    for values in quantized.batches:
        values[layer.node] = values[layer.node] + _as_channels(layer, shift)


def _gptq(
    layer: QuantLayer,
    exact: Stream,
    quantized: Stream,
    weights: Sequence[Weights],
    rounding: WeightRounding,
) -> None:
    matrix = layer.weight.flatten(1)
    moments, source = Moments(matrix.shape[1]), layer.node.all_input_nodes[0]
    for i, values in enumerate(quantized.batches):
        float_rows = layer.rows(exact.batches[i][source], quantize=False)
        rows, weight = layer.rows(values[source]), weights[i][layer.node]
        moments.add(rows, float_rows, weight.repeat_interleave(len(rows) // len(weight)))
    target, hessian = compensated(matrix, moments, rounding.gptq.damping)
    found = gptq_integers(target, layer.grid, hessian, rounding.gptq)
    layer.integers = found.reshape(layer.weight.shape)


def _mean_error(layer: QuantLayer, exact: Stream, quantized: Stream) -> torch.Tensor:
    """Mean of float minus quantized output for each channel, float32 [out].

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2,
    with the outputs themselves in place of a model of their distribution.
    """
    total, count = torch.zeros(layer.weight.shape[0], dtype=torch.float64), 0
    for a, b in zip(exact.batches, quantized.batches, strict=True):
        difference = (a[layer.node] - b[layer.node]).double()
        others = [d for d in range(difference.ndim) if d != _channel_axis(layer, difference)]
        total += difference.sum(others)
        count += difference.numel() // len(total)
    return (total / count).float()


def _channel_axis(layer: QuantLayer, value: torch.Tensor) -> int:
    return 1 if layer.weight.ndim == 4 else value.ndim - 1


def _as_channels(layer: QuantLayer, shift: torch.Tensor) -> torch.Tensor:
    return shift.reshape(-1, 1, 1) if layer.weight.ndim == 4 else shift


def batches(
    inputs: CalibrationSet, samples: int, size: int, generator: torch.Generator, held_out: int = 0
) -> list[tuple[torch.Tensor, ...]]:
    """A random choice of calibration inputs, mixed over t, in batches of the graph's inputs.

    The last `held_out` of them are in batches of their own, behind the others.
    """
    steps, images = inputs.x.shape[:2]
    chosen = torch.randperm(steps * images, generator=generator)[:samples]
    values = tuple(map(torch.from_numpy, inputs.joined()))
    first, last = chosen.tensor_split([len(chosen) - held_out])
    parts = [*torch.split(first, size), *(torch.split(last, size) if held_out else ())]
    return [tuple(value[part] for value in values) for part in parts]
