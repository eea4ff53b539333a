"""A `UNet2DModel` on disk: config.json as a `ModelConfig`; the weights of its files."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flatq.checkpoint import read_tensors
from flatq.errors import CheckpointError, one_line
from flatq.interop.diffusers_source import quiet_diffusers, read_json
from flatq.network_config import ModelConfig
from flatq.progress import Note

if TYPE_CHECKING:
    import torch

__all__ = ["UnetConfig", "read_unet_config", "read_unet_weights", "same_network"]

_EMA_KEYS = (
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
)
"""What diffusers' `EMAModel.save_pretrained` adds to config.json: how the average was made."""

_STEM = "diffusion_pytorch_model"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of an attention in files from before diffusers 0.13, and their names today."""


@dataclass(frozen=True)
class UnetConfig:
    """config.json of a `UNet2DModel`.

    Attributes:
        file: it.
        keys: the constructor's arguments, defaults filled in.
        given: those that the file gives.
        version: of the diffusers that wrote it, if it says so.
    """

    file: Path
    keys: Mapping[str, Any]
    given: frozenset[str]
    version: str | None

    def model(self) -> ModelConfig:
        """The network as flatq describes it.

        Raises:
            CheckpointError: a value that `ModelConfig` or flatq's process cannot express, by its key.
        """
        keys, size = self.keys, self.keys["sample_size"]
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            size = size[0]
        channels, out = keys["in_channels"], keys["out_channels"]
        positional = keys["time_embedding_type"] == "positional"
        out_expected = f"{channels}, or twice that with a learned variance"
        for key, fits, expected in (
            ("class_embed_type", keys["class_embed_type"] is None, "null: labels are rows of an embedding"),
            ("time_embedding_type", positional, '"positional"; the others belong to score models'),
            ("sample_size", type(size) is int, "the height and width of square images, such as 32"),
            ("in_channels", channels in (1, 3), "1 for grey images or 3 for RGB"),
            ("out_channels", out in (channels, 2 * channels), out_expected),
        ):
            if not fits:
                raise CheckpointError(
                    f"flatq has no network with the {key} in {self.file}",
                    expected=expected,
                    got=json.dumps(keys[key]),
                    next_step="correct the file, if the model was trained otherwise, or import another model",
                )
        apart = {"sample_size", "in_channels", "out_channels", "num_class_embeds", "class_embed_type"}
        try:
            return ModelConfig(
                image_size=size,
                image_channels=channels,
                out_channels=out,
                num_classes=keys["num_class_embeds"],
                unet={key: value for key, value in keys.items() if key in self.given - apart},
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(
                f"{self.file} is not valid",
                expected=first["msg"],
                got=f"{'.'.join(map(str, first['loc']))} {first['input']!r}",
            ) from error


def read_unet_config(folder: Path) -> UnetConfig:
    """Read config.json of a `UNet2DModel`.

    Keys that begin with an underscore and those of an averaged model (`EMAModel`) do not describe the network
    and are dropped.

    Raises:
        CheckpointError: no such file, another class, or a key that `UNet2DModel` does not know.
    """
    file = folder / "config.json"
    content = read_json(file)
    if content.get("_class_name") != "UNet2DModel":
        raise CheckpointError(
            f"{file} describes a network that flatq does not import",
            expected="_class_name UNet2DModel",
            got=str(content.get("_class_name")),
            next_step="import a model that takes an image, a timestep and at most a class label",
        )
    with quiet_diffusers() as diffusers:
        parameters = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    given = {k: v for k, v in content.items() if not k.startswith("_") and k not in _EMA_KEYS}
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise CheckpointError(
            f"{file} has keys that UNet2DModel does not know",
            expected="the arguments of diffusers.UNet2DModel",
            got=", ".join(unknown),
            next_step="install a newer diffusers if one knows them: left out, they would change the network",
        )
    defaults = {name: p.default for name, p in parameters.items() if name not in {"self", *given}}
    version = content.get("_diffusers_version")
    return UnetConfig(file, given | defaults, frozenset(given), version if isinstance(version, str) else None)


def same_network(a: UnetConfig, b: UnetConfig) -> list[str]:
    """The keys in which two configurations differ; dropout apart, which only trains."""
    x, y = (json.loads(json.dumps(dict(config.keys))) for config in (a, b))
    return sorted(key for key in x if key != "dropout" and x[key] != y[key])


def read_unet_weights(folder: Path, note: Note) -> tuple[dict[str, torch.Tensor], tuple[Path, ...]]:
    """The weights in a `UNet2DModel`'s folder, float32 by today's names, and the files they came from.

    Whether they fit the network is for `Checkpoint.network` to check.

    Raises:
        CheckpointError: no weights, damaged or pickled ones, or an index that does not list what its shards
            hold.
    """
    import torch

    files = _weight_files(folder)
    index = files[0] if files[0].suffix == ".json" else None
    tensors: dict[str, torch.Tensor] = {}
    for file in files[1:] if index else files:
        tensors |= _read_tensors(file)
    names = set(tensors) if index is None else set(read_json(index)["weight_map"])
    if names != set(tensors):
        missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
        raise CheckpointError(
            f"{index} does not list what its files hold",
            expected="the same tensors",
            got=f"missing: {', '.join(missing[:4]) or 'none'}; left over: {', '.join(extra[:4]) or 'none'}",
            next_step="copy the folder again",
        )
    dtypes = {str(value.dtype).removeprefix("torch.") for value in tensors.values()}
    if dtypes - {"float32"}:
        note(f"{folder.name}: weights stored as {', '.join(sorted(dtypes))}, taken as float32")
    return {
        re.sub(
            rf"(\.attentions\.\d+\.)({'|'.join(_OLD_ATTENTION)})\.",
            lambda found: f"{found[1]}{_OLD_ATTENTION[found[2]]}.",
            name,
        ): value.to(torch.float32)
        for name, value in tensors.items()
    }, files


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with the weights in diffusers' order of preference: the index first, if they are sharded."""
    for variant in ("", ".fp16"):
        for ending in ("safetensors", "bin"):
            index = folder / f"{_STEM}.{ending}.index{variant}.json"
            if index.is_file():
                return (index, *_shards(index))
            whole = folder / f"{_STEM}{variant}.{ending}"
            if whole.is_file():
                return (whole,)
    held = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    raise CheckpointError(
        f"{folder} holds no weights that flatq reads",
        expected=f"{_STEM}.safetensors or {_STEM}.bin, whole or sharded",
        got=", ".join(held) or "no file",
        next_step="save the model again with save_pretrained",
    )


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    names = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    shards = [index.parent / name for name in names]
    odd = [s.name for s in shards if s.parent != index.parent or not s.is_file()]
    if odd or not shards:
        raise CheckpointError(
            f"{index} names files that are not beside it",
            expected="a weight_map to files of the same folder",
            got=", ".join(odd[:4]) or "no weight_map",
            next_step="copy the folder again",
        )
    return shards


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file by name, on the CPU.

    Raises:
        CheckpointError: damaged, pickled objects inside, or something else than tensors by name.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, before it refuses them
            content = read_tensors(file)
        if isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values()):
            return content
        got = f"a {type(content).__name__} that holds something else"
    except (SafetensorError, OSError) as error:
        got = one_line(error)
    raise CheckpointError(
        f"{file} is damaged or holds no weights",
        expected="a complete file of tensors by name",
        got=got,
        next_step="copy the file again",
    )
