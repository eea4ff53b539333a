"""Feature networks: ONNX files that turn uint8 images into vectors, run on ONNX Runtime's CPU.

The bundled one, `digits48`, is made by `benchmarks/train_digits_features.py`. What every extractor offers
is in `flatq.evaluate.extractor`; moments and distances in `flatq.evaluate.moments` and
`flatq.evaluate.frechet`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError
from flatq.evaluate.extractor import INCEPTION, Progress, check_finite, check_pixels
from flatq.runtime.onnxruntime import import_onnxruntime

__all__ = ["BUNDLED", "FeatureNet", "open_features"]

BUNDLED = "digits48"

_NETS = Path(__file__).with_name("nets")
_BUNDLED_SHAPE = (1, 8, 8)
_CONTRACT = "one input uint8 [N, C, H, W], N dynamic; an output `features` (or a single output) float [N, d]"


@dataclass(frozen=True)
class FeatureNet:
    """A feature network that `open_features` has checked.

    name: "digits48" or the file's stem. digest: sha256 of the file, hex. dim: d. image_shape: (C, H, W).
    """

    name: str
    digest: str
    dim: int
    path: Path
    image_shape: tuple[int, int, int]

    @property
    def kind(self) -> Literal["onnx"]:
        return "onnx"

    @property
    def preprocessing(self) -> str:
        return "uint8 as it is, any scaling inside the network"

    @property
    def published(self) -> None:
        return None

    def identity(self, threads: int) -> dict[str, Any]:
        version = str(import_onnxruntime().__version__)
        return {"backend": "onnxruntime", "version": version, "device": "cpu", "threads": threads}

    def extract(
        self,
        pixels: NDArray[np.uint8],
        *,
        batch_size: int = 256,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> NDArray[np.float64]:
        """Features of uint8 [n, C, H, W] as float64 [n, d].

        Raises:
            DataError: another dtype or shape, batch_size or threads below 1, a file that is no longer the one
                that was opened, features that are NaN or infinite.
            MissingRuntimeError: onnxruntime is not installed.
        """
        check_pixels(pixels, self.name, self.image_shape, batch_size, threads)
        data = _read(self.path)
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.digest:
            raise DataError(
                f"{self.path} has changed since it was opened",
                expected=f"sha256 {self.digest}",
                got=f"sha256 {digest}",
                next_step="start again, so that all features come from one network",
            )
        session = _session(data, self.path, threads)
        features = np.empty((len(pixels), self.dim), np.float64)
        for start in range(0, len(pixels), batch_size):
            batch = np.ascontiguousarray(pixels[start : start + batch_size])
            features[start : start + len(batch)] = _run(session, batch, self.path, self.dim)
            if progress is not None:
                progress(start + len(batch), len(pixels))
        check_finite(features, self.name)
        return features


def open_features(spec: str | Path | None, *, image_shape: tuple[int, int, int]) -> FeatureNet:
    """Opens a feature network and checks it on two black images.

    Args:
        spec: an ONNX file; "digits48" (as a `str`) or None for the bundled network for images of 1 x 8 x 8.
            The file holds its weights and has one input uint8 [N, C, H, W], any scaling inside, and an
            output `features` (or a single output) [N, d].
        image_shape: (C, H, W) of the images to come.

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
        path = _NETS / f"{BUNDLED}.onnx"
    else:
        path = Path(spec)
    data = _read(path)
    session = _session(data, path, 1)
    _check_input(session, path, image_shape)
    dim = _run(session, np.zeros((2, *image_shape), np.uint8), path, None).shape[1]
    return FeatureNet(path.stem, hashlib.sha256(data).hexdigest(), dim, path, image_shape)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the feature network {path} cannot be read",
            expected=f"an ONNX file, {BUNDLED} or {INCEPTION}",
            got=error.strerror or str(error),
            next_step="check the path",
        ) from error


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
            got=_one_line(error),
            next_step="export it again, without external data",
        ) from error


def _check_input(session: Any, path: Path, image_shape: tuple[int, int, int]) -> None:
    """A string or None in an ONNX shape is a dynamic dimension."""
    inputs = session.get_inputs()
    wanted = f"uint8 [N, {', '.join(map(str, image_shape))}], N dynamic"
    if len(inputs) == 1 and inputs[0].type == "tensor(uint8)" and len(inputs[0].shape) == 4:
        batch, *rest = inputs[0].shape
        fits = all(not isinstance(d, int) or d == want for d, want in zip(rest, image_shape, strict=True))
        if not isinstance(batch, int) and fits:
            return
    raise DataError(
        f"the feature network {path} does not take these images",
        expected=f"one input {wanted}",
        got="; ".join(f"{i.name} {i.type} {list(i.shape)}" for i in inputs) or "no inputs",
        next_step="export a network that takes these images as uint8 and scales them itself",
    )


def _run(session: Any, batch: NDArray[np.uint8], path: Path, dim: int | None) -> NDArray[np.floating[Any]]:
    """[len(batch), d] in the network's own precision; d must be `dim` where that is given."""
    outputs = [value.name for value in session.get_outputs()]
    if "features" not in outputs and len(outputs) != 1:
        raise DataError(
            f"the feature network {path} has no output that is the features",
            expected=_CONTRACT,
            got="the outputs " + ", ".join(outputs),
            next_step="name the output `features`",
        )
    name = "features" if "features" in outputs else outputs[0]
    try:
        result = session.run([name], {session.get_inputs()[0].name: batch})[0]
    except Exception as error:  # see _session
        raise DataError(
            f"the feature network {path} fails on uint8 {list(batch.shape)}",
            expected=_CONTRACT,
            got=_one_line(error),
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
            f"the output {name} of the feature network {path} is not one vector for each image",
            expected=f"float [{len(batch)}, {dim or 'd'}]",
            got=type(result).__name__ if array is None else f"{array.dtype} {list(array.shape)}",
            next_step="pool and flatten inside the network",
        )
    return array


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
