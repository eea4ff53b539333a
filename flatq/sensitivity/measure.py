"""Run the float network with chosen layers quantized, and measure what that does: `measure_sensitivity`.

A quantized layer reads its input on the artifact's grid and multiplies with the artifact's integers, as in
`flatq.quantize.methods`. The outputs that ONNX Runtime rounds as well are not rounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from flatq.calib.inputs import CalibrationPlan, CalibrationSet, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.errors import ModelError, UsageError
from flatq.flatness.result import Estimate, binned
from flatq.flatness.settings import BINS
from flatq.noise import NoiseStream
from flatq.process import Process, ProcessConfig
from flatq.progress import Progress
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import planned_graph
from flatq.quantize.methods.layer import quant_layers, quant_products
from flatq.quantize.methods.stream import Replaced, Stream
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import Candidate, Port
from flatq.runtime.torch import TorchRuntime
from flatq.sampler import sample
from flatq.sensitivity.result import Check, LayerHarm, Sensitivity
from flatq.sensitivity.settings import SensitivitySettings

__all__ = ["PartlyQuantized", "measure_sensitivity"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_MOST_IMAGES = 64  # one batch of the sampler, so that the inputs of a trajectory stay together


class PartlyQuantized(nn.Module):
    """A traced float network of which the layers named in `chosen` compute on their quantized grids.

    Args:
        graph: traced, float.
        layers: name -> what is called in place of which operators.
    """

    def __init__(self, graph: fx.GraphModule, layers: Mapping[str, Replaced]) -> None:
        super().__init__()
        self.graph, self.layers = graph, layers
        self.chosen: Collection[str] = ()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The prediction for the network's inputs in order."""
        replaced = {node: call for name in self.chosen for node, call in self.layers[name].items()}
        operators = [node for node in self.graph.graph.nodes if node.op == "call_function"]
        (yields,) = self.graph.graph.output_node().all_input_nodes
        stream = Stream(self.graph, [inputs])
        stream.advance(operators, replaced)
        result: torch.Tensor = stream.batches[0][yields]
        return result


@dataclass(frozen=True, eq=False)
class _Trial:
    """The float network's own inputs, predictions and images, which those of every plan are compared with.

    Attributes:
        plan: how they were drawn.
        inputs: of every timestep of the trajectories.
        predictions: float32 [n, C, H, W] at each timestep; with guidance 2 n, the labelled ones first.
        images: float32 [n, C, H, W].
    """

    runtime: TorchRuntime
    checkpoint: Checkpoint
    plan: CalibrationPlan
    inputs: CalibrationSet
    predictions: list[F32]
    images: F32

    @classmethod
    def of_float(cls, runtime: TorchRuntime, checkpoint: Checkpoint, plan: CalibrationPlan) -> _Trial:
        """Run the float network."""
        model = checkpoint.model
        inputs = collect_inputs(runtime, checkpoint.process, plan, model.image_shape, classes=model.classes)
        predictions = _predictions(runtime, checkpoint, inputs)
        return cls(runtime, checkpoint, plan, inputs, predictions, _images(runtime, checkpoint, plan))

    def harm(self) -> tuple[F64, F64]:
        """Of the network as it is now: relative squared error of the predictions [steps, n], and mean squared
        difference of the images [n].

        Raises:
            ModelError: images that are not finite.
        """
        error = np.stack(
            [
                np.square(found - exact, dtype=np.float64).mean((1, 2, 3)) / np.square(exact).mean()
                for found, exact in zip(
                    _predictions(self.runtime, self.checkpoint, self.inputs), self.predictions, strict=True
                )
            ]
        )
        images = _images(self.runtime, self.checkpoint, self.plan)
        moved = np.square(images - self.images, dtype=np.float64).mean((1, 2, 3))
        if not np.isfinite(moved).all():
            raise ModelError(
                "quantized layers sample images that are not finite",
                expected="finite images",
                got="NaN or infinity",
                next_step="raise --bits or --act-bits",
            )
        return error.reshape(len(error), -1, len(images)).mean(1), moved


def measure_sensitivity(
    checkpoint: Checkpoint,
    settings: SensitivitySettings,
    *,
    variant: str,
    progress: Progress | None = None,
) -> Sensitivity:
    """Quantize a checkpoint, then measure the harm of each layer alone and of some random plans.

    Args:
        variant: raw, ema or swa weights.

    Raises:
        UsageError: a number of images out of range, a recipe that changes weights together (equalization,
            float branches), or steps that leave a quarter of t without a timestep.
        CheckpointError, ModelError: as `quantize_checkpoint`.
    """
    quantize = settings.quantize
    _check(settings)
    quarters = _quarters(checkpoint.process, quantize.calibration)
    artifact = quantize_checkpoint(
        checkpoint,
        quantize.recipe,
        average=variant,
        calibration=quantize.calibration,
        threads=quantize.threads,
        progress=progress,
        rounding=quantize.rounding,
    )
    network, layers = _network(checkpoint, variant, artifact)
    plan = quantize.calibration.model_copy(
        update={"images": settings.images, "seed": quantize.calibration.seed + 1}
    )
    checks = _random_plans(tuple(network.layers), settings.checks, plan.seed)
    chosen: list[tuple[str, ...]] = [*((name,) for name in network.layers), *checks]
    with TorchRuntime(network, inputs=checkpoint.model.inputs, threads=quantize.threads) as runtime:
        trial = _Trial.of_float(runtime, checkpoint, plan)
        harms = []
        for names in chosen:
            network.chosen = names
            harms.append(trial.harm())
            if progress is not None:
                progress("quantizing one layer at a time", len(harms), len(chosen))
    decisions = {(d.node, d.port): d.scheme for d in artifact.manifest.decisions}

    def bits(layer: str, *ports: Port) -> int | None:
        return next((s.bits for port in ports if (s := decisions.get((layer, port))) is not None), None)

    return Sensitivity(
        checkpoint=checkpoint.source.name if checkpoint.source else "",
        digest=checkpoint.digest,
        weights_variant=variant,
        recipe=quantize.recipe.name,
        rounding=quantize.rounding.describe(),
        sampling=plan.model_dump(mode="json"),
        layers=tuple(
            LayerHarm(
                layer=name,
                kind=layers[name].kind,
                parameters=prod(layers[name].shape) if layers[name].shape else 0,
                macs=layers[name].macs,
                weight_bits=bits(name, "weight"),
                activation_bits=bits(name, "input", "query"),
                prediction=binned(error.T, quarters),
                image=Estimate.of(moved),
            )
            for name, (error, moved) in zip(network.layers, harms, strict=False)
        ),
        checks=tuple(
            Check(layers=names, prediction=Estimate.of(error.mean(0)), image=Estimate.of(moved))
            for names, (error, moved) in zip(checks, harms[len(network.layers) :], strict=True)
        ),
    )


def _quarters(process: ProcessConfig, plan: CalibrationPlan) -> NDArray[np.int64]:
    """The quarter of the training timesteps that each sampled timestep is in, ascending, [steps].

    Raises:
        UsageError: a quarter without a timestep.
    """
    found = Process.from_config(process, plan.steps).timesteps * BINS // process.train_steps
    if len(set(found.tolist())) < BINS:
        raise UsageError(
            "a quarter of the timesteps is not sampled",
            expected=f"at least {BINS} steps spread over all timesteps",
            got=str(plan.steps),
            next_step="raise --steps",
        )
    return found


def _check(settings: SensitivitySettings) -> None:
    if not 2 <= settings.images <= _MOST_IMAGES:
        raise UsageError(
            "the number of images is out of range",
            expected=f"2 to {_MOST_IMAGES} images, sampled as one batch",
            got=str(settings.images),
            next_step="choose another -n",
        )
    recipe = settings.quantize.recipe
    if recipe.equalize is not None or recipe.low_rank:
        raise UsageError(
            "the harm of one layer alone is not defined for this recipe",
            expected="a recipe without equalization and float branches, which change several layers together",
            got=recipe.name,
            next_step="leave these options out",
        )


def _network(
    checkpoint: Checkpoint, variant: str, artifact: Artifact
) -> tuple[PartlyQuantized, dict[str, Candidate]]:
    """The float network whose layers can be quantized one by one, and what is known of each by name."""
    decisions = artifact.manifest.decisions
    graph, layers = planned_graph(checkpoint.network(variant), artifact.manifest, {})
    calls: dict[fx.Node, Callable[..., Any]] = quant_products(layers, decisions, artifact.ranges)
    planned = quant_layers(graph, layers, decisions, artifact.integers, artifact.grids, artifact.ranges)
    for node, layer in planned.items():
        if layer.bias is not None and layer.bias_name is not None:
            layer.bias = artifact.rest[layer.bias_name]
        calls[node] = layer.forward
    replaced = {
        layer.candidate.node: {node: calls[node] for node in (layer.scores, layer.node) if node in calls}
        for layer in layers
    }
    about = {layer.candidate.node: layer.candidate for layer in layers}
    return PartlyQuantized(graph, {name: found for name, found in replaced.items() if found}), about


def _random_plans(layers: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """`count` plans that quantize from a tenth of the layers up to all of them."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(len(layers) / 10, len(layers), count).round().astype(int)
    picks = [set(rng.choice(len(layers), size=max(size, 1), replace=False).tolist()) for size in sizes]
    return [tuple(name for i, name in enumerate(layers) if i in pick) for pick in picks]


def _predictions(runtime: TorchRuntime, checkpoint: Checkpoint, inputs: CalibrationSet) -> list[F32]:
    """What the network predicts for the inputs of each timestep, without a learned variance."""
    channels = checkpoint.model.image_shape[0]
    names = list(inputs.conditions)
    return [
        runtime(x, t, dict(zip(names, conditions, strict=True)))[:, :channels]
        for x, t, *conditions in inputs.batches()
    ]


def _images(runtime: TorchRuntime, checkpoint: Checkpoint, plan: CalibrationPlan) -> F32:
    """The final images, of the noise that the inputs come from."""
    model = checkpoint.model
    return sample(
        runtime,
        checkpoint.process,
        plan,
        range(plan.images),
        model.image_shape,
        classes=model.classes,
        stream=NoiseStream.CALIBRATION,
    )
