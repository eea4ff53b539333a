"""Parity: does the runtime compute, layer by layer and as a whole, what the torch Q/DQ graph computes?

Each layer is given the same input tensor on both sides, so that errors do not accumulate. The inputs are
those of a short sampling trajectory, each layer's also at several times its size, so that the ends of every
grid are met.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatq.backends import RuntimeSettings, open_runtime, runtime_of
from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.deployment import Deployment, read_deployment
from flatq.errors import ModelError, UsageError
from flatq.progress import Progress
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.recipe import Kind
from flatq.runtime.base import Condition, default_threads
from flatq.runtime.torch import TorchRuntime, torch_threads
from flatq.verify.origin import check_origin
from flatq.verify.pieces import Pieces
from flatq.verify.reference import (
    AnyReference,
    ProductReference,
    away_from_edges,
    capture_sources,
    find_references,
    product_names,
)
from flatq.verify.results import EndToEnd, LayerParity, Parity

__all__ = ["VerifyInputs", "open_pieces", "sqnr_db", "verify_parity"]

_ENOUGH, _ENOUGH_IN_CHANNEL = 2**15, 2**9
"""Output elements to compare at least, so that one on the edge of two steps is far from 0.1 %, or from 1 % of
its channel."""
_MOST_OF_A_PRODUCT = 2**22
"""Output elements of an attention's product to compare at the inputs as they are, but for one image."""
_STRESS = 4.0
"""A layer is also given its inputs times this: far beyond what calibration saw."""


class VerifyInputs(CalibrationPlan):
    """How the inputs are drawn: as calibration draws them, but few, and from the quantized network."""

    images: int = 1
    steps: int = 4


def verify_parity(
    artifact: Artifact,
    folder: Path,
    *,
    lowered: Lowered,
    inputs: VerifyInputs | None = None,
    baseline: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Compare a deployment with the torch Q/DQ graph of the artifact that it was exported from.

    Args:
        folder: the deployment.
        lowered: the artifact's graph for the deployment's target.
        inputs: how many, by default as `VerifyInputs`.
        baseline: the float checkpoint, for the ratios against it.

    Returns:
        What was found; whether it is good is `Parity.passed`, and `Parity.check` raises.

    Raises:
        ArtifactError: the deployment is damaged.
        UsageError: parity on this target is not offered, or the deployment was exported from another
            artifact.
    """
    deployment, path = read_deployment(folder)
    check_origin(deployment, folder, artifact)
    threads = threads or default_threads()
    references = find_references(lowered)
    pieces = open_pieces(deployment, path, lowered, threads)
    runtime = open_runtime(deployment, path, RuntimeSettings(runtime_of(deployment.target), threads=threads))
    manifest = artifact.manifest
    calibration = manifest.calibration
    plan = inputs or VerifyInputs(
        sampler=calibration.sampler, eta=calibration.eta, guidance=calibration.guidance
    )
    with (
        runtime,
        torch_threads(threads),
        TorchRuntime(lowered.graph, inputs=manifest.model.inputs, threads=threads) as graph,
    ):
        drawn = collect_inputs(
            graph, manifest.process, plan, manifest.model.image_shape, classes=manifest.model.classes
        )
        x, t, *conditions = drawn.joined()
        cond: Condition = dict(zip(drawn.conditions, conditions, strict=True))
        kinds = {decision.node: decision.kind for decision in manifest.decisions}
        kinds |= {name: "attention" for node in lowered.products for name in product_names(node)}
        layers: dict[str, LayerParity] = {}

        def compare(reference: AnyReference, sources: tuple[torch.Tensor, ...]) -> None:
            layers[reference.layer] = _layer(pieces, reference, sources, kinds[reference.layer])
            if progress is not None:
                progress("verifying layers", len(layers), len(references))

        tensors = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in (x, t, *cond.values()))
        expected = capture_sources(lowered, references, tensors, compare).numpy()
        found = runtime(x, t, cond)
        identity = runtime.identity
    exact = None if baseline is None else _float(baseline, manifest.parent, x, t, cond, threads)
    return Parity(
        target=deployment.target,
        model_digest=deployment.digest,
        runtime=identity,
        timesteps=tuple(int(value) for value in drawn.t),
        images=drawn.x.shape[1],
        layers=tuple(layers[reference.layer] for reference in references),
        end_to_end=EndToEnd(
            deployed_to_lowered=sqnr_db(expected, found),
            lowered_to_float=None if exact is None else sqnr_db(exact, expected),
            deployed_to_float=None if exact is None else sqnr_db(exact, found),
        ),
    )


def open_pieces(deployment: Deployment, path: Path, lowered: Lowered, threads: int) -> Pieces:
    """The layers of a deployment on the runtime of its target.

    Raises:
        UsageError: the target has none here.
    """
    if deployment.target in ("onnxruntime", "generic"):
        from flatq.verify.onnx_pieces import OnnxRuntimePieces

        return OnnxRuntimePieces(path, lowered, threads)
    if deployment.target == "openvino":
        from flatq.verify.openvino_pieces import OpenVinoPieces

        return OpenVinoPieces(path, lowered, threads)
    raise UsageError(
        f"parity for {deployment.target} is not offered",
        expected="a deployment for onnxruntime, openvino or generic",
        got=deployment.target,
        next_step="export for TensorRT without it; `flatq eval` compares what the engine samples",
    )


def sqnr_db(signal: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """10 log10(sum signal^2 / sum (found - signal)^2), infinite for equal arrays, NaN where they hold one."""
    exact = signal.astype(np.float64)
    noise = float(np.square(found - exact).sum())
    power = float(np.square(exact).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power else float("-inf")


def _layer(
    pieces: Pieces, reference: AnyReference, sources: tuple[torch.Tensor, ...], kind: Kind
) -> LayerParity:
    values = _many(reference, sources)
    try:
        ran = pieces.run(reference, *(value.numpy() for value in values))
        exact = reference.evaluate(*values, integer=ran.integer, roundoff=ran.roundoff)
        if ran.output.shape != tuple(exact.value.shape):
            raise ModelError(f"it yields {list(ran.output.shape)} instead of {list(exact.value.shape)}")
    except ModelError as error:
        problem = error.what if error.got is None else f"{error.what}: {error.got}"
        return LayerParity(layer=reference.layer, kind=kind, problem=problem)
    steps, equal = exact.compare(ran.output)
    channels = np.moveaxis(equal, 1 if equal.ndim == 4 else -1, 0)
    equal = channels.reshape(len(channels), -1)
    by_channel = equal.mean(axis=1)
    return LayerParity(
        layer=reference.layer,
        kind=kind,
        kernels=ran.kernels,
        step=exact.kind,
        elements=steps.size,
        max_steps=float(steps.max()),
        equal=float(by_channel.mean()),
        worst_channel=int(by_channel.argmin()),
        worst_equal=float(by_channel.min()),
    )


def _many(reference: AnyReference, sources: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The layer's input tensors, the same times `_STRESS`, and further sizes until the output is large."""
    shape: torch.Size = reference.node.meta["val"].shape
    for_one = int(np.prod([int(n) for n in shape[1:]]))
    if isinstance(reference, ProductReference):  # which yields tokens x tokens for each head
        sources = tuple(source[: max(1, _MOST_OF_A_PRODUCT // for_one)] for source in sources)
    factors = [1.0, _STRESS]
    wanted = max(_ENOUGH, _ENOUGH_IN_CHANNEL * reference.channels)
    repeats = max(0, -(-wanted // (len(sources[0]) * for_one)) - len(factors))
    generator = torch.Generator().manual_seed(0)
    factors += (0.5 + torch.rand(repeats, generator=generator)).tolist()
    values = (torch.cat([source * factor for factor in factors]).contiguous() for source in sources)
    return tuple(
        value if grid is None else away_from_edges(value, grid)
        for value, grid in zip(values, reference.inputs, strict=True)
    )


def _float(
    baseline: Checkpoint,
    parent: dict[str, object],
    x: NDArray[np.float32],
    t: NDArray[np.int64],
    cond: Condition,
    threads: int,
) -> NDArray[np.float32]:
    if baseline.digest != parent.get("sha256"):
        raise UsageError(
            f"{baseline.source} is not the checkpoint that was quantized",
            expected=f"sha256 {str(parent.get('sha256'))[:16]}...",
            got=f"sha256 {str(baseline.digest)[:16]}...",
            next_step="name the checkpoint that the artifact was made from",
        )
    network = baseline.network(str(parent["weights"]))
    with TorchRuntime(network, inputs=baseline.model.inputs, threads=threads) as runtime:
        return runtime(x, t, cond)
