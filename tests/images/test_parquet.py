from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import png, rgb

from flatq.errors import DataError, MissingRuntimeError
from flatq.images import load_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _cell(image: np.ndarray, path: str | None = None) -> dict[str, Any]:
    return {"bytes": png(image), "path": path}


def _write(path: Path, x: np.ndarray, labels: Sequence[Any] | None = None, name: str = "image") -> Path:
    """As Hugging Face datasets writes it: {bytes, path}, ClassLabel as int64, the features beside."""
    features: dict[str, Any] = {name: {"_type": "Image"}}
    columns = [pa.array([_cell(image, f"{i}.png") for i, image in enumerate(x)], IMAGE)]
    if labels is not None:
        features["label"] = {"names": ["cat", "dog"], "_type": "ClassLabel"}
        columns.append(pa.array(labels, pa.int64()))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns, names=list(features)).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)
    return path


def _columns(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["image", "img"])
def test_a_file_of_hugging_face(tmp_path: Path, name: str) -> None:
    x = rgb(7)
    path = _write(tmp_path / "train-00000-of-00001.parquet", x, [0, 1, 1, 0, 1, 0, 0], name)
    images = load_images(path)
    assert np.array_equal(images.pixels, x)
    assert images.labels is not None
    assert (images.labels.dtype, images.labels.tolist()) == (np.int64, [0, 1, 1, 0, 1, 0, 0])
    assert (images.name, images.preprocessing) == ("train-00000-of-00001", "none")
    np.savez(tmp_path / "x.npz", x)
    assert images.digest == load_images(tmp_path / "x.npz").digest
    assert load_images(_write(path, x)).labels is None


def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    x = rgb(150)
    path = _columns(tmp_path / "x.parquet", image=[png(image) for image in x], label=np.arange(150) % 7)
    for limit in (None, 1, 64, 65, 149, 400):
        images = load_images(path, limit=limit)
        assert np.array_equal(images.pixels, x[:limit])
        assert images.labels is not None
        assert images.labels.tolist() == [i % 7 for i in range(150)][:limit]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("label", [pa.int8(), pa.uint16(), pa.int64()])
def test_plain_bytes_and_small_integers(tmp_path: Path, kind: Any, label: Any) -> None:
    x = rgb(3)
    path = _columns(
        tmp_path / "x.parquet",
        caption=["a", "b", "c"],
        image=pa.array([png(image) for image in x], kind),
        label=pa.array([2, 0, 1], label),
    )
    images = load_images(path)
    assert np.array_equal(images.pixels, x)
    assert images.labels is not None
    assert (images.labels.dtype, images.labels.tolist()) == (np.int64, [2, 0, 1])


def test_a_folder_of_shards(tmp_path: Path) -> None:
    x = rgb(7)
    for shard, (start, stop) in {1: (3, 3), 0: (0, 3), 2: (3, 7)}.items():  # the second has no rows
        part = tmp_path / f"train-{shard:05d}-of-00003.parquet"
        _write(part, x[start:stop], list(range(start, stop)))
    (tmp_path / "README.md").write_text("no image")
    for limit in (None, 2, 3, 4, 7):
        images = load_images(tmp_path, limit=limit)
        assert np.array_equal(images.pixels, x[:limit])
        assert images.labels is not None
        assert images.labels.tolist() == list(range(7))[:limit]
    assert images.name == tmp_path.name


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    _write(tmp_path / "train-00000-of-00002.parquet", rgb(1), [0])
    with pytest.raises(DataError, match="does not hold all shards"):
        load_images(tmp_path)
    _write(tmp_path / "test-00000-of-00001.parquet", rgb(1), [0])
    with pytest.raises(DataError, match="does not hold all shards of one set"):
        load_images(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    _write(tmp_path / "train-00001-of-00002.parquet", rgb(1))
    with pytest.raises(DataError, match="rows without a label"):
        load_images(tmp_path)
    (tmp_path / "a.png").write_bytes(png(rgb(1)[0]))
    with pytest.raises(DataError, match="both images and parquet"):
        load_images(tmp_path)


def test_shards_below_the_folder_are_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "0000.parquet", rgb(1))
    with pytest.raises(DataError, match=r"none, but data/0000\.parquet"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "data").pixels) == 1


def test_size_and_channels(tmp_path: Path) -> None:
    path = _columns(tmp_path / "x.parquet", image=[png(rgb(1, 9, 12)[0][:1]), png(rgb(1, 8, 8)[0][:1])])
    images = load_images(path, size=8, resize="center-crop", channels=3)
    assert images.pixels.shape == (2, 3, 8, 8)
    assert images.preprocessing == "center-crop to 8 x 8, grey to RGB"
    with pytest.raises(DataError, match=r"row 0 of x\.parquet is not 8 x 8"):
        load_images(path, size=8)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"picture": [b"x"], "label": [0]}, r"one column of images[^$]*picture \(binary\), label \(int64\)"),
        ({"image": ["a.png"]}, r"image \(string\)"),
        ({"image": [[1, 2]]}, "not have one column of images"),
        ({"image": [{"path": "a.png"}]}, "not have one column of images"),
        ({"image": [png(rgb(1)[0])], "img": [png(rgb(1)[0])]}, r"image \(binary\), img \(binary\)"),
        ({"image": [None, png(rgb(1)[0])]}, "row 0 of .* holds no image"),
        ({"image": [_cell(rgb(1)[0]), None]}, "row 1 of .* holds no image"),
        ({"image": [_cell(rgb(1)[0]), {"bytes": None, "path": None}]}, "row 1 of .* holds no image"),
        ({"image": pa.array([{"bytes": None, "path": "b.png"}], IMAGE)}, r"only the path b\.png"),
        (
            {"image": [_cell(rgb(1)[0]), {"bytes": b"x", "path": None}]},
            r"row 1 of .* cannot be read as an image",
        ),
        ({"image": [b""]}, "row 0 of .* cannot be read as an image"),
        ({"image": pa.array([], IMAGE)}, "holds no images"),
        ({"image": [png(rgb(1)[0])], "label": ["cat"]}, r"labels that are no classes[^$]*label \(string\)"),
        ({"image": [png(rgb(1)[0])], "label": [0.5]}, r"label \(double\)"),
        ({"image": [png(rgb(1)[0])], "label": [[0, 1]]}, r"label \(list"),
        ({"image": [png(rgb(1)[0])], "label": [-1]}, "-1 at index 0"),
        ({"image": [png(rgb(1)[0])] * 2, "label": [1, None]}, "1 of 2 rows without"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = _columns(tmp_path / "x.parquet", **columns)
    with pytest.raises(DataError, match=reason) as caught:
        load_images(path)
    assert caught.value.exit_code == 2


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    x = rgb(4, 16, 16)
    # each image is in the file once, as it is
    table = pa.table({"image": [png(image) for image in x]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    data = path.read_bytes()
    for broken in (b"", b"no parquet", data[: len(data) // 2], data[:-1], data[4:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot be read as parquet"):
            load_images(path)
    changed = bytearray(data)
    changed[data.index(png(x[2])) + 100] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_images(path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "x.parquet", rgb(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source in (path, tmp_path):
        with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[parquet\]"'):
            load_images(source)
