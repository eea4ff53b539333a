"""Where a diffusers model lies, in a folder or on the hub, and where its parts are in there.

Only finds and fetches files; what they say is read elsewhere. Pipelines whose UNet flatq could not sample
with are refused here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatq.errors import CheckpointError
from flatq.interop.diffusers_library import quiet_diffusers

__all__ = ["PIPELINES", "Source", "locate", "read_json", "scheduler_file"]

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
"""The pipelines that are a `UNet2DModel` and a scheduler, and nothing else."""

_INDEX, _CONFIG, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_FOLDERS = ("", "unet/", "unet_ema/")


@dataclass(frozen=True)
class Source:
    """A model found.

    Attributes:
        name: the hub's id, or the folder's name.
        unet: the folder with the UNet's config.json and weights.
        index: model_index.json; None for a bare UNet.
        pipeline: its class; None for a bare UNet.
        scheduler: scheduler_config.json; None where there is none.
        scheduler_class: what model_index.json says of it; None for a bare UNet.
        ema: the folder unet_ema/ beside unet/; None where there is none.
        revision: of the hub's repository; None for a folder.
    """

    name: str
    unet: Path
    index: Path | None = None
    pipeline: str | None = None
    scheduler: Path | None = None
    scheduler_class: str | None = None
    ema: Path | None = None
    revision: str | None = None


def locate(source: str, note: Callable[[str], None]) -> Source:
    """Find a model by a folder's path or a hub id.

    Besides `unet/` and `scheduler/` in a pipeline's folder, both may lie at its root, as in the oldest
    repositories of the hub; diffusers loads those too.

    Raises:
        CheckpointError: nothing there, nothing that can be fetched, or a pipeline other than `PIPELINES`.
        MissingRuntimeError: a hub id, and diffusers (which brings the hub's client) is not installed.
    """
    root, revision = Path(source), None
    name = root.resolve().name
    if not root.exists():
        if not _HUB_ID.fullmatch(source):
            raise CheckpointError(
                f"there is nothing at {source}",
                expected="a folder that diffusers wrote, or a hub id such as owner/name",
                got="no such file or folder",
                next_step="check the path",
            )
        name, root = source, _fetch(source, note)
        revision = root.name
    if (root / _INDEX).is_file():
        return _pipeline(name, root, revision)
    if not (root / _CONFIG).is_file():
        inner = root / "unet"
        raise CheckpointError(
            f"{source} holds no model of diffusers",
            expected=f"{_INDEX} of a pipeline, or {_CONFIG} of a UNet2DModel",
            got="a file" if root.is_file() else "a folder without either",
            next_step=f"name the UNet's folder: {inner}"
            if (inner / _CONFIG).is_file()
            else "name the folder that save_pretrained wrote",
        )
    beside = root / _SCHEDULER
    return Source(name, root, scheduler=beside if beside.is_file() else None, revision=revision)


def _pipeline(name: str, root: Path, revision: str | None) -> Source:
    index = root / _INDEX
    content = read_json(index)
    pipeline = content.get("_class_name")
    parts = {key: value for key, value in content.items() if not key.startswith("_") and _is_there(value)}
    if pipeline not in PIPELINES:
        latent = sorted({"vae", "vqvae"} & set(parts))
        raise CheckpointError(
            f"{name} is a pipeline that flatq does not import: {pipeline}",
            expected=" or ".join(PIPELINES),
            got=f"a {latent[0]}: the UNet works on its latents, not on pixels"
            if latent
            else "the parts " + ", ".join(parts),
            next_step="import a model that works on pixels",
        )
    wanted = {"unet": "UNet2DModel", "scheduler": None}
    for key in [*wanted, *parts]:
        if key not in wanted or key not in parts:
            raise CheckpointError(
                f"{index} has parts that do not make a {pipeline}",
                expected=", ".join(wanted),
                got=", ".join(parts) or "none",
                next_step="name the folder of the UNet2DModel, and its scheduler with --scheduler",
            )
    for key, value in parts.items():
        if not (isinstance(value, list) and len(value) == 2 and value[0] == "diffusers"):
            raise CheckpointError(
                f"the {key} of {name} is not a class of diffusers",
                expected='["diffusers", CLASS] in ' + _INDEX,
                got=json.dumps(value),
                next_step="flatq runs no code that comes with a model",
            )
        if wanted[key] not in (None, value[1]):
            raise CheckpointError(
                f"the {key} of {name} is of a class that flatq does not import",
                expected=str(wanted[key]),
                got=str(value[1]),
                next_step="import a model that takes an image, a timestep and at most a class label",
            )
    unet = root / "unet" if (root / "unet").is_dir() else root
    ema = root / "unet_ema"
    return Source(
        name,
        unet,
        index,
        str(pipeline),
        _find_scheduler(root),
        str(parts["scheduler"][1]),
        ema if (ema / _CONFIG).is_file() else None,
        revision,
    )


def _is_there(part: Any) -> bool:
    """diffusers writes a part that a pipeline may do without as [null, null]."""
    return part is not None and part != [None, None]


def scheduler_file(path: Path) -> Path:
    """The scheduler's file: `path` itself, or in that folder or its `scheduler/`.

    Raises:
        CheckpointError: there is none.
    """
    file = _find_scheduler(path)
    if file is None:
        raise CheckpointError(
            f"{path} holds no scheduler",
            expected=f"{_SCHEDULER}, or a folder with it",
            got="no such file",
            next_step="check the path, or give a scheduler with --scheduler",
        )
    return file


def _find_scheduler(path: Path) -> Path | None:
    files = (path, path / "scheduler" / _SCHEDULER, path / _SCHEDULER)
    return next((file for file in files if file.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no file, or no JSON object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read",
            expected="a JSON file that diffusers wrote",
            got=" ".join(str(error).split())[:200],
            next_step="copy the file again",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds no configuration", expected="a JSON object", got=type(content).__name__
        )
    return content


def _fetch(name: str, note: Callable[[str], None]) -> Path:
    """A repository of the hub in its cache: the JSON files and the UNet's weights, safetensors if any."""
    note(f"there is no folder {name}: looking for it on the hub")
    folder = _snapshot(name, "safetensors")
    if not any([*folder.glob(f"{where}*.safetensors")] for where in _FOLDERS):
        folder = _snapshot(name, "bin")
    return folder


def _snapshot(name: str, ending: str) -> Path:
    with quiet_diffusers():
        import huggingface_hub
    hub: Any = huggingface_hub
    hush = not sys.stderr.isatty() and not hub.utils.are_progress_bars_disabled()
    if hush:
        hub.utils.disable_progress_bars()
    try:
        weights = [f"{where}diffusion_pytorch_model*.{ending}" for where in _FOLDERS]
        variants = [f"*.{variant}*.{ending}" for variant in ("fp16", "non_ema")]
        return Path(
            hub.snapshot_download(name, allow_patterns=["*.json", *weights], ignore_patterns=variants)
        )
    except Exception as error:  # the client's errors share no base: offline, absent, gated, proxies, disk
        raise CheckpointError(
            f"{name} is neither a folder here nor to be had from the hub",
            expected="a folder that diffusers wrote, or a hub id and a connection to the hub",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            next_step="check the name, or download the folder yourself and give its path",
        ) from error
    finally:
        if hush:
            hub.utils.enable_progress_bars()
