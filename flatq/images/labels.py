"""Class labels beside images: integers from 0 on, one for each image. Where they are read and checked.

Labels are never guessed from the names of folders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatq.errors import DataError

__all__ = ["DATASET_JSON", "I64", "check_labels", "dataset_json_labels", "integer_labels"]

I64: TypeAlias = NDArray[np.int64]

DATASET_JSON = "dataset.json"
"""Where NVlabs' dataset_tool keeps the labels, at the top of a folder or zip."""

_LARGEST = int(np.iinfo(np.int64).max)
_LAYOUT = '{"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}'


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
        vectors = array.ndim == 2 or array.dtype.kind == "f"
        raise DataError(
            f"{where} holds no labels for these images",
            expected=f"one integer for each image, {n} in all",
            got=f"{array.dtype} {list(array.shape)}",
            next_step="one-hot vectors and soft labels are not read: store the index of the class"
            if vectors
            else "store labels and images in the same order, or leave the labels out",
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
        DataError: no JSON, another layout, a name twice, names without an image, images without a label,
            labels that are not integers of 0 or more.
    """
    where = f"{DATASET_JSON} of {source}"
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON", expected=_LAYOUT, got=str(error)) from error
    if not isinstance(table, dict) or "labels" not in table:
        raise _layout(
            where, f"the keys {', '.join(table) or 'none'}" if isinstance(table, dict) else "no object"
        )
    if table["labels"] is None:
        return None
    if not isinstance(table["labels"], list):
        raise _layout(where, f"labels of the type {type(table['labels']).__name__}")
    labels: dict[str, int] = {}
    for number, entry in enumerate(table["labels"]):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise _layout(where, f"entry {number} is {_short(entry)}")
        name, label = entry
        if name in labels:
            raise DataError(f"{where} names {name} twice", expected="one label for each image")
        labels[name] = _label(label, name, where)
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


def _label(label: object, name: str, where: str) -> int:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label <= _LARGEST:
        return label
    if isinstance(label, list):
        reason = "one-hot vectors and soft labels are not read: store the index of the class"
    elif isinstance(label, float):
        reason = "numbers that are no integers are conditions of another kind than classes: store the index"
    else:
        reason = "store the index of the class"
    raise DataError(
        f"{where} holds a label that is no class",
        expected="an integer of 0 or more",
        got=f"{_short(label)} for {name}",
        next_step=reason,
    )


def _layout(where: str, got: str) -> DataError:
    return DataError(
        f"{where} has another layout than NVlabs' dataset_tool writes",
        expected=_LAYOUT,
        got=got,
        next_step="make the data set again, or take the file out to go without labels",
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
