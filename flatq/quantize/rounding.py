"""From a float checkpoint to integer codes and activation ranges: `quantize_checkpoint`.

Rounded to nearest, the codes are read out of the graph that torchao's `convert_pt2e` makes;
`flatq.quantize.methods` may then choose others on the same scales.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import fx

from flatq.calib.inputs import CalibrationPlan, CalibrationSet, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.errors import ModelError
from flatq.plan import plan
from flatq.quantize.artifact import Artifact, Manifest
from flatq.quantize.attention import planned_attentions, write_out
from flatq.quantize.bias import room_for_bias
from flatq.quantize.equalize import equalize
from flatq.quantize.low_rank import planned_branches, split_branches
from flatq.quantize.methods import WeightRounding
from flatq.quantize.methods.walk import refine
from flatq.quantize.pt2e import convert_pt2e, prepare_pt2e
from flatq.quantize.quantizer import FlatqQuantizer, activation_qparams
from flatq.quantize.ranges import RangeObserver, activation_spec, weight_spec
from flatq.quantize.shortcuts import planned_splits, split_shortcuts, whole_weights
from flatq.quantize.trace import Layer, find_layers, graph_digest, quiet, stored_value, trace
from flatq.recipe import ATTENTION_PORTS, Decision, Port, QuantRecipe
from flatq.runtime.base import default_threads
from flatq.runtime.torch import TorchRuntime, torch_threads

__all__ = ["package_versions", "quantize_checkpoint", "weight_codes"]

_OBSERVED: tuple[Port, ...] = ("input", "output", *ATTENTION_PORTS)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what the numbers are."""
    return {name: version(name) for name in ("flatq", "torch", "torchao", "diffusers", "numpy")}


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
        rounding: how codes are chosen and biases corrected; None rounds to nearest.

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
    split_shortcuts(graph, planned_splits(graph, recipe))
    branches = split_branches(graph, planned_branches(graph, recipe))
    write_out(graph, planned_attentions(graph, recipe))
    layers = find_layers(graph)
    decisions = [
        d.model_copy(update={"reason": f"{d.reason}; {equalized[d.node]}"})
        if d.node in equalized and d.port == "input"
        else d
        for d in plan(recipe, [layer.candidate for layer in layers])
    ]
    digest = graph_digest(graph)
    untouched = None if rounding.plain else _copy(graph)
    prepared = _observing(graph, recipe, decisions)
    # It is the float model still: sampling with it draws the inputs and sees the ranges in one pass.
    inputs = collect(prepared, "calibrating")
    with torch_threads(threads or default_threads()):
        ranges = _ranges(prepared, layers, decisions)
        with quiet():
            converted = convert_pt2e(prepared)
        planned = {d.node for d in decisions if d.port == "weight" and d.scheme is not None}
        codes, scales = {}, {}
        for layer in layers:
            name = layer.candidate.node
            if name in planned:
                codes[name], scales[name] = weight_codes(converted, layer.node.name)
        _make_room(network, layers, decisions, codes, scales, ranges)
        whole = whole_weights(decisions)
        rest = {
            name: value.detach().cpu()
            for name, value in network.state_dict().items()
            if name.removesuffix(".weight") not in planned | whole.keys()
        } | branches
        notes: dict[str, str] = {}
        if untouched is not None:
            refined = refine(
                untouched,
                find_layers(untouched),
                decisions,
                codes,
                scales,
                ranges,
                inputs,
                rounding,
                seed=calibration.seed,
                progress=progress,
            )
            codes, ranges, notes = refined.codes, refined.ranges, refined.notes
            rest |= refined.biases
    manifest = Manifest(
        model=model,
        process=checkpoint.process,
        recipe=recipe,
        decisions=tuple(decisions),
        calibration=calibration,
        calibration_digest=inputs.digest,
        rounding=rounding,
        rounding_notes=notes,
        parent={
            "sha256": checkpoint.digest,
            "file": checkpoint.source.name if checkpoint.source else None,
            "weights": chosen,
            "provenance": dict(checkpoint.provenance),
        },
        graph_digest=digest,
        versions=package_versions(),
    )
    return Artifact(manifest, codes, scales, rest, ranges)


def _copy(graph: fx.GraphModule) -> fx.GraphModule:
    """The same operators and parameters once more, since `prepare_pt2e` changes the graph it is given."""
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    return fx.GraphModule(graph, nodes)


def _observing(graph: fx.GraphModule, recipe: QuantRecipe, decisions: list[Decision]) -> fx.GraphModule:
    """The graph with an observer at every planned port; `graph` itself is used up."""

    def spec(decision: Decision, node: fx.Node) -> Any:
        assert decision.scheme is not None
        if decision.port == "weight":
            return weight_spec(_constant(graph, node.args[1]), decision.scheme, recipe)
        return activation_spec(decision.scheme, recipe)

    with quiet():
        prepared: fx.GraphModule = prepare_pt2e(graph, FlatqQuantizer(decisions, spec))
    return prepared


def _ranges(
    prepared: fx.GraphModule, layers: list[Layer], decisions: list[Decision]
) -> dict[str, torch.Tensor]:
    nodes = {node.name: node for node in prepared.graph.nodes}
    observed = {(d.node, d.port): d for d in decisions if d.scheme is not None}
    groups: dict[str, dict[int, torch.Tensor]] = {}
    for layer in layers:
        name = layer.candidate.node
        for port in _OBSERVED:
            decision = observed.get((name, port))
            if decision is None:
                continue
            if port == "output":
                source = next(user for user in nodes[layer.node.name].users if user.op == "call_module")
            else:
                reader, index = layer.reader(port)
                source = nodes[reader.name].args[index]
            observer = prepared.get_submodule(str(source.target))
            assert isinstance(observer, RangeObserver)
            found = torch.tensor([observer.range()])
            if not bool(found.isfinite().all()):
                raise ModelError(
                    f"the {port} of {name} is not finite during calibration",
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
    codes: dict[str, torch.Tensor],
    scales: dict[str, torch.Tensor],
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
        step = float(activation_qparams(low, high, decision.scheme).scale)
        stored = layer.node.args[2] if len(layer.node.args) > 2 else None
        bias = network.get_parameter(str(stored.target)).detach() if isinstance(stored, fx.Node) else None
        codes[name], scales[name] = room_for_bias(codes[name], scales[name], bias, step)


def weight_codes(converted: fx.GraphModule, node_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8) and scales (float32) of a layer's weight in a graph that `convert_pt2e` made."""
    node = next(n for n in converted.graph.nodes if n.name == node_name)
    dequantize = node.args[1]
    if "dequantize" not in str(dequantize.target):
        raise ModelError(
            f"torchao left the weight of {node_name} in float",
            expected="a dequantize node behind the weight",
            got=str(dequantize.target),
            next_step="this is a bug or an unsupported torchao version: report it",
        )
    codes, scale = (_constant(converted, argument) for argument in dequantize.args[:2])
    return codes.to(torch.int8), scale.float()


def _constant(graph: fx.GraphModule, argument: Any) -> torch.Tensor:
    if not isinstance(argument, fx.Node):
        return torch.tensor(argument)
    value = stored_value(graph, argument)
    assert isinstance(value, torch.Tensor)
    return value.detach().cpu()
