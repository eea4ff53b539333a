from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import edm_files, png, rgb, write_folder, write_zip
from PIL import Image

from flatq.errors import DataError
from flatq.images import load_images
from flatq.images.archives import MAX_FILE_BYTES


def _declare(path: Path, name: str, size: int) -> None:
    """Writes one stored PNG and lets the zip's directory claim that it unpacks to `size` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, png(rgb(1)[0]))
        archive.getinfo(name).file_size = size


def test_a_data_set_of_edm(tmp_path: Path) -> None:
    x = rgb(12, 8, 8)
    labels = [int(label) for label in np.random.default_rng(1).integers(0, 10, 12)]
    files = edm_files(x, labels)
    assert "00000/img00000003.png" in files
    sources = (write_zip(tmp_path / "set.zip", files), write_folder(tmp_path / "set", files))
    for source in sources:
        images = load_images(source)
        assert np.array_equal(images.pixels, x)
        assert images.labels is not None
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == labels
        assert images.preprocessing == "none"
        first = load_images(source, limit=5)
        assert first.labels is not None
        assert (len(first.pixels), first.labels.tolist()) == (5, labels[:5])


def test_labels_follow_the_names_not_the_order_of_the_file(tmp_path: Path) -> None:
    files = edm_files(rgb(4), [3, 1, 2, 0])
    table = json.loads(files["dataset.json"])
    table["labels"].reverse()
    files["dataset.json"] = b"\xef\xbb\xbf" + json.dumps(table).encode()  # with a byte order mark
    images = load_images(write_zip(tmp_path / "x.zip", files))
    assert images.labels is not None
    assert images.labels.tolist() == [3, 1, 2, 0]


def test_no_labels(tmp_path: Path) -> None:
    assert load_images(write_zip(tmp_path / "null.zip", edm_files(rgb(3), None))).labels is None
    classes = {f"{name}/{i}.png": png(image) for name in ("cat", "dog") for i, image in enumerate(rgb(2))}
    assert load_images(write_zip(tmp_path / "classes.zip", classes)).labels is None
    assert load_images(write_folder(tmp_path / "classes", classes)).labels is None


@pytest.mark.parametrize(
    ("labels", "where"),
    [
        ([0, 1, -1], r"2\.1: .*: -1"),
        ([0, 1, 2.0], r"2\.1: .*: 2\.0"),
        ([0, [0, 1], 1], r"1\.1: .*: \[0, 1\]"),
        ([0, 1, "cat"], r"2\.1: .*: 'cat'"),
        ([0, True, 1], r"1\.1: .*: True"),
        ([0, None, 1], r"1\.1: .*: None"),
        ([0, 2**63, 1], r"1\.1: .*: 9223372036854775808"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: list[Any], where: str) -> None:
    files = edm_files(rgb(3), labels)
    with pytest.raises(DataError, match="index of each image's class") as caught:
        load_images(write_zip(tmp_path / "x.zip", files))
    assert caught.match(where)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"labels": [', "JSON"),
        ("", "JSON"),
        ("\udcff", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "layout"),
        ('{"other": null}', "labels: Field required"),
        ('{"labels": {"a.png": 1}}', "labels: .* array"),
        ('{"labels": [["a.png", 1, 2]]}', r"labels\.0"),
        ('{"labels": [["a.png", 1], [2, 3]]}', r"labels\.1\.0"),
        ('{"labels": [["a.png", 1], ["b.png", 2], ["c.png", 1]]}', "a label for c.png, which is not there"),
        ('{"labels": [["a.png", 1]]}', r"no label for b.png \(1 such\)"),
        ('{"labels": []}', r"no label for a.png \(2 such\)"),
    ],
)
def test_a_dataset_json_that_does_not_fit(tmp_path: Path, text: str, reason: str) -> None:
    files = {"a.png": png(rgb(1)[0]), "b.png": png(rgb(1)[0])}
    files["dataset.json"] = text.encode(errors="surrogateescape")
    for source in (write_zip(tmp_path / "x.zip", files), write_folder(tmp_path / "x", files)):
        with pytest.raises(DataError, match=reason):
            load_images(source)


def test_a_dataset_json_that_is_not_at_the_top(tmp_path: Path) -> None:
    files = {f"set/{name}": data for name, data in edm_files(rgb(2), [0, 1]).items()}
    with pytest.raises(DataError, match="not at the top") as caught:
        load_images(write_zip(tmp_path / "x.zip", files))
    assert "set/dataset.json" in str(caught.value)
    folder = write_folder(tmp_path, files)
    assert load_images(folder / "set").labels is not None


def test_damaged_zips(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": png(rgb(1)[0])})
    data = path.read_bytes()
    for cut in (data[:-30], data[: len(data) // 2], b"", b"no zip"):
        path.write_bytes(cut)
        with pytest.raises(DataError, match="cannot be read as a zip"):
            load_images(path)
    path.write_bytes(data.replace(b"IDAT", b"IDAX", 1))  # the checksum of the member no longer fits
    with pytest.raises(DataError, match=r"a\.png in .* cannot be read as an image"):
        load_images(path)
    files = edm_files(rgb(1), [0])
    data = write_zip(path, files).read_bytes()
    path.write_bytes(data.replace(b'{"labels"', b'{"lapels"', 1))
    with pytest.raises(DataError, match=r"dataset\.json of .* cannot be read"):
        load_images(path)


@pytest.mark.parametrize("name", ["a.png", "dataset.json"])
def test_a_member_that_unpacks_to_an_absurd_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zip"
    _declare(path, name, MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=f"{name} in .* is too large") as caught:
        load_images(path)
    assert "at most 256 MiB" in str(caught.value)
    _declare(path, name, 5 * 2**40)
    with pytest.raises(DataError, match="5242880 MiB"):
        load_images(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.bmp", "w") as member:
        for _ in range(MAX_FILE_BYTES // 2**24 + 1):
            member.write(bytes(2**24))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match="is too large to unpack"):
        load_images(path)
    write_zip(path, {"a.png": png(rgb(1)[0])}, zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="another method"):
        load_images(path)
    write_zip(path, {"a.png": png(rgb(1)[0]), "notes.txt": b"no image"}, zipfile.ZIP_DEFLATED)
    assert len(load_images(path).pixels) == 1


def test_an_image_of_too_many_pixels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")  # 100 million pixels in 12 kB
    with pytest.raises(DataError, match=r"a\.png in .* cannot be read as an image"):
        load_images(write_zip(tmp_path / "x.zip", {"a.png": buffer.getvalue()}))


def test_an_image_that_starts_another_program(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(DataError, match="bytes of another kind"):
        load_images(write_zip(tmp_path / "x.zip", {"a.png": buffer.getvalue()}))


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": png(rgb(1)[0])})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1  # the flag of encryption
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        load_images(path)
