"""The Inception network of the standard FID, through torch-fidelity.

Opens, checks and runs it; its weights come from a file of the user's, from torch's cache or from a download,
and are never random.

Source: Heusel et al. 2017 (arXiv 1706.08500) for the features; torch-fidelity's port of the TensorFlow 1
graph of 2015-12-05, whose bilinear resize differs from torch's own.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatq.checkpoint import read_tensors
from flatq.errors import DataError, MissingRuntimeError, UsageError, one_line
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.moments import Rows
from flatq.files import file_digest
from flatq.runtime.torch import torch_threads

if TYPE_CHECKING:
    import torch

__all__ = ["DIM", "PUBLISHED_SHA256", "open_inception", "state_digest"]

DIM = 2048
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights file that torch-fidelity and pytorch-fid publish; the last part of its name begins it."""

_NAME = "inception-v3-compat"
_LAYER = "2048"
_COUNTER = ".num_batches_tracked"
_PIP = 'pip install "flatq[fid]"'
_OWN_FILE = "fetch the file where there is a network, and name it with --inception-weights FILE"


def open_inception(
    *, image_shape: tuple[int, int, int], weights: Path | None = None, device: str = "cpu", threads: int = 1
) -> Extractor:
    """Opens torch-fidelity's 2048 pooled features for images of (C, H, W), C 1 or 3, any size.

    They are computed in float32 without TF32. The digest is the weights' `state_digest`.

    Args:
        weights: a file of torch-fidelity's state dict, read with weights_only. Without it torch's cache
            (`torch.hub.get_dir()`/checkpoints) is looked in, then the published file is downloaded there.
        device: "cpu", "cuda" or "cuda:N".
        threads: number of CPU threads.

    Raises:
        CheckpointError: a file that cannot be read as plain tensors.
        DataError: images that are neither grey nor RGB, a file that holds something else (missing, left-over
            and misshapen tensors are named), a cached file that is not the published one.
        UsageError: another device.
        MissingRuntimeError: torch-fidelity is not installed or cannot be imported, the device is not there,
            or the weights can neither be found nor be downloaded.
    """
    if image_shape[0] not in (1, 3):
        raise DataError(
            "the Inception network takes grey or RGB images",
            expected="1 or 3 channels",
            got=f"{image_shape[0]} channels",
        )
    network, url = _import_network()
    _check_device(device)
    file = _find_or_download(url) if weights is None else weights
    state = read_tensors(file)
    digest = file_digest(file)
    published = digest == PUBLISHED_SHA256
    if weights is None and not published:
        raise DataError(
            f"the cached Inception weights {file} are not the published ones",
            expected=f"sha256 {PUBLISHED_SHA256}",
            got=f"sha256 {digest}",
            next_step="delete the file, so that it is downloaded again; or name it with --inception-weights",
        )
    module = _build(network, state, file)
    grey = "grey repeated to RGB, " if image_shape[0] == 1 else ""
    return Extractor(
        kind="inception",
        name=_NAME,
        digest=state_digest(module.state_dict()),
        dim=DIM,
        image_shape=image_shape,
        preprocessing=f"uint8, {grey}bilinear to 299 x 299 as TensorFlow 1 does, (x - 128) / 128",
        identity=_identity(device, threads),
        run=partial(_run, module.to(device), device, threads),
        batch_size=32,
        published=published,
    )


def _identity(device: str, threads: int) -> dict[str, Any]:
    import torch
    from torch_fidelity.version import __version__ as fidelity_version

    if torch.device(device).type == "cuda":
        device = f"{device}, {torch.cuda.get_device_name(torch.device(device))}"
    version = f"{torch.__version__}, torch-fidelity {fidelity_version}"
    return {"backend": "torch", "version": version, "device": device, "threads": threads}


def _run(module: torch.nn.Module, device: str, threads: int, batch: NDArray[np.uint8]) -> Rows:
    import torch

    with (
        torch_threads(threads),
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        rgb = torch.from_numpy(batch).to(device).expand(-1, 3, -1, -1)
        features: Rows = module(rgb)[0].cpu().numpy()
        return features


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256, hex, over "name dtype shape\\n" and the bytes of each tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _import_network() -> tuple[type[Any], str]:
    """torch-fidelity's class and the address of its weights."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ModuleNotFoundError as error:
        raise MissingRuntimeError(
            "the Inception network comes with torch-fidelity, which is not installed",
            expected="the packages torch-fidelity and torchvision",
            got=str(error),
            next_step=_PIP,
        ) from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingRuntimeError(
            "torch-fidelity is installed but cannot be imported: torchvision does not fit this torch",
            expected="torch and torchvision of one build, both for the CPU or both for one CUDA",
            got=one_line(error),
            next_step=f"install both from one index: pip install torch torchvision, then {_PIP}",
        ) from error
    return FeatureExtractorInceptionV3, str(URL_INCEPTION_V3)


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UsageError(
            f"the Inception network runs on no device {device!r}", expected="cpu, cuda or cuda:N"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and (torch.device(device).index or 0) >= count:
        raise MissingRuntimeError(
            f"the Inception network cannot run on {device}",
            expected="a CUDA device and a torch built for it",
            got=f"torch {torch.__version__} sees {count} CUDA devices",
            next_step="leave the device out to run on the CPU",
        )


def _find_or_download(url: str) -> Path:
    """The published file in torch's cache, downloaded where it is not there yet."""
    import torch

    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=PUBLISHED_SHA256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: another hash than the published one
        raise MissingRuntimeError(
            "the weights of the Inception network are not here and cannot be downloaded",
            expected=f"{path}, or a connection to {url}",
            got=one_line(error),
            next_step=_OWN_FILE,
        ) from error
    return path


def _build(network: type[Any], state: Any, file: Path) -> torch.nn.Module:
    """The network with these weights in float32, in eval mode; no random number is drawn."""
    import torch

    # Its constructor unpickles whatever file it is given. So it gets an empty one of our own making, and the
    # weights that were read as plain tensors go in where it would load that.
    class Loaded(network):  # type: ignore[misc]
        def load_state_dict(self, _: Mapping[str, torch.Tensor]) -> None:
            # counters of training, which evaluation never reads: old files lack them
            counters = {name: torch.zeros_like(v, device="cpu") for name, v in self.state_dict().items()
                        if name.endswith(_COUNTER)}  # fmt: skip
            try:
                super().load_state_dict({**counters, **state}, strict=True, assign=True)
            except Exception as error:  # torch raises other types for what is no dictionary of tensors
                raise DataError(
                    f"the weights in {file} do not fit torch-fidelity's Inception network",
                    expected=f"a dictionary of its {len(self.state_dict())} tensors",
                    got=one_line(error),
                    next_step="take torch-fidelity's own file",
                ) from error

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        module: torch.nn.Module = Loaded(_NAME, [_LAYER], feature_extractor_weights_path=empty)
    return module.float().requires_grad_(False).eval()
