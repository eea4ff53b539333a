"""The traced network: a torch.export graph that runs at any batch size, and the layers found in it."""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export

from flatq.errors import ModelError, one_line
from flatq.inputs import zeros
from flatq.library_logs import quiet_import
from flatq.network import Denoiser
from flatq.network_config import ModelConfig
from flatq.recipe import Candidate, Kind, Port

__all__ = [
    "DECOMPOSED",
    "HALF",
    "Layer",
    "add_call",
    "export_any_batch",
    "find_layers",
    "hold_weight",
    "quiet",
    "rewrite_layers",
    "stored_value",
    "trace",
]

HALF = "flatq_half"
"""In the meta of a node that is half of a split convolution: which one. See `skip_connections`."""

DECOMPOSED = "flatq_decomposed"
"""In the meta of the second product of a decomposed attention. See `flatq.quantize.attention`."""

_aten = torch.ops.aten
_KINDS: dict[Any, Kind] = {
    _aten.conv2d.default: "conv2d",
    _aten.linear.default: "linear",
    _aten.scaled_dot_product_attention.default: "attention",
}

_MOVES = frozenset(
    {
        _aten.cat.default,
        _aten.clone.default,
        _aten.constant_pad_nd.default,
        _aten.flip.default,
        _aten.pad.default,
        _aten.pixel_shuffle.default,
        _aten.pixel_unshuffle.default,
        _aten.repeat.default,
        _aten.roll.default,
        _aten.stack.default,
        operator.getitem,
    }
)
"""Operators that move values and change none, besides the views."""

_AFFINE = frozenset(
    {
        _aten.add.Tensor,
        _aten.div.Tensor,
        _aten.einsum.default,
        _aten.mul.Tensor,
        _aten.neg.default,
        _aten.sub.Tensor,
    }
)
"""Operators that are affine in one tensor where no layer computes the others."""


@dataclass(frozen=True)
class Layer:
    """A candidate and what computes it.

    Attributes:
        node: of a decomposed attention, its second product.
        scores: and its first; else None.
    """

    candidate: Candidate
    node: fx.Node
    scores: fx.Node | None = None

    def tensor(self, port: Port) -> tuple[fx.Node, fx.Node]:
        """The operator that reads the tensor a port names, or yields it, and the node of that tensor."""
        operator = self.scores if port in ("query", "key") else self.node
        assert operator is not None, f"{self.candidate.node} is not decomposed"
        tensor = self.node if port == "output" else operator.args[int(port in ("weight", "key", "value"))]
        assert isinstance(tensor, fx.Node)
        return operator, tensor


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the upstream exporters' notes on torchvision and deprecations; errors still raise."""
    with quiet_import(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_last: dict[tuple[str, bool], fx.GraphModule] = {}
"""The graph that `trace` made last, by the network's configuration and whether it was in training mode."""


def trace(network: nn.Module, model: ModelConfig) -> fx.GraphModule:
    """The network as a graph of ATen operators, runnable at any batch size.

    Tracing takes seconds, and what a configuration builds differs in the weights alone: the last graph is
    copied and given this network's weights where it is of the same configuration.

    diffusers' up-sampling calls `contiguous()` for batches of 64 and more, and on tensors of more than 2^31
    elements, which the trace sees as a guard on the batch. The call changes no value, so the graph is traced
    below the guard, and the guard is then dropped.

    Raises:
        ModelError: the network cannot be traced on images of this shape.
    """
    if not isinstance(network, Denoiser):
        return _trace(network, model)
    key = (model.model_dump_json(), network.training)
    if key not in _last:
        _last.clear()
        _last[key] = _trace(network, model)
    with quiet():
        graph = copy.deepcopy(_last[key])
    graph.load_state_dict(network.state_dict())
    return graph


def _trace(network: nn.Module, model: ModelConfig) -> fx.GraphModule:
    try:
        with quiet():
            program = _export(network, model, Dim("batch", min=1, max=63))
            graph = program.module(check_guards=False)
    except Exception as error:
        raise ModelError(
            f"the network cannot be traced on images of shape {list(model.image_shape)}",
            expected="a UNet that torch.export accepts with a free batch size",
            got=one_line(error),
            next_step="check that the image size is divisible by 2 for every down-sampling",
        ) from error
    assert isinstance(graph, fx.GraphModule)
    # torch.export hangs the range of the batch on the module as a hook; `check_guards` does not cover it.
    graph._forward_pre_hooks.clear()
    graph._forward_pre_hooks_with_kwargs.clear()
    return graph


def _export(network: nn.Module, model: ModelConfig, batch: Any) -> ExportedProgram:
    x, t, cond = zeros(model.inputs, 2)
    inputs = tuple(torch.from_numpy(value) for value in (x, t, *cond.values()))
    return export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False)


def export_any_batch(graph: fx.GraphModule, model: ModelConfig) -> ExportedProgram:
    """Export a traced graph again with a batch size that is free."""
    with quiet():
        return _export(graph, model, Dim("batch", min=1))


def find_layers(graph: fx.GraphModule) -> list[Layer]:
    """Every convolution, linear layer and attention product of a traced graph, in order of execution.

    Raises:
        ModelError: two layers share a weight, or a layer's weight is computed.
    """
    layers: dict[str, Layer] = {}
    first, last = _first_and_last(graph)
    for node in graph.graph.nodes:
        kind = _KINDS.get(node.target) if node.op == "call_function" else None
        scores = node.args[0].args[0] if node.meta.get(DECOMPOSED) else None
        if kind is None and scores is None:
            continue
        if scores is not None or kind == "attention":
            query, key = ((scores or node).args[i].meta["val"].shape for i in (0, 1))
            candidate = Candidate(
                node=_module_name(node),
                kind="attention",
                # Decomposed, the keys are transposed: [..., size, tokens].
                macs=2 * math.prod(int(n) for n in query[1:]) * int(key[-1 if scores else -2]),
                obstacle="" if scores else _obstacle(node),
            )
        else:
            weight = node.args[1]
            if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
                raise ModelError(
                    f"the weight of {_module_name(node)} is computed in the graph",
                    expected="a stored weight",
                    next_step="leave this layer in float with a rule of the recipe",
                )
            shape = tuple(int(n) for n in weight.meta["val"].shape)
            output = node.meta["val"].shape
            positions = math.prod(int(n) for n in (output[2:] if kind == "conv2d" else output[1:-1]))
            candidate = Candidate(
                node=str(weight.target).removesuffix(".weight"),
                kind=_KINDS[node.target],
                shape=shape,
                macs=math.prod(shape) * positions,
                group=node.meta.get(HALF, 0),
                reads_image=node in first,
                predicts=node in last,
            )
        name = candidate.node
        if name in layers:
            raise ModelError(
                f"two layers share the name or the weight {name}", expected="one layer for each weight"
            )
        layers[name] = Layer(candidate, node, scores)
    return list(layers.values())


def rewrite_layers(
    graph: fx.GraphModule, names: Container[str], rewrite: Callable[[fx.GraphModule, Layer], None]
) -> None:
    """Rewrite the named layers of a traced graph, in place."""
    for layer in find_layers(graph):
        if layer.candidate.node in names:
            rewrite(graph, layer)
    graph.graph.lint()
    graph.recompile()


def _first_and_last(graph: fx.GraphModule) -> tuple[set[fx.Node], set[fx.Node]]:
    """The layers that read the image, and those whose outputs are the prediction.

    Between the image and a first layer values are only moved or joined with others, or no other layer comes
    before it (`2 * x - 1`). Between a last layer and the network's output they are only moved, or scaled and
    shifted by what no layer computes.
    """
    tensors = [
        node for node in graph.graph.nodes if not isinstance(node.meta.get("val"), (int, torch.SymInt))
    ]
    image = next(node for node in tensors if node.op == "placeholder")
    behind: set[fx.Node] = set()  # the layers and what depends on them
    carriers = {image}
    for node in tensors:
        if node.target in _KINDS or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        if not carriers.isdisjoint(node.all_input_nodes) and (node not in behind or _moves(node)):
            carriers.add(node)
    predicting: set[fx.Node] = set()
    for node in reversed(tensors):
        sources = behind.intersection(node.all_input_nodes)
        halves = all(HALF in source.meta for source in sources)  # of a split convolution, which are added
        affine = node.target in _AFFINE and (len(sources) == 1 or halves)
        if node.op == "output" or (node in predicting and (_moves(node) or affine)):
            predicting |= sources
    layers = [node for node in tensors if node.target in _KINDS]
    first = {node for node in layers if node.args[0] in carriers}
    return first, predicting.intersection(layers)


def _moves(node: fx.Node) -> bool:
    return node.target in _MOVES or bool(getattr(node.target, "is_view", False))


def _obstacle(attention: fx.Node) -> str:
    """What an attention computes beyond two products around a softmax; empty where that is all."""
    target: Any = attention.target
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, attention.args, strict=False)), **attention.kwargs}
    extras = {
        "attn_mask": "a mask",
        "dropout_p": "dropout",
        "is_causal": "a causal mask",
        "enable_gqa": "fewer heads of keys than of queries",
    }
    found = [words for name, words in extras.items() if given.get(name) not in (None, False, 0.0)]
    return f"attention with {' and '.join(found)} is not decomposed into products" if found else ""


def _module_name(node: fx.Node) -> str:
    """Dotted name of the innermost module that a node was traced from."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [name for name, _ in stack.values()]
    return str(names[-1]).removeprefix("L['self'].") if names else node.name


def add_call(
    graph: fx.GraphModule,
    target: Any,
    arguments: tuple[Any, ...],
    origin: fx.Node,
    value: torch.Tensor | None = None,
    kwargs: dict[str, Any] | None = None,
) -> fx.Node:
    """Add an operator to a traced graph that counts as traced where another was.

    Args:
        origin: the other, whose notes it gets.
        value: a fake tensor of its result's shape; None for that of the other.
    """
    return annotated(graph.graph.call_function(target, arguments, kwargs), origin, value)


def hold_weight(graph: fx.GraphModule, name: str, weight: torch.Tensor, origin: fx.Node) -> fx.Node:
    """Give a traced graph a layer of this name with a weight of its own; the node that reads the weight.

    Args:
        origin: whose notes the node gets.
    """
    module = nn.Module()
    module.weight = nn.Parameter(weight, requires_grad=False)
    graph.add_submodule(name, module)
    held = graph.graph.get_attr(f"{name}.weight")
    return annotated(held, origin, origin.meta["val"].new_empty(weight.shape))


def annotated(node: fx.Node, origin: fx.Node, value: torch.Tensor | None = None) -> fx.Node:
    """Give a new node the notes of another, and the fake tensor of its own result."""
    node.meta = dict(origin.meta) if value is None else {**origin.meta, "val": value}
    node.meta.pop("tensor_meta", None)
    return node


def stored_value(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The parameter, buffer or module that a `get_attr` node names."""
    return attrgetter(str(node.target))(graph)
