"""Checkpoints: what a trained model is on disk, and the network it describes.

Reads and writes `.pt` files (nothing is unpickled) and builds the diffusers network. Training is
`flatq.train`'s work.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import ValidationError

from flatq.errors import CheckpointError, UsageError, one_line
from flatq.failures import shortage
from flatq.files import file_digest, replacing
from flatq.network_config import ModelConfig
from flatq.process import ProcessConfig

if TYPE_CHECKING:
    import torch

    from flatq.network import Denoiser

__all__ = [
    "AVERAGES",
    "Checkpoint",
    "check_archive",
    "check_weights",
    "choose_weights",
    "file_digest",
    "load_checkpoint",
    "read_tensors",
    "save_checkpoint",
    "write_tensors",
]

AVERAGES = ("ema", "raw", "swa")
"""The weights a checkpoint may hold, in the order in which a default is looked for.

Further moving averages, `ema_DECAY`, are taken by name only.
"""

_FURTHER = "ema_"

_FORMAT = "flatq-checkpoint"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained model.

    Attributes:
        model, process: configurations.
        weights: average name (`raw`, `ema`, `swa`, `ema_0.9999`) -> state dict of the `UNet2DModel`, float32.
        provenance: method, rho, steps, seed, data digest and the like; plain values only.
        digest: sha256 of the file it was read from, None before it is saved.
        source: where it was read from, None before it is saved.
    """

    model: ModelConfig
    process: ProcessConfig
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    source: Path | None = None

    def choose(self, average: str | None = None) -> str:
        """The name of the weights to use: the one asked for, else ema if there, else raw, else swa.

        Raises:
            UsageError: the checkpoint does not hold the weights asked for.
        """
        held = _held(self.weights)
        if average is None:
            return held[0]
        if average not in self.weights:
            raise UsageError(
                f"{self.source or 'the checkpoint'} holds no {average!r} weights",
                expected="one of " + ", ".join(held),
                got=average,
                next_step=f"use --weights {held[0]}",
            )
        return average

    def network(self, average: str | None = None) -> Denoiser:
        """The network with the chosen weights, in eval mode.

        Raises:
            CheckpointError: the weights do not fit the configuration or are not finite.
        """
        from flatq.network import build_network

        name = self.choose(average)
        network = build_network(self.model)
        check_weights(network, self.weights[name], f"{self.source or 'checkpoint'} ({name} weights)")
        network.unet.load_state_dict(dict(self.weights[name]))
        return network.eval()


def _held(weights: Mapping[str, object]) -> list[str]:
    """The names that flatq knows, those in `AVERAGES` first."""
    further = sorted(str(name) for name in weights if str(name).startswith(_FURTHER))
    return [name for name in AVERAGES if name in weights] + further


def check_weights(network: Denoiser, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights that do not fit a network (which may be on the meta device) or are not finite.

    Raises:
        CheckpointError: names, shapes or values are wrong; `where` is named.
    """
    wanted = {name: tuple(value.shape) for name, value in network.unet.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        names = sorted(set(wanted) ^ set(found)) or [k for k in wanted if wanted[k] != found[k]]
        first = names[0]
        raise CheckpointError(
            f"the weights of {where} do not fit its configuration: {len(names)} tensors differ",
            expected=f"{first} {list(wanted[first]) if first in wanted else 'absent'}",
            got=f"{first} {list(found[first]) if first in found else 'absent'}",
            next_step="check that the configuration is the one the weights were trained with",
        )
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"the weights of {where} are not finite",
                expected="finite numbers",
                got=f"NaN or infinity in {name}",
                next_step="take an earlier checkpoint; a diverged training leaves such weights",
            )


def choose_weights(checkpoint: Checkpoint, asked: str | None, note: Callable[[str], None]) -> str:
    """The name of the weights to use, passed to `note`, and that it is the default where it is.

    Raises:
        UsageError: the checkpoint does not hold the weights asked for.
    """
    chosen = checkpoint.choose(asked)
    held = "" if asked else f" (the default; {checkpoint.source} holds {', '.join(checkpoint.weights)})"
    note(f"weights: {chosen}{held}")
    return chosen


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Write a checkpoint under a temporary name, then move it into place.

    Returns:
        The checkpoint with `digest` and `source` set.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": checkpoint.model.model_dump(mode="json"),
        "process": checkpoint.process.model_dump(mode="json"),
        "weights": {
            average: {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            for average, weights in checkpoint.weights.items()
        },
        "provenance": dict(checkpoint.provenance),
    }
    write_tensors(content, path)
    return replace(checkpoint, digest=file_digest(path), source=path)


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values to a `.pt` file; a kill leaves the old file or the new one, whole.

    Raises:
        CheckpointError: the file cannot be written.
    """
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:  # given a name, torch hides a full disk
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        full = shortage(error)
        raise CheckpointError(
            f"cannot write {path}",
            expected="a file name in a folder that can be written, and room for the weights",
            got=one_line(error) if full is None else full.got,
            next_step="make room or choose another path; a file that was there before is unchanged",
        ) from error


def read_tensors(path: Path) -> Any:
    """What a `.pt` file holds, whoever wrote it: tensors and plain values only.

    A zip archive, which torch has written since 1.6, is checked against its checksums first. Older files have
    none, so that a changed weight in them goes unnoticed.

    Raises:
        CheckpointError: missing, damaged, or pickled objects inside.
        InputError: a whole archive, but too little memory.
    """
    import pickle

    import torch

    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}",
            expected="a .pt file",
            got="a folder" if path.is_dir() else "nothing at that path",
            next_step="check the path",
        )
    whole = False
    try:
        with path.open("rb") as stream:
            if stream.read(4) == b"PK\3\4":  # older files are a bare pickle, not a zip archive
                check_archive(stream)
                whole = True
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors",
            expected="a file that torch.load(weights_only=True) accepts",
            got=_pickled_content(error),
            next_step="save the state dict alone; flatq never unpickles code",
        ) from error
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        if whole and (short := shortage(error)):
            raise short from error
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint",
            expected="a complete .pt file",
            got=f"{path.stat().st_size} bytes; {one_line(error)}",
            next_step="copy the file again, or write it again",
        ) from error


def check_archive(stream: BinaryIO) -> None:
    """Check the CRC-32 of every member of a zip archive, which torch does not.

    Raises:
        zipfile.BadZipFile: damaged, names the member. Headers that make no sense raise other exceptions:
            ValueError, NotImplementedError, struct.error and the like.
    """
    with zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum mismatch in {damaged}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a `.pt` file of flatq, tensors and plain values only.

    Raises:
        CheckpointError: as `read_tensors`; another format or version, or a configuration that is not valid.
    """
    import torch

    content = read_tensors(path)
    about = {k: content.get(k) for k in ("format", "version")} if isinstance(content, dict) else {}
    if about != {"format": _FORMAT, "version": _VERSION}:
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a flatq checkpoint of this version",
            expected=f"format {_FORMAT}, version {_VERSION}",
            got=f"format {about['format']}, version {about['version']}" if any(about.values()) else keys,
            next_step="use the flatq that wrote it; `flatq import` reads a bare state dict with its flags",
        )
    try:
        model = ModelConfig.model_validate(content["model"])
        process = ProcessConfig.model_validate(content["process"])
        found = {name: value for name, value in content["weights"].items() if value is not None}
        weights = {name: dict(found[name]) for name in _held(found)}
        provenance = dict(content["provenance"])
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the configuration in {path} is not valid",
            expected="the keys model, process, weights, provenance",
            got=one_line(error),
            next_step="write the checkpoint again with this version of flatq",
        ) from error
    odd = [f"{a}: {k}" for a, w in weights.items() for k, v in w.items() if not isinstance(v, torch.Tensor)]
    if odd or not weights:
        raise CheckpointError(
            f"{path} holds weights that are not tensors" if odd else f"{path} holds no weights",
            expected="raw, ema or swa weights, tensors by name",
            got=odd[0] if odd else "none of them",
            next_step="write the checkpoint again",
        )
    return Checkpoint(model, process, weights, provenance, file_digest(path), path)


def _pickled_content(error: Exception) -> str:
    """What torch's message names, without its advice to unpickle after all."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"a pickled {found[1]}"
    text = " ".join(str(error).split()).rsplit("WeightsUnpickler error: ", 1)[-1]
    return text.split(" Please file", 1)[0][:200]
