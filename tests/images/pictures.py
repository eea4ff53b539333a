"""Small images and the files that hold them, for the tests beside this file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def rgb(n: int, h: int = 4, w: int = 4, seed: int = 0) -> np.ndarray:
    """uint8 [n, 3, h, w] of noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, 3, h, w), dtype=np.uint8)


def png(chw: np.ndarray) -> bytes:
    """One image [C, H, W] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(chw[0] if len(chw) == 1 else chw.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def edm_files(images: np.ndarray, labels: Sequence[Any] | None) -> dict[str, bytes]:
    """What NVlabs' dataset_tool writes into its zip: numbered names, uncompressed PNGs, dataset.json last."""
    files: dict[str, bytes] = {}
    for index, image in enumerate(images):
        number = f"{index:08d}"
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="png", compress_level=0, optimize=False)
        files[f"{number[:5]}/img{number}.png"] = buffer.getvalue()
    table = None if labels is None else [[name, label] for name, label in zip(files, labels, strict=True)]
    files["dataset.json"] = json.dumps({"labels": table}).encode()
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
