"""The walk through a network in which methods choose integers and biases are corrected: `refine`.

Two streams go through the same traced graph on the same inputs: the float network, and the one quantized so
far, with activations fake-quantized to the ranges observed. So each layer and block sees the inputs that it
will see, and what went wrong before it can be made up for. It costs a forward pass of each in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import fx

from flatq.calib.inputs import CalibrationSet
from flatq.errors import UsageError
from flatq.progress import Progress
from flatq.quantize.methods.adaround import reconstruct
from flatq.quantize.methods.blocks import Block, blocks, pieces
from flatq.quantize.methods.gptq import Moments, compensated, gptq_integers
from flatq.quantize.methods.layer import QuantLayer
from flatq.quantize.methods.options import WeightRounding
from flatq.quantize.methods.sensitivity import Weights, sensitivities
from flatq.quantize.methods.stream import Replaced, Stream

__all__ = ["batches", "refine"]

_HELD_OUT = 8
"""One of so many inputs judges what AdaRound learns from the others."""


def refine(
    graph: fx.GraphModule,
    planned: Mapping[fx.Node, QuantLayer],
    products: Replaced,
    inputs: CalibrationSet,
    rounding: WeightRounding,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Choose integers by a method, on the grids given; learn biases and ranges, or correct biases.

    Args:
        graph: traced, float, without observers; left as it is.
        planned: of `flatq.quantize.methods.layer.quant_layers`, rounded to nearest; the integers and ranges
            of the layers are set.
        products: of `flatq.quantize.methods.layer.quant_products`.
        rounding: something beyond rounding to nearest.
        seed: of the choice of inputs and of the learning.

    Returns:
        Name of the parameter -> float32 [out], for the biases learned or corrected; and layer or block -> why
        it was left as it was, where it was.

    Raises:
        ModelError: a layer that the method does not know.
        UsageError: a single input for AdaRound, which learns from some and is judged on others.
    """
    generator = torch.Generator().manual_seed(seed)
    cut = blocks(graph, planned, products)
    learning, size = rounding.method == "adaround", rounding.adaround.batch
    samples = min(rounding.samples, inputs.x.shape[0] * inputs.x.shape[1])
    held_out = max(samples // _HELD_OUT, 1) if learning else 0
    if held_out == samples:
        raise UsageError(
            "AdaRound has no input to learn from besides the one that it is judged on",
            expected="at least 2 calibration inputs",
            got=str(samples),
            next_step="raise --samples, --calib-images or --steps",
        )
    drawn = batches(inputs, samples, size, generator, held_out)
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
        _Walk(graph, drawn[:seen], weights[:seen], first).go(cut, progress)
    walk = _Walk(graph, drawn, weights, rounding)
    if learning:
        walk.learn(cut, generator, len(drawn) - seen, progress)
    else:
        walk.go(cut, progress)
    return walk.biases, walk.notes


class _Walk:
    """Both streams through all blocks of a network, whose layers are set on the way.

    Attributes:
        biases, notes: what `refine` returns.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        drawn: Sequence[tuple[torch.Tensor, ...]],
        weights: Sequence[Weights],
        rounding: WeightRounding,
    ) -> None:
        self.exact, self.quantized = Stream(graph, drawn), Stream(graph, drawn)
        self.weights, self.rounding = weights, rounding
        self.biases: dict[str, torch.Tensor] = {}
        self.notes: dict[str, str] = {}

    def go(self, cut: Sequence[Block], progress: Progress | None) -> None:
        """Set the layers one by one."""
        done, total = 0, sum(len(block.layers) for block in cut)
        for block in cut:
            done += len(block.layers)
            self._pass(block)
            if progress is not None and block.layers:
                progress(f"{self.rounding.method}, layer by layer", done, total)

    def learn(
        self, cut: Sequence[Block], generator: torch.Generator, held_out: int, progress: Progress | None
    ) -> None:
        """Set the layers block by block; the last `held_out` batches are those that learning is judged on."""
        options, counter = self.rounding.adaround, count(1)
        steps = options.iterations * sum(bool(block.layers) for block in cut)

        def step() -> None:
            learned = next(counter)
            if progress is not None and learned % 10 == 0:
                progress("learning to round", learned, steps)

        for block in cut:
            if block.layers:
                outcome = reconstruct(
                    block,
                    self.exact.batches,
                    self.quantized.batches,
                    self.weights,
                    options,
                    generator,
                    held_out=held_out,
                    step=step,
                )
                if not outcome.learned < outcome.given:
                    self.notes[block.name] = (
                        "as GPTQ rounds it: learning did not lower the block's held-out error"
                    )
                for layer in block.layers:
                    if layer.bias_name is not None and layer.bias is not None:
                        self.biases[layer.bias_name] = layer.bias
            self._pass(block)

    def _pass(self, block: Block) -> None:
        """Both streams go through a block; what is set layer by layer is set on the way."""
        for piece in pieces(block):
            before = piece.nodes[: len(piece.nodes) - len(piece.layers)]
            self.quantized.advance(before, piece.products)
            self.exact.advance(before)
            for layer in piece.layers:  # a piece ends in its layer if it has one
                if self.rounding.method == "gptq":
                    self._gptq(layer)
                self.exact.advance([layer.node])
                self.quantized.advance([layer.node], {layer.node: layer.forward})
                if self.rounding.bias_correction:
                    self._correct(layer)

    def _gptq(self, layer: QuantLayer) -> None:
        matrix = layer.weight.flatten(1)
        moments, source = Moments(matrix.shape[1]), layer.node.all_input_nodes[0]
        for exact, quantized, weights in zip(
            self.exact.batches, self.quantized.batches, self.weights, strict=True
        ):
            float_rows = layer.rows(exact[source], quantize=False)
            rows, weight = layer.rows(quantized[source]), weights[layer.node]
            moments.add(rows, float_rows, weight.repeat_interleave(len(rows) // len(weight)))
        target, hessian = compensated(matrix, moments, self.rounding.gptq.damping)
        found = gptq_integers(target, layer.grid, hessian, self.rounding.gptq)
        layer.integers = found.reshape(layer.weight.shape)

    def _correct(self, layer: QuantLayer) -> None:
        if layer.bias_name is None:
            self.notes[layer.name] = "no bias to correct"
            return
        shift = _mean_error(layer, self.exact, self.quantized)
        if layer.bias is not None:
            self.biases[layer.bias_name] = layer.bias
            layer.bias = layer.bias + shift
        self.biases[layer.bias_name] = self.biases[layer.bias_name] + shift
        channels = shift.reshape(-1, 1, 1) if layer.weight.ndim == 4 else shift
        for values in self.quantized.batches:
            values[layer.node] = values[layer.node] + channels


def _mean_error(layer: QuantLayer, exact: Stream, quantized: Stream) -> torch.Tensor:
    """Mean of float minus quantized output for each channel, float32 [out].

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2,
    with the outputs themselves in place of a model of their distribution.
    """
    total, places = torch.zeros(layer.weight.shape[0], dtype=torch.float64), 0
    for a, b in zip(exact.batches, quantized.batches, strict=True):
        difference = (a[layer.node] - b[layer.node]).double()
        axis = 1 if layer.weight.ndim == 4 else difference.ndim - 1
        total += difference.sum([d for d in range(difference.ndim) if d != axis])
        places += difference.numel() // len(total)
    return (total / places).float()


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
