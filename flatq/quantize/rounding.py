"""From a float checkpoint to integer weights and activation ranges: `quantize_checkpoint`.

Weights are rounded to nearest first; `flatq.quantize.methods` may then choose other integers on their grids.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import fx

from flatq.calib.inputs import CalibrationPlan, CalibrationSet, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.errors import ModelError
from flatq.layer_decisions import decide_layers
from flatq.progress import Progress
from flatq.quantize.artifact import Artifact, Manifest
from flatq.quantize.attention import decompose, planned_attentions
from flatq.quantize.bias import room_for_bias
from flatq.quantize.equalize import equalize
from flatq.quantize.grid import QuantGrid, activation_grid
from flatq.quantize.low_rank import planned_branches, split_branches
from flatq.quantize.methods import WeightRounding
from flatq.quantize.methods.layer import quant_layers, quant_products
from flatq.quantize.methods.walk import refine
from flatq.quantize.ranges import RangeObserver, weight_grid
from flatq.quantize.skip_connections import planned_splits, split_skip_connections, whole_weights
from flatq.quantize.trace import Layer, find_layers, trace
from flatq.recipe import Decision, QuantRecipe, Scheme
from flatq.runtime.base import default_threads
from flatq.runtime.torch import TorchRuntime, torch_threads

__all__ = ["package_versions", "parent_record", "quantize_checkpoint"]


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what the numbers are."""
    return {name: version(name) for name in ("flatq", "torch", "torchao", "diffusers", "numpy")}


def parent_record(checkpoint: Checkpoint, weights: str) -> dict[str, Any]:
    """What is recorded of the checkpoint that a model was made from, and of the weights variant chosen."""
    return {
        "sha256": checkpoint.digest,
        "file": checkpoint.source.name if checkpoint.source else None,
        "weights": weights,
        "provenance": dict(checkpoint.provenance),
    }


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: QuantRecipe,
    *,
    average: str | None = None,
    calibration: CalibrationPlan | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    rounding: WeightRounding | None = None,
) -> Artifact:
    """Quantize the chosen weights of a checkpoint by a recipe.

    Args:
        average: raw, ema or swa; None takes the checkpoint's default.
        rounding: how integers are chosen and biases corrected; None rounds to nearest.

    Raises:
        CheckpointError, ModelError: the weights do not fit, are not finite, or the network cannot be traced,
            or holds a layer that the method does not know.
    """
    calibration, rounding = calibration or CalibrationPlan(), rounding or WeightRounding()
    chosen = checkpoint.choose(average)
    network = checkpoint.network(chosen)
    model = checkpoint.model

    def collect(module: torch.nn.Module, stage: str) -> CalibrationSet:
        done = 0

        def drawn(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(stage, done, calibration.images * calibration.evaluations)

        with TorchRuntime(module, inputs=model.inputs, threads=threads) as runtime:
            return collect_inputs(
                runtime,
                checkpoint.process,
                calibration,
                model.image_shape,
                classes=model.classes,
                progress=drawn,
            )

    graph = trace(network, model)
    equalized: dict[str, str] = {}
    if recipe.equalize is not None:
        equalized = equalize(network, graph, collect(network, "looking for outliers"), recipe.equalize)
        graph = trace(network, model)
    split_skip_connections(graph, planned_splits(graph, recipe))
    branches = split_branches(graph, planned_branches(graph, recipe))
    decompose(graph, planned_attentions(graph, recipe))
    layers = find_layers(graph)
    decisions = [
        d.model_copy(update={"reason": f"{d.reason}; {equalized[d.node]}"})
        if d.node in equalized and d.port == "input"
        else d
        for d in decide_layers(recipe, [layer.candidate for layer in layers])
    ]
    observers = _observe(graph, layers, decisions, recipe)
    # It is the float model still: sampling with it draws the inputs and sees the ranges at once.
    inputs = collect(graph, "calibrating")
    with torch_threads(threads or default_threads()):
        ranges = _ranges(observers)
        _remove(graph)
        weights = {d.node: d.scheme for d in decisions if d.port == "weight" and d.scheme is not None}
        integers, grids = {}, {}
        for name, scheme in weights.items():
            weight = graph.get_parameter(f"{name}.weight").detach().cpu()
            grids[name] = weight_grid(weight, scheme, recipe)
            integers[name] = grids[name].quantize(weight).to(torch.int8)
        _make_room(network, layers, decisions, integers, grids, ranges)
        whole = whole_weights(decisions)
        rest = {
            name: value.detach().cpu()
            for name, value in network.state_dict().items()
            if name.removesuffix(".weight") not in weights.keys() | whole.keys()
        } | branches
        notes: dict[str, str] = {}
        if not rounding.plain:
            planned = quant_layers(graph, layers, decisions, integers, grids, ranges)
            products = quant_products(layers, decisions, ranges)
            biases, notes = refine(
                graph, planned, products, inputs, rounding, seed=calibration.seed, progress=progress
            )
            rest |= biases
            for layer in planned.values():
                integers[layer.name] = layer.integers
                if layer.input is not None and layer.range is not None:
                    ends = torch.tensor([layer.range.low, layer.range.high])
                    ranges[layer.input.range_name][layer.input.group] = ends
    manifest = Manifest(
        model=model,
        process=checkpoint.process,
        recipe=recipe,
        decisions=tuple(decisions),
        calibration=calibration,
        calibration_digest=inputs.digest,
        rounding=rounding,
        rounding_notes=notes,
        parent=parent_record(checkpoint, chosen),
        versions=package_versions(),
    )
    return Artifact(manifest, integers, grids, rest, ranges)


def _observe(
    graph: fx.GraphModule, layers: list[Layer], decisions: list[Decision], recipe: QuantRecipe
) -> list[tuple[Decision, RangeObserver]]:
    """Insert an observer for every planned activation; those that read one tensor at one width share it."""
    by_name = {layer.candidate.node: layer for layer in layers}
    shared: dict[tuple[fx.Node, Scheme], RangeObserver] = {}
    found = []
    for decision in decisions:
        if decision.scheme is None or decision.port == "weight":
            continue
        operator, tensor = by_name[decision.node].tensor(decision.port)
        key = (tensor, decision.scheme)
        if key not in shared:
            shared[key] = RangeObserver(decision.scheme, recipe)
            name = f"flatq_observer_{len(shared)}"
            graph.add_submodule(name, shared[key])
            after = decision.port == "output"
            with graph.graph.inserting_after(operator) if after else graph.graph.inserting_before(operator):
                graph.graph.call_module(name, (tensor,))
        found.append((decision, shared[key]))
    graph.recompile()
    return found


def _remove(graph: fx.GraphModule) -> None:
    """Take the observers out again."""
    for node in [node for node in graph.graph.nodes if node.op == "call_module"]:
        graph.graph.erase_node(node)
        graph.delete_submodule(node.target)
    graph.recompile()


def _ranges(observers: list[tuple[Decision, RangeObserver]]) -> dict[str, torch.Tensor]:
    ends = {observer: observer.range() for _, observer in observers}
    groups: dict[str, dict[int, torch.Tensor]] = {}
    for decision, observer in observers:
        found = torch.tensor([ends[observer]])
        if not bool(found.isfinite().all()):
            raise ModelError(
                f"the {decision.port} of {decision.node} is not finite during calibration",
                expected="finite activations",
                got=str(found.tolist()),
                next_step="check the checkpoint with `flatq sample`",
            )
        groups.setdefault(decision.range_name, {})[decision.group] = found
    return {name: torch.cat([rows[i] for i in range(len(rows))]) for name, rows in groups.items()}


def _make_room(
    network: torch.nn.Module,
    layers: list[Layer],
    decisions: list[Decision],
    integers: dict[str, torch.Tensor],
    grids: dict[str, QuantGrid],
    ranges: dict[str, torch.Tensor],
) -> None:
    """Let the biases of layers with integer inputs fit their kernels, in place; see `room_for_bias`."""
    inputs = {d.node: d for d in decisions if d.port == "input" and d.scheme is not None}
    for layer in layers:
        name, decision = layer.candidate.node, inputs.get(layer.candidate.node)
        if decision is None:
            continue
        assert decision.scheme is not None
        low, high = ranges[decision.range_name][decision.group].tolist()
        step = float(activation_grid(low, high, decision.scheme).scale)
        stored = layer.node.args[2] if len(layer.node.args) > 2 else None
        bias = network.get_parameter(str(stored.target)).detach() if isinstance(stored, fx.Node) else None
        integers[name], grids[name] = room_for_bias(integers[name], grids[name], bias, step)
