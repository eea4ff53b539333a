"""Parity: does the runtime compute, layer by layer and as a whole, what the torch Q/DQ graph computes?

Each layer is given the same input tensor on both sides, so that errors do not accumulate. The inputs are
those of a short sampling trajectory, each layer's also at several times its size, so that the ends of every
grid are met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatq.backends import RuntimeSettings, open_runtime, runtime_of
from flatq.calib.inputs import CalibrationPlan, collect_inputs
from flatq.checkpoint import Checkpoint
from flatq.deployment import Deployment
from flatq.errors import ModelError, UsageError
from flatq.progress import Progress
from flatq.quantize.artifact import Artifact
from flatq.quantize.lowering import Lowered
from flatq.runtime.base import Condition, default_threads
from flatq.runtime.torch import TorchRuntime, torch_threads
from flatq.verify.inspection import Ran
from flatq.verify.origin import read_exported
from flatq.verify.reference import (
    Reference,
    away_from_edges,
    capture_sources,
    find_references,
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
    deployment, path = read_exported(folder, artifact)
    threads = threads or default_threads()
    references = find_references(lowered)
    run = open_pieces(deployment, path, artifact, lowered, threads)
    runtime = open_runtime(deployment, path, RuntimeSettings(runtime_of(deployment.target), threads=threads))
    manifest = artifact.manifest
    model, calibration = manifest.model, manifest.calibration
    plan = inputs or VerifyInputs(
        sampler=calibration.sampler, eta=calibration.eta, guidance=calibration.guidance
    )
    with (
        runtime,
        torch_threads(threads),
        TorchRuntime(lowered.graph, inputs=model.inputs, threads=threads) as graph,
    ):
        drawn = collect_inputs(graph, manifest.process, plan, model.image_shape, classes=model.classes)
        x, t, *conditions = drawn.joined()
        cond: Condition = dict(zip(drawn.conditions, conditions, strict=True))
        layers: dict[str, LayerParity] = {}

        def compare(reference: Reference, sources: tuple[torch.Tensor, ...]) -> None:
            layers[reference.layer] = _layer(run, reference, sources)
            if progress is not None:
                progress("verifying layers", len(layers), len(references))

        tensors = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in (x, t, *cond.values()))
        expected = capture_sources(lowered, references, tensors, compare).numpy()
        found = runtime(x, t, cond)
        identity = runtime.identity
    exact = None
    if baseline is not None:
        network = baseline.network(str(manifest.parent["weights"]))
        with TorchRuntime(network, inputs=model.inputs, threads=threads) as floats:
            exact = floats(x, t, cond)
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


def open_pieces(
    deployment: Deployment, path: Path, artifact: Artifact, lowered: Lowered, threads: int
) -> Callable[..., Ran]:
    """Runs a reference's layer of a deployment on the target's runtime, for the tensors that it reads.

    Raises:
        UsageError: the target has none here.
    """
    weights = {**lowered.layers, **artifact.manifest.float_weights}
    if deployment.target in ("onnxruntime", "generic"):
        from flatq.verify.onnx_pieces import OnnxRuntimePieces

        return OnnxRuntimePieces(path, weights, lowered.products, threads).run
    if deployment.target == "openvino":
        from flatq.verify.openvino_pieces import OpenVinoPieces

        return OpenVinoPieces(path, weights, lowered.products, threads).run
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


def _layer(run: Callable[..., Ran], reference: Reference, sources: tuple[torch.Tensor, ...]) -> LayerParity:
    values = _many(reference, sources)
    try:
        ran = run(reference, *(value.numpy() for value in values))
        exact = reference.evaluate(*values, integer=ran.integer)
        if ran.output.shape != tuple(exact.value.shape):
            raise ModelError(f"it yields {list(ran.output.shape)} instead of {list(exact.value.shape)}")
    except ModelError as error:
        problem = error.what if error.got is None else f"{error.what}: {error.got}"
        return LayerParity(layer=reference.layer, kind=reference.kind, problem=problem)
    steps, equal = exact.compare(ran.output)
    channels = np.moveaxis(equal, 1 if equal.ndim == 4 else -1, 0)
    equal = channels.reshape(len(channels), -1)
    by_channel = equal.mean(axis=1)
    return LayerParity(
        layer=reference.layer,
        kind=reference.kind,
        kernels=ran.kernels,
        step=exact.kind,
        elements=steps.size,
        max_steps=float(steps.max()),
        equal=float(by_channel.mean()),
        worst_channel=int(by_channel.argmin()),
        worst_equal=float(by_channel.min()),
    )


def _many(reference: Reference, sources: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The layer's input tensors, the same times `_STRESS`, and further sizes until the output is large."""
    shape = [int(n) for n in reference.node.meta["val"].shape[1:]]
    channels, for_one = shape[0 if len(shape) == 3 else -1], math.prod(shape)
    if reference.integers is None:  # a product, which yields tokens x tokens for each head
        sources = tuple(source[: max(1, _MOST_OF_A_PRODUCT // for_one)] for source in sources)
    factors = [1.0, _STRESS]
    wanted = max(_ENOUGH, _ENOUGH_IN_CHANNEL * channels)
    repeats = max(0, -(-wanted // (len(sources[0]) * for_one)) - len(factors))
    generator = torch.Generator().manual_seed(0)
    factors += (0.5 + torch.rand(repeats, generator=generator)).tolist()
    values = (torch.cat([source * factor for factor in factors]).contiguous() for source in sources)
    return tuple(
        value if grid is None else away_from_edges(value, grid)
        for value, grid in zip(values, reference.inputs, strict=True)
    )
