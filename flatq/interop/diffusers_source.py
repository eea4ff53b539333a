"""The package diffusers, and where a model of it lies: in a folder or on the hub, with its parts.

Only finds and fetches files; others read them. Pipelines whose UNet flatq could not sample with are refused
here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatq.errors import CheckpointError, MissingRuntimeError, one_line
from flatq.library_logs import quiet_import
from flatq.packages import require
from flatq.progress import Note

__all__ = ["DiffusersSource", "locate", "quiet_diffusers", "read_json", "scheduler_file"]

_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
"""The pipelines that are a `UNet2DModel` and a scheduler, and nothing else."""

_INDEX, _CONFIG, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_FOLDERS = ("", "unet/", "unet_ema/")


@contextmanager
def quiet_diffusers() -> Iterator[Any]:
    """The package, its log lines below errors silenced: what it would say, flatq says itself.

    Raises:
        MissingRuntimeError: diffusers or torch is not installed, or diffusers cannot load its own parts (as
            0.36 beside torchao 0.18).
    """
    with quiet_import():
        try:
            import diffusers
            import torch  # noqa: F401  (without it diffusers is imported all the same, and fails on use)

            library: Any = diffusers
            _ = library.UNet2DModel, library.DDPMScheduler  # loaded on first use, which may fail
        except (ImportError, RuntimeError) as error:
            raise MissingRuntimeError(
                "diffusers is not installed or cannot be loaded",
                expected="the packages torch and diffusers, of versions that fit together",
                got=one_line(error),
                next_step='pip install "flatq[cpu]"',
            ) from error
        yield library


@dataclass(frozen=True)
class DiffusersSource:
    """A model found.

    Attributes:
        name: the hub's id, or the folder's name.
        unet: the folder with the UNet's config.json and weights.
        index: model_index.json; None for a bare UNet.
        pipeline: its class; None for a bare UNet.
        scheduler: scheduler_config.json; None where there is none.
        scheduler_class: the class in model_index.json; None for a bare UNet.
        ema: the folder unet_ema/ beside unet/; None where there is none.
        revision: of the hub's repository; None for a folder.
    """

    name: str
    unet: Path
    revision: str | None
    scheduler: Path | None
    index: Path | None = None
    pipeline: str | None = None
    scheduler_class: str | None = None
    ema: Path | None = None


def locate(source: str, note: Note) -> DiffusersSource:
    """Find a model by a folder's path or a hub id.

    Besides `unet/` and `scheduler/` in a pipeline's folder, both may lie at its root, as in the oldest
    repositories of the hub; diffusers loads those too.

    Raises:
        CheckpointError: nothing there, nothing that can be fetched, or a pipeline other than those of a
            `UNet2DModel` and a scheduler alone.
        MissingRuntimeError: a hub id, and the hub's client is not installed.
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
    scheduler = _find_scheduler(root)
    if (root / _INDEX).is_file():
        pipeline, scheduler_class = _read_index(name, root / _INDEX)
        unet, ema = root / "unet", root / "unet_ema"
        return DiffusersSource(
            name,
            unet if unet.is_dir() else root,
            revision,
            scheduler,
            root / _INDEX,
            pipeline,
            scheduler_class,
            ema if (ema / _CONFIG).is_file() else None,
        )
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
    return DiffusersSource(name, root, revision, scheduler)


def _read_index(name: str, index: Path) -> tuple[str, str]:
    """The classes of a pipeline and of its scheduler."""
    content = read_json(index)
    pipeline = str(content.get("_class_name"))
    # diffusers writes an optional part that is missing as [null, null]
    missing = (None, [None, None])
    parts = {key: v for key, v in content.items() if not key.startswith("_") and v not in missing}
    if pipeline not in _PIPELINES or set(parts) != {"unet", "scheduler"}:
        latent = sorted({"vae", "vqvae"} & set(parts))
        raise CheckpointError(
            f"{name} is a pipeline that flatq does not import: {pipeline}",
            expected=" or ".join(_PIPELINES) + ", of a unet and a scheduler",
            got=f"a {latent[0]}: the UNet works on its latents, not on pixels"
            if latent
            else "the parts " + ", ".join(parts),
            next_step="import a model that works on pixels, or the folder of a UNet2DModel and --scheduler",
        )
    for key, value in parts.items():
        library, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
        wanted = "UNet2DModel" if key == "unet" else kind
        if (library, kind) != ("diffusers", wanted):
            raise CheckpointError(
                f"the {key} of {name} is of a class that flatq does not import",
                expected=f"{wanted or 'a class'} of diffusers in {_INDEX}",
                got=json.dumps(value),
                next_step="import a model that takes an image, a timestep and at most a class label; flatq "
                "runs no code that comes with a model",
            )
    return pipeline, str(parts["scheduler"][1])


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
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read",
            expected="a JSON object that diffusers wrote",
            got=one_line(error),
            next_step="copy the file again",
        ) from error
    return content


def _fetch(name: str, note: Note) -> Path:
    """A repository of the hub in its cache: the JSON files and the UNet's weights, safetensors if any."""
    note(f"there is no folder {name}: looking for it on the hub")
    hub = require("huggingface_hub", "the client of the Hugging Face hub", "cpu")
    hush = not sys.stderr.isatty() and not hub.utils.are_progress_bars_disabled()
    if hush:
        hub.utils.disable_progress_bars()
    try:
        for ending in ("safetensors", "bin"):
            weights = [f"{where}diffusion_pytorch_model*.{ending}" for where in _FOLDERS]
            variants = [f"*.{variant}*.{ending}" for variant in ("fp16", "non_ema")]
            folder = Path(
                hub.snapshot_download(name, allow_patterns=["*.json", *weights], ignore_patterns=variants)
            )
            if any([*folder.glob(pattern)] for pattern in weights):
                break
    except Exception as error:  # the client's errors share no base: offline, absent, gated, proxies, disk
        raise CheckpointError(
            f"{name} is neither a folder here nor available on the hub",
            expected="a folder that diffusers wrote, or a hub id and a connection to the hub",
            got=f"{type(error).__name__}: {one_line(error, 200)}",
            next_step="check the name, or download the folder yourself and give its path",
        ) from error
    finally:
        if hush:
            hub.utils.enable_progress_bars()
    return folder
