"""Images as bytes in a column of parquet files, as Hugging Face datasets lays them out.

pyarrow reads them batch by batch. `flatq.images.stack` decodes the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flatq.errors import DataError, one_line
from flatq.images.labels import integer_labels
from flatq.images.stack import Contents, File, Target, stack_files
from flatq.packages import require

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
    numbered = [match for path in shards if (match := _NUMBERED.fullmatch(path.name))]
    sets = {(match[1], int(match[3])) for match in numbered}
    if numbered and not (len(sets) == 1 and len(shards) == len(numbered) == int(numbered[0][3])):
        raise DataError(
            f"{folder} does not hold all shards of one set, and nothing else",
            expected="such as train-00000-of-00004.parquet to train-00003-of-00004.parquet",
            got=", ".join(path.name for path in shards[:8]) + (", ..." if len(shards) > 8 else ""),
            next_step="add the missing ones, give each set a folder of its own, or name a single file",
        )
    return shards


def read_parquet(shards: list[Path], source: Path, target: Target, limit: int | None) -> Contents:
    """The images of all rows, file after file, with the labels of an integer column `label` if there is one.

    Raises:
        DataError: a damaged file, no column `image` or `img` of bytes, rows without an image, labels that are
            not integers of 0 or more or that some rows lack, no rows.
        MissingRuntimeError: pyarrow is not installed.
    """
    arrow = require("pyarrow", "pyarrow", "parquet")
    dataset = require("pyarrow.dataset", "pyarrow", "parquet")
    options = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    layout = dataset.ParquetFileFormat(default_fragment_scan_options=options)
    parts, schemas, rows = [], [], 0
    for shard in shards:
        with _reading(shard):
            part = layout.make_fragment(str(shard), arrow.fs.LocalFileSystem())
            parts.append((shard, part))
            schemas.append(part.physical_schema)
            rows += part.count_rows()
    with _reading(source):
        schema = arrow.unify_schemas(schemas)
    columns = _columns(schema, source)
    if not rows:
        raise DataError(f"{source} holds no images", expected="at least one row", got="none")
    n = rows if limit is None else min(rows, limit)
    labels: list[Any] = []

    def files() -> Iterator[File]:
        left = n
        for shard, part in parts:
            row = 0
            with _reading(shard):
                for batch in part.to_batches(schema, columns=columns, batch_size=min(_BATCH_ROWS, n)):
                    images, *others = (column.to_pylist()[:left] for column in batch.columns)
                    labels.extend(others[0] if others else ())
                    for value in images:
                        yield f"row {row} of {shard.name}", partial(_bytes, value, row, shard)
                        row, left = row + 1, left - 1
                    if not left:
                        return

    pixels, done = stack_files(files(), n, source, target)
    if None in labels:
        raise DataError(
            f"{source} has rows without a label",
            expected=f"an integer in each row of the column {_LABEL_COLUMN}, in each file",
            got=f"{labels.count(None)} of {n} rows without",
            next_step="fill them, or drop the column to go without labels",
        )
    where = f"the column {_LABEL_COLUMN} of {source}"
    return Contents(pixels, integer_labels(np.array(labels), n, where) if labels else None, done)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A context in which pyarrow's errors are about a file."""
    try:
        yield
    except (require("pyarrow", "pyarrow", "parquet").ArrowException, OSError, MemoryError) as error:
        raise DataError(
            f"{path} cannot be read as parquet",
            expected="a whole .parquet file, or several with the same columns",
            got=one_line(error),
            next_step="copy or download it again",
        ) from error


def _columns(schema: Any, source: Path) -> list[str]:
    """The column of images and, where there are labels, theirs."""
    from pyarrow import types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_images(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    kinds = {field.name: field.type for field in schema}
    found = [name for name in _IMAGE_COLUMNS if name in kinds and holds_images(kinds[name])]
    labels = [_LABEL_COLUMN] if _LABEL_COLUMN in kinds else []
    if len(found) != 1 or (labels and not types.is_integer(kinds[_LABEL_COLUMN])):
        raise DataError(
            f"{source} does not have one column of images"
            if len(found) != 1
            else f"{source} has labels that are no classes",
            expected="one column image or img of bytes or of {bytes, path}, and integers in the column "
            f"{_LABEL_COLUMN} if there is one",
            got=", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no columns",
            next_step="rename or drop the other columns, and store the index of each image's class",
        )
    return found + labels


def _bytes(value: Any, row: int, shard: Path) -> bytes:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None:
        raise DataError(
            f"row {row} of {shard} holds no image",
            expected="the bytes of an image file in each row",
            got="null" if path is None else f"only the path {path}",
            next_step="drop the row" if path is None else "store the data set with its images embedded",
        )
    return bytes(data)
