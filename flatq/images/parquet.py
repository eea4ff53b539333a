"""Images as bytes in a column of parquet files, as Hugging Face datasets lays them out.

pyarrow reads them batch by batch. What decodes the bytes lives in stack.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flatq.errors import DataError, MissingRuntimeError
from flatq.images.labels import I64, integer_labels
from flatq.images.stack import Contents, File, Target, stack_files

__all__ = ["parquet_shards", "read_parquet"]

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMN = "label"
_BATCH_ROWS = 64
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.parquet", re.IGNORECASE)


def parquet_shards(folder: Path) -> list[Path]:
    """The .parquet files that lie in a folder, sorted by name; [] where there are none.

    Raises:
        DataError: numbered shards ("train-00000-of-00004.parquet") of several sets, or one is missing.
    """
    shards = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".parquet" and not path.name.startswith(".") and path.is_file()
    )
    numbered = [_NUMBERED.fullmatch(path.name) for path in shards]
    sets = {match and (match[1], int(match[3])) for match in numbered}
    if len(sets) > 1:
        raise DataError(
            f"{folder} holds the shards of several sets",
            expected="one set, such as train-00000-of-00004.parquet and on",
            got=", ".join(path.name for path in shards[:8]) + (", ..." if len(shards) > 8 else ""),
            next_step="give each set a folder of its own, or name a single file",
        )
    present = [int(match[2]) for match in numbered if match]
    total = next((int(match[3]) for match in numbered if match), 0)
    missing = sorted(set(range(total)) - set(present))
    if missing:
        raise DataError(
            f"{folder} does not hold all shards",
            expected=f"the shards 0..{total - 1}",
            got=f"{len(present)}, without {', '.join(map(str, missing[:8]))}"
            + (", ..." if len(missing) > 8 else ""),
            next_step="download the others too, or name a single file",
        )
    return shards


def read_parquet(shards: list[Path], source: Path, target: Target, limit: int | None) -> Contents:
    """The images of all rows, file after file, with the labels of an integer column `label` if there is one.

    Raises:
        DataError: a damaged file, no column `image` or `img` of bytes, rows without an image, labels that are
            not integers of 0 or more or that some files lack, no rows.
        MissingRuntimeError: pyarrow is not installed.
    """
    parquet, reading = _pyarrow()
    plan: list[tuple[Path, str, int]] = []
    labels: list[I64] = []
    rows = 0
    for shard in shards:
        if limit is not None and rows >= limit:
            break
        with reading(shard), parquet.ParquetFile(shard, page_checksum_verification=True) as file:
            image, labelled = _columns(file.schema_arrow, shard)
            n = int(file.metadata.num_rows)
            if labelled:
                labels.append(_labels(file.read([_LABEL_COLUMN]).column(0), n, shard))
        plan.append((shard, image, n))
        rows += n
        if labels and len(labels) != len(plan):
            raise DataError(
                f"only some files of {source} have labels",
                expected=f"the column {_LABEL_COLUMN} in all or none",
                got=f"{plan[0][0].name} and {shard.name} differ",
            )
    if not rows:
        raise DataError(f"{source} holds no images", expected="at least one row", got="none")
    n = rows if limit is None else min(rows, limit)
    files = _files(plan, n, parquet, reading)
    pixels, done = stack_files(files, n, source, target)
    return Contents(pixels, np.concatenate(labels)[:n] if labels else None, done)


def _pyarrow() -> tuple[Any, Callable[[Path], Any]]:
    """`pyarrow.parquet`, and a context in which its errors are about a file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingRuntimeError(
            "parquet files are read by pyarrow, which is not installed",
            expected="the package pyarrow",
            got=str(error),
            next_step='pip install "flatq[parquet]"',
        ) from error

    @contextmanager
    def reading(shard: Path) -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            raise DataError(
                f"{shard} cannot be read as parquet",
                expected="a whole .parquet file",
                got=str(error) or type(error).__name__,
                next_step="copy or download it again",
            ) from error

    return parquet, reading


def _columns(schema: Any, shard: Path) -> tuple[str, bool]:
    """The column of images, and whether there are labels."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return holds_bytes(kind)

    columns = {field.name: field.type for field in schema}
    found = [name for name in _IMAGE_COLUMNS if name in columns and holds_images(columns[name])]
    listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "no columns"
    if len(found) != 1:
        raise DataError(
            f"{shard} has {'two columns' if found else 'no column'} of images",
            expected="one column image or img, of bytes or of {bytes, path}",
            got=listed,
            next_step="give the column of images the name image, with all others out of its way",
        )
    if _LABEL_COLUMN in columns and not types.is_integer(columns[_LABEL_COLUMN]):
        raise DataError(
            f"{shard} has labels that are no classes",
            expected=f"integers in the column {_LABEL_COLUMN}",
            got=listed,
            next_step="store the index of the class, or give that column another name to go without labels",
        )
    return found[0], _LABEL_COLUMN in columns


def _labels(column: Any, n: int, shard: Path) -> I64:
    if column.null_count:
        raise DataError(
            f"{shard} has rows without a label",
            expected=f"an integer in each row of the column {_LABEL_COLUMN}",
            got=f"{column.null_count} of {n} rows null",
            next_step="fill them, or drop the column to go without labels",
        )
    return integer_labels(column.to_numpy(), n, f"the column {_LABEL_COLUMN} of {shard}")


def _files(
    plan: list[tuple[Path, str, int]], n: int, parquet: Any, reading: Callable[[Path], Any]
) -> Iterator[File]:
    """The first n images of all files."""
    for shard, column, _ in plan:
        row = 0
        with reading(shard), parquet.ParquetFile(shard, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=min(_BATCH_ROWS, n), columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield f"row {row} of {shard.name}", partial(_bytes, value, row, shard)
                    row, n = row + 1, n - 1
                    if not n:
                        return


def _bytes(value: Any, row: int, shard: Path) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise DataError(
            f"row {row} of {shard} holds no image",
            expected="the bytes of an image file in each row",
            got="null" if path is None else f"only the path {path}",
            next_step="drop the row" if path is None else "store the data set with its images embedded",
        )
    return bytes(data)
