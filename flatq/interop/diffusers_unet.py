"""A `UNet2DModel` on disk: config.json as a `ModelConfig`; the weights, none missing and none left over."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flatq.checkpoint import read_tensors
from flatq.errors import CheckpointError
from flatq.interop.diffusers_library import quiet_diffusers
from flatq.interop.diffusers_source import read_json
from flatq.network_config import ModelConfig

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


@dataclass(frozen=True)
class UnetConfig:
    """config.json of a `UNet2DModel`.

    Attributes:
        file: it.
        keys: the constructor's arguments that are given.
        version: of the diffusers that wrote it, if it says so.
    """

    file: Path
    keys: Mapping[str, Any]
    version: str | None

    def model(self) -> ModelConfig:
        """The network as flatq describes it.

        Raises:
            CheckpointError: a value that `ModelConfig` or flatq's process cannot express, by its key.
        """
        keys = dict(self.keys)
        if keys.pop("class_embed_type", None) is not None:
            self._refuse("class_embed_type", "labels that are rows of an embedding: null")
        if keys.get("time_embedding_type", "positional") != "positional":
            self._refuse("time_embedding_type", '"positional"; the others belong to score models')
        size = keys.pop("sample_size", None)
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            size = size[0]
        if type(size) is not int:
            self._refuse("sample_size", "the height and width of square images, such as 32")
        channels, out = (self._filled(key) for key in ("in_channels", "out_channels"))
        if channels not in (1, 3):
            self._refuse("in_channels", "1 for grey images or 3 for RGB")
        if out not in (channels, 2 * channels):
            self._refuse("out_channels", f"{channels}, or {2 * channels} with a learned variance")
        for key in ("in_channels", "out_channels"):
            keys.pop(key, None)
        try:
            return ModelConfig(
                image_size=size,
                image_channels=channels,
                out_channels=out,
                num_classes=keys.pop("num_class_embeds", None),
                unet=keys,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(
                f"{self.file} is not valid",
                expected=first["msg"],
                got=f"{'.'.join(map(str, first['loc']))} {first['input']!r}",
            ) from error

    def _filled(self, key: str) -> Any:
        return self.keys.get(key, _arguments()[key])

    def _refuse(self, key: str, expected: str) -> None:
        got = json.dumps(self.keys[key]) if key in self.keys else "nothing"
        raise CheckpointError(
            f"flatq has no network with the {key} in {self.file}",
            expected=expected,
            got=got,
            next_step="write it into that file, if the model was trained with it"
            if key == "sample_size"
            else "import another model",
        )


def read_unet_config(folder: Path) -> UnetConfig:
    """Read config.json of a `UNet2DModel`.

    Keys that begin with an underscore and those of an averaged model (`EMAModel`) say nothing of the network
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
    keys = {k: v for k, v in content.items() if not k.startswith("_") and k not in _EMA_KEYS}
    unknown = sorted(set(keys) - set(_arguments()))
    if unknown:
        raise CheckpointError(
            f"{file} has keys that UNet2DModel does not know",
            expected="the arguments of diffusers.UNet2DModel",
            got=", ".join(unknown),
            next_step="install a newer diffusers if one knows them: left out, they would change the network",
        )
    version = content.get("_diffusers_version")
    return UnetConfig(file, keys, version if isinstance(version, str) else None)


def same_network(a: UnetConfig, b: UnetConfig) -> list[str]:
    """The keys in which two configurations differ, defaults filled in; dropout apart, which only trains."""
    defaults = _arguments()
    x, y = (json.loads(json.dumps({**defaults, **config.keys})) for config in (a, b))
    return sorted(key for key in x if key != "dropout" and x[key] != y[key])


def _arguments() -> dict[str, Any]:
    """Arguments of the installed `UNet2DModel` and their defaults."""
    with quiet_diffusers() as diffusers:
        parameters = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def read_unet_weights(
    folder: Path, note: Callable[[str], None]
) -> tuple[dict[str, torch.Tensor], tuple[Path, ...]]:
    """The weights in a `UNet2DModel`'s folder, float32 by today's names, and the files they came from.

    The attention names of old files are converted by diffusers. Its `from_pretrained` gives tensors that a
    file lacks random values and leaves tensors that it does not know aside, with no more than a log line, and
    takes the names in a sharded file's index for those in the shards; here each of them is refused. It takes
    the index first where a folder holds an index and a whole file, so that is the order here.

    Raises:
        CheckpointError: no weights, damaged or pickled ones, a tensor that is missing, left over or of
            another shape, or a configuration that diffusers refuses.
    """
    import torch

    variant, safe, files = _weight_files(folder)
    dtypes = {str(dtype).removeprefix("torch.") for dtype in _dtypes(files, safe).values()}
    if dtypes - {"float32"}:
        note(f"{folder.name}: weights stored as {', '.join(sorted(dtypes))}, taken as float32")
    with quiet_diffusers() as diffusers:
        try:
            unet, info = diffusers.UNet2DModel.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=safe,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (
            OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError
        ) as error:  # fmt: skip
            raise CheckpointError(
                f"diffusers cannot load the UNet in {folder}",
                expected="weights that fit config.json",
                got=" ".join(str(error).split())[:300] or type(error).__name__,
                next_step="check that both come from the same model",
            ) from error
    wrong = {
        what: sorted(map(str, info[key]))
        for what, key in (("missing", "missing_keys"), ("left over", "unexpected_keys"))
    }
    wrong["of another shape"] = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if any(wrong.values()):
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json",
            expected="every tensor of the network and no other",
            got="; ".join(f"{what}: {_listed(names)}" for what, names in wrong.items() if names),
            next_step="check that both come from the same model",
        )
    return {name: v.detach().to(torch.float32, copy=True) for name, v in unet.state_dict().items()}, files


def _weight_files(folder: Path) -> tuple[str | None, bool, tuple[Path, ...]]:
    """The variant, whether it is safetensors, and the files: the index, if sharded, comes first."""
    for variant in (None, "fp16"):
        dot = f".{variant}" if variant else ""
        for ending, safe in (("safetensors", True), ("bin", False)):
            index = folder / f"{_STEM}.{ending}.index{dot}.json"
            if index.is_file():
                return variant, safe, (index, *_shards(index))
            whole = folder / f"{_STEM}{dot}.{ending}"
            if whole.is_file():
                return variant, safe, (whole,)
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
            got=_listed(odd) or "no weight_map",
            next_step="copy the folder again",
        )
    return shards


def _dtypes(files: tuple[Path, ...], safe: bool) -> dict[str, str]:
    """Name and type of each tensor; an index's names must be those of its shards."""
    shards = files[1:] or files
    found: dict[str, str] = {}
    for file in shards:
        found |= _safe_dtypes(file) if safe else _bin_dtypes(file)
    if len(files) > 1:
        named = set(read_json(files[0])["weight_map"])
        if named != set(found):
            raise CheckpointError(
                f"{files[0]} does not list what its files hold",
                expected="the same tensors",
                got=f"missing: {_listed(sorted(named - set(found)))}; "
                f"left over: {_listed(sorted(set(found) - named))}",
                next_step="copy the folder again",
            )
    return found


def _safe_dtypes(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    try:
        with safe_open(file, framework="pt") as content:
            stored = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    return {name: names.get(kind, kind) for name, kind in stored.items()}


def _bin_dtypes(file: Path) -> dict[str, str]:
    import torch

    with warnings.catch_warnings(action="ignore"):  # of pickle protocols, before it refuses them
        content = read_tensors(file)
    if not isinstance(content, dict):
        raise _damaged(file, TypeError(f"a {type(content).__name__}, not tensors by name"))
    odd = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise _damaged(file, TypeError(f"{odd[0]} is no tensor"))
    return {name: str(value.dtype) for name, value in content.items()}


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged or holds no weights",
        expected="a complete file of tensors by name",
        got=" ".join(str(error).split())[:200] or type(error).__name__,
        next_step="copy the file again",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
