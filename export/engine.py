"""From a deployment folder for TensorRT to the engine of this machine. No torch.

One strongly typed network, one optimization profile over the batch, a timing cache, and a record beside the
engine. Precision comes from the graph alone. Works with TensorRT 10 and 11.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatq.deployment import read_deployment
from flatq.errors import MissingRuntimeError, ModelError, UsageError
from flatq.files import replacing
from flatq.runtime.cuda import open_device
from flatq.runtime.engines import TIMING_CACHE, EngineRecord, engine_stem
from flatq.runtime.tensorrt import import_tensorrt, make_logger

__all__ = ["Parsed", "build_engine", "build_serialized", "parse"]


@dataclass(frozen=True)
class Parsed:
    """A network in TensorRT's own form, with the objects that have to outlive it."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    parser: Any


def build_engine(folder: Path, batches: tuple[int, int, int] = (1, 8, 64)) -> Path:
    """Build the engine of a deployment folder for this machine's GPU and TensorRT, beside its model.

    Args:
        batches: optimization profile: smallest, best and largest batch size.

    Returns:
        The engine's path.

    Raises:
        MissingRuntimeError: no tensorrt or no GPU here; the message says what to take where.
        UsageError: the folder is for another target.
        ModelError: TensorRT refuses the graph.
    """
    deployment, file = read_deployment(folder)
    if deployment.target != "tensorrt":
        raise UsageError(
            f"{folder} is exported for {deployment.target}",
            expected="a folder that `flatq export ARTIFACT --trt` wrote",
            got=deployment.target,
            next_step="export the artifact with --trt",
        )
    try:
        version = str(import_tensorrt().__version__)
        device = open_device()
    except MissingRuntimeError as error:
        raise MissingRuntimeError(
            f"the engine was not built: {error.what}",
            expected=error.expected,
            got=error.got,
            next_step=f"{file} is what to take to the machine with the GPU: copy the folder {folder} there, "
            f'pip install "flatq[tensorrt]", then flatq export {folder.name} --trt',
        ) from error
    stem = engine_stem(device.architecture, version)
    cache = folder / TIMING_CACHE.format(stem=stem)
    plan, timing_cache, build = build_serialized(
        file, batches, timing_cache=cache.read_bytes() if cache.is_file() else b""
    )
    record = EngineRecord(
        file=f"{stem}.plan",
        sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=deployment.sha256,
        architecture=device.architecture,
        gpu=device.name,
        tensorrt=version,
        batch=batches,
        build=build,
    )
    _replace(cache, timing_cache)
    _replace(folder / record.file, plan)
    _replace(folder / f"{stem}.json", (record.model_dump_json(indent=1) + "\n").encode())
    return folder / record.file


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def parse(file: Path) -> Parsed:
    """Parse an ONNX file into a strongly typed network.

    Raises:
        MissingRuntimeError: tensorrt is not installed.
        ModelError: what TensorRT's parser refuses, every error of it.
    """
    trt = import_tensorrt()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        errors = [": ".join(filter(None, (error.node_name(), error.desc()))) for error in found]
        raise _refusal(f"TensorRT {trt.__version__} refuses the graph of {file}", errors or logger.errors)
    return Parsed(trt, logger, builder, network, parser)


def build_serialized(
    file: Path, batches: tuple[int, int, int], *, timing_cache: bytes = b""
) -> tuple[bytes, bytes, dict[str, Any]]:
    """Build the engine of an ONNX file, without running it.

    Args:
        batches: optimization profile: smallest, best and largest batch size.
        timing_cache: of an earlier build; one that does not fit this machine is started anew.

    Returns:
        The engine, the timing cache for the next build, and the settings for the record.

    Raises: as `parse`; ModelError where the builder fails.
    """
    parsed = parse(file)
    trt, builder, network = parsed.trt, parsed.builder, parsed.network
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    config.add_optimization_profile(profile)
    # What the engine's inspector can say later is decided here.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # float32 in the graph means float32: TF32 has the mantissa of fp16, which fp16 offers by name.
    config.clear_flag(trt.BuilderFlag.TF32)
    cache = config.create_timing_cache(timing_cache) if timing_cache else None
    reused = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    if not reused:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal(f"TensorRT {trt.__version__} cannot build {file}", parsed.logger.errors)
    settings = {"strongly_typed": True, "tf32": False, "timing_cache_reused": reused}
    return bytes(plan), bytes(config.get_timing_cache().serialize()), settings


def _refusal(what: str, errors: list[str]) -> ModelError:
    reasons = "; ".join(dict.fromkeys(" ".join(e.split()) for e in errors))
    return ModelError(
        what,
        expected="a graph that its parser and builder take",
        got=reasons[:600] or "no reason given",
        next_step="export it again with --trt; if it still fails, report it with `flatq doctor`",
    )
