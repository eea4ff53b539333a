"""Class labels beside images: integers from 0 on, one for each image. Where they are read and checked.

Labels are never guessed from the names of folders.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from flatq.errors import DataError

__all__ = ["DATASET_JSON", "I64", "check_labels", "dataset_json_labels", "integer_labels"]

I64: TypeAlias = NDArray[np.int64]

DATASET_JSON = "dataset.json"
"""Where NVlabs' dataset_tool keeps the labels, at the top of a folder or zip."""

_LARGEST = int(np.iinfo(np.int64).max)


class _DatasetJson(BaseModel):
    """{"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}."""

    labels: list[tuple[str, Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]]] | None


def check_labels(labels: I64, num_classes: int, source: str | Path) -> None:
    """Whether labels fit a number of classes.

    Args:
        labels: int64 [n].
        source: named in the message.

    Raises:
        DataError: a label is outside 0..num_classes-1; the first one and its index are named.
    """
    strangers = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(strangers):
        raise DataError(
            f"{source} has labels that the classes do not include",
            expected=f"labels of 0..{num_classes - 1} ({num_classes} classes)",
            got=f"{labels[strangers[0]]} at index {strangers[0]}, {len(strangers)} of {len(labels)} outside",
            next_step="check that the data and the number of classes belong together",
        )


def integer_labels(array: NDArray[Any], n: int, where: str) -> I64:
    """An array out of a file as labels.

    Args:
        n: how many images there are.
        where: what holds the array, for messages.

    Raises:
        DataError: another dtype, shape or length, a negative label.
    """
    if array.dtype.kind not in "iu" or array.shape != (n,):
        raise DataError(
            f"{where} holds no labels for these images",
            expected=f"one integer for each image, {n} in all; no one-hot vectors or soft labels",
            got=f"{array.dtype} {list(array.shape)}",
            next_step="store the index of each image's class, or leave the labels out",
        )
    outside = np.flatnonzero((array < 0) | (array > _LARGEST))
    if len(outside):
        raise DataError(
            f"{where} holds labels that are no classes",
            expected="integers of 0 or more",
            got=f"{array[outside[0]]} at index {outside[0]}",
            next_step="-1 often marks images without a label: leave these or all labels out",
        )
    return array.astype(np.int64)


def dataset_json_labels(data: bytes, names: Sequence[str], source: str | Path) -> I64 | None:
    """The labels of a `dataset.json` as NVlabs' dataset_tool writes it, in the order of `names`.

    Args:
        data: the file.
        names: of all images, posix paths from where the file lies.
        source: named in messages.

    Returns:
        int64 [len(names)], or None where the file says `"labels": null`.

    Raises:
        DataError: no JSON, another layout, labels that are not integers of 0 or more, names without an image,
            images without a label.
    """
    where = f"{DATASET_JSON} of {source}"
    try:
        table = _DatasetJson.model_validate_json(data.removeprefix(codecs.BOM_UTF8)).labels
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{where} does not have the layout of NVlabs' dataset_tool",
            expected='{"labels": [["00000/img00000000.png", 6], ...]} with integers of 0 or more, or '
            '{"labels": null}',
            got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}: {first['input']!r:.60}",
            next_step="store the index of each image's class, no one-hot vectors or soft labels; or take the "
            "file out to go without labels",
        ) from error
    if table is None:
        return None
    labels = dict(table)
    absent = sorted(labels.keys() - set(names))
    missed = [name for name in names if name not in labels]
    if absent or missed:
        raise DataError(
            f"{where} does not fit the images beside it",
            expected="one label for each image",
            got=f"a label for {absent[0]}, which is not there ({len(absent)} such)"
            if absent
            else f"no label for {missed[0]} ({len(missed)} such)",
            next_step="make the data set again, or take the file out to go without labels",
        )
    return np.array([labels[name] for name in names], np.int64)
