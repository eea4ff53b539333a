"""Image folders and zips, also those of NVlabs' dataset_tool, whose dataset.json holds labels.

Nothing is unpacked to disk. What decodes the files lives in stack.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from flatq.errors import DataError, one_line
from flatq.images.labels import DATASET_JSON, I64, dataset_json_labels
from flatq.images.stack import Contents, Target, stack_files

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "check_member",
    "has_images",
    "read_folder",
    "read_zip",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

MAX_FILE_BYTES = 256 * 2**20
"""A zip's member that unpacks to more is refused unread; no single image or label file is as large."""

# of these two zipfile never unpacks more than the size that the zip declares
_COMPRESSIONS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def read_folder(folder: Path, target: Target, limit: int | None) -> Contents:
    """Every image below `folder`, sorted by posix path, with the labels of its dataset.json if it has one."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return _read({name: path.read_bytes for name, path in found.items()}, folder, target, limit)


def read_zip(path: Path, target: Target, limit: int | None) -> Contents:
    """Every image of a zip, sorted by name, with the labels of its dataset.json if it has one."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(f"{path} cannot be read as a zip archive", error) from error
    with archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        for name, info in members.items():
            if _is_image_name(name) or name == DATASET_JSON:
                check_member(info, path, MAX_FILE_BYTES)
        return _read(
            {name: partial(archive.read, info) for name, info in members.items()}, path, target, limit
        )


def has_images(folder: Path) -> bool:
    """Whether an image lies anywhere below `folder`."""
    return any(
        path.is_file() and _is_image_name(path.relative_to(folder).as_posix()) for path in folder.rglob("*")
    )


def check_member(info: zipfile.ZipInfo, path: Path, most_bytes: int) -> None:
    """Whether a member of a zip may be unpacked.

    Raises:
        DataError: it declares more than `most_bytes`, or its compression could give more than it declares.
    """
    if info.file_size > most_bytes or info.compress_type not in _COMPRESSIONS:
        raise DataError(
            f"{info.filename} in {path} is too large to unpack, or compressed by another method",
            expected=f"at most {most_bytes // 2**20} MiB, stored or deflated",
            got=f"{info.file_size / 2**20:.0f} MiB, packed in {info.compress_size} bytes by the method "
            f"{info.compress_type}",
            next_step="zip the files again; do not use an archive of unknown origin",
        )


def _damaged(what: str, error: Exception) -> DataError:
    return DataError(
        what, expected="a whole file", got=one_line(error), next_step="copy or download it again"
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_image_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def _read(
    files: Mapping[str, Callable[[], bytes]], source: Path, target: Target, limit: int | None
) -> Contents:
    names = sorted(filter(_is_image_name, files))
    if not names:
        parquet = min((name for name in files if name.endswith(".parquet")), default=None)
        raise DataError(
            f"{source} holds no images",
            expected="files ending in " + ", ".join(IMAGE_SUFFIXES),
            got=f"none, but {parquet}" if parquet else "none",
            next_step="give the folder in which the .parquet files lie" if parquet else "check the path",
        )
    labels = _read_labels(files, names, source)
    n = len(names) if limit is None else min(limit, len(names))
    pixels, done = stack_files(((name, files[name]) for name in names[:n]), n, source, target)
    return Contents(pixels, None if labels is None else labels[:n], done)


def _read_labels(files: Mapping[str, Callable[[], bytes]], names: list[str], source: Path) -> I64 | None:
    if DATASET_JSON not in files:
        inner = [name for name in files if name.endswith("/" + DATASET_JSON) and not _is_hidden(name)]
        if inner:
            raise DataError(
                f"{source} holds a {DATASET_JSON} that is not at the top",
                expected=f"{DATASET_JSON} beside the first folders of images",
                got=", ".join(sorted(inner)[:8]),
                next_step="give the folder that holds it, or take it out to go without labels",
            )
        return None
    try:
        data = files[DATASET_JSON]()
    except Exception as error:  # zipfile and zlib raise many types for a damaged member
        raise _damaged(f"{DATASET_JSON} of {source} cannot be read", error) from error
    return dataset_json_labels(data, names, source)
