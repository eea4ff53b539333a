"""Feature networks: ONNX files that turn uint8 images into vectors, run on ONNX Runtime's CPU.

The bundled one, `digits48`, is made by `benchmarks/train_digits_features.py`.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError, UsageError, one_line
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Rows
from flatq.runtime.onnxruntime import import_onnxruntime

__all__ = ["BUNDLED", "INCEPTION", "NETS", "open_extractor", "open_features"]

BUNDLED = "digits48"
INCEPTION = "inception"
"""The word that selects the Inception network instead of an ONNX file."""
NETS = Path(__file__).with_name("nets")
_BUNDLED_SHAPE = (1, 8, 8)
_CONTRACT = "one input uint8 [N, C, H, W], N dynamic; an output `features` (or a single output) float [N, d]"


def open_extractor(
    spec: str | Path | None,
    *,
    image_shape: tuple[int, int, int],
    inception_weights: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> Extractor:
    """Opens an extractor for images of (C, H, W).

    Args:
        spec: "inception" (as a `str`), or what `open_features` takes: an ONNX file, "digits48" or None.
        inception_weights: with "inception" only: a state dict in a file, as `open_inception` takes it.
        device: with "inception" only: "cpu", "cuda" or another torch device; ONNX networks run on the CPU.
        threads: number of CPU threads.

    Raises:
        UsageError: weights or a device for an ONNX network.
        InputError, MissingRuntimeError: as `open_features` and `open_inception`.
    """
    if spec == INCEPTION:
        from flatq.evaluate.inception import open_inception

        return open_inception(
            image_shape=image_shape, weights=inception_weights, device=device, threads=threads
        )
    if inception_weights is not None or device != "cpu":
        raise UsageError(
            "weights and a device are options of the Inception network",
            expected="--features inception beside --inception-weights or --features-device",
            got=f"--features {spec}" if spec is not None else "no --features",
            next_step="add --features inception, or leave the option out",
        )
    return open_features(spec, image_shape=image_shape, threads=threads)


def open_features(
    spec: str | Path | None, *, image_shape: tuple[int, int, int], threads: int = 1
) -> Extractor:
    """Opens an ONNX feature network and checks it on two black images.

    Args:
        spec: an ONNX file; "digits48" (as a `str`) or None for the bundled network for images of 1 x 8 x 8.
            The file holds its weights and has one input uint8 [N, C, H, W], any scaling inside, and an
            output `features` (or a single output) [N, d].
        image_shape: (C, H, W) of the images to come.
        threads: number of CPU threads.

    Raises:
        DataError: no network for this shape, a missing file, a file that ONNX Runtime cannot load, or one
            whose input or output is not as above.
        MissingRuntimeError: onnxruntime is not installed.
    """
    shown = " x ".join(map(str, image_shape))
    if spec is None or spec == BUNDLED:
        if tuple(image_shape) != _BUNDLED_SHAPE:
            raise DataError(
                f"there is no bundled feature network for images of {shown}",
                expected="1 x 8 x 8 for the bundled digits48",
                got=shown,
                next_step="give a network of your own, --features net.onnx, or take --features inception",
            )
        path = NETS / f"{BUNDLED}.onnx"
    else:
        path = Path(spec)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the feature network {path} cannot be read",
            expected=f"an ONNX file, {BUNDLED} or {INCEPTION}",
            got=error.strerror or str(error),
            next_step="check the path",
        ) from error
    session = _session(data, path, threads)
    output = _check_network(session, path, image_shape)
    dim = _run(session, output, path, None, np.zeros((2, *image_shape), np.uint8)).shape[1]
    version = str(import_onnxruntime().__version__)
    return Extractor(
        kind="onnx",
        name=path.stem,
        digest=hashlib.sha256(data).hexdigest(),
        dim=dim,
        image_shape=image_shape,
        preprocessing="uint8 as it is, any scaling inside the network",
        identity={"backend": "onnxruntime", "version": version, "device": "cpu", "threads": threads},
        run=partial(_run, session, output, path, dim),
        batch_size=256,
    )


def _session(data: bytes, path: Path, threads: int) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, which share no base but Exception
        raise DataError(
            f"ONNX Runtime {ort.__version__} cannot load the feature network {path}",
            expected="one ONNX file with its weights inside",
            got=one_line(error),
            next_step="export it again, without external data",
        ) from error


def _check_network(session: Any, path: Path, image_shape: tuple[int, int, int]) -> str:
    """The name of the output; a string or None in an ONNX shape is a dynamic dimension."""
    inputs, outputs = session.get_inputs(), [value.name for value in session.get_outputs()]
    fits = len(inputs) == 1 and inputs[0].type == "tensor(uint8)" and len(inputs[0].shape) == 4
    if fits:
        batch, *rest = inputs[0].shape
        fits = not isinstance(batch, int) and all(
            not isinstance(d, int) or d == want for d, want in zip(rest, image_shape, strict=True)
        )
    if not fits or ("features" not in outputs and len(outputs) != 1):
        described = [f"{i.name} {i.type} {list(i.shape)}" for i in inputs]
        raise DataError(
            f"the feature network {path} does not take these images and yield features",
            expected=_CONTRACT + f"; images of {', '.join(map(str, image_shape))}",
            got=f"inputs {'; '.join(described) or 'none'}; outputs {', '.join(outputs)}",
            next_step="export a network that takes these images as uint8 and scales them itself, with one "
            "output named `features`",
        )
    return "features" if "features" in outputs else str(outputs[0])


def _run(session: Any, output: str, path: Path, dim: int | None, batch: NDArray[np.uint8]) -> Rows:
    """[len(batch), d] in the network's own precision; d must be `dim` where that is given."""
    try:
        result = session.run([output], {session.get_inputs()[0].name: batch})[0]
    except Exception as error:  # see _session
        raise DataError(
            f"the feature network {path} fails on uint8 {list(batch.shape)}",
            expected=_CONTRACT,
            got=one_line(error),
        ) from error
    array = result if isinstance(result, np.ndarray) else None
    if (
        array is None
        or array.ndim != 2
        or len(array) != len(batch)
        or array.shape[1] != (dim or array.shape[1])
        or array.shape[1] == 0
        or not np.issubdtype(array.dtype, np.floating)
    ):
        raise DataError(
            f"the output {output} of the feature network {path} is not one vector for each image",
            expected=f"float [{len(batch)}, {dim or 'd'}]",
            got=type(result).__name__ if array is None else f"{array.dtype} {list(array.shape)}",
            next_step="pool and flatten inside the network",
        )
    return array
