"""Image folders and zips, also those of NVlabs' dataset_tool, whose dataset.json holds labels.

Nothing is unpacked to disk. What decodes the files lives in stack.py.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from flatq.errors import DataError
from flatq.images.labels import DATASET_JSON, I64, dataset_json_labels
from flatq.images.stack import READ_ERRORS, Contents, Target, stack_files

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "check_member",
    "has_images",
    "open_zip",
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
    with open_zip(path, "a whole .zip file") as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            _check_name(info.orig_filename, path)
            if info.filename in members:
                raise DataError(
                    f"{path} holds the name {info.filename} twice",
                    expected="each name once",
                    next_step="zip the folder again",
                )
            if not info.is_dir():
                members[info.filename] = info
                if _is_image_name(info.filename) or info.filename == DATASET_JSON:
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
    if info.file_size > most_bytes:
        raise DataError(
            f"{info.filename} in {path} is too large to unpack",
            expected=f"at most {most_bytes // 2**20} MiB",
            got=f"{info.file_size / 2**20:.0f} MiB, packed in {info.compress_size} bytes",
            next_step="do not use this archive unless you know where it comes from",
        )
    if info.compress_type not in _COMPRESSIONS:
        raise DataError(
            f"{info.filename} in {path} is compressed in a way that flatq does not read",
            expected="stored or deflated members",
            got=f"method {info.compress_type}",
            next_step="zip the folder again with the usual compression",
        )


def open_zip(path: Path, expected: str) -> zipfile.ZipFile:
    """A zip for reading.

    Raises:
        DataError: it is none, or it is cut off.
    """
    try:
        return zipfile.ZipFile(path)
    except READ_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as a zip archive",
            expected=expected,
            got=str(error) or type(error).__name__,
            next_step="copy or download it again",
        ) from error


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
    except READ_ERRORS as error:
        raise DataError(
            f"{DATASET_JSON} of {source} cannot be read",
            expected="a whole file",
            got=str(error) or type(error).__name__,
            next_step="copy or download it again",
        ) from error
    return dataset_json_labels(data, names, source)


def _check_name(name: str, path: Path) -> None:
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or name[1:2] == ":":
        raise DataError(
            f"{path} holds a name that leaves the folder",
            expected="relative names without ..",
            got=repr(name),
            next_step="do not use this archive unless you know where it comes from",
        )
    if name.startswith("\0") or not name:
        raise DataError(f"{path} holds a file without a name", next_step="zip the folder again")
    if "\\" in name:
        raise DataError(
            f"{path} holds a name with a backslash, which is a folder on some systems only",
            expected="names with / between folders",
            got=repr(name),
            next_step="zip the folder again with another program",
        )
