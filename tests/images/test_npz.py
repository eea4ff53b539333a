from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import rgb, write_zip

from flatq.errors import DataError
from flatq.images import load_images
from flatq.images.npz import MAX_ARRAY_BYTES


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: np.savez(p, other=rgb(1)), "holds no images"),
        (lambda p: np.savez(p, rgb(1).astype(np.float32)), "expected: .*uint8"),
        (lambda p: np.savez(p, rgb(1)[:, :2]), "expected: .*uint8"),
        (lambda p: np.savez(p, rgb(1)[0]), "expected: .*uint8"),
        (lambda p: np.savez(p, rgb(1, 4, 3)), "two ways"),
        (lambda p: np.savez(p, rgb(0)), "n at least 1"),
        (lambda p: np.savez(p, np.array([{}], object)), "nothing pickled"),
        (lambda p: p.write_bytes(b"no zip"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
    ],
)
def test_npz_that_holds_no_images(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "x.npz"
    write(path)
    with pytest.raises(DataError, match=reason):
        load_images(path)


def _replace_header(path: Path, old: bytes, new: bytes) -> None:
    """Changes the header of arr_0 and mends the zip's checksum, so that only the header lies."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert old in members["arr_0.npy"]
    members["arr_0.npy"] = members["arr_0.npy"].replace(old, new, 1)
    write_zip(path, members)


def test_a_batch_of_guided_diffusion(tmp_path: Path) -> None:
    x, path = rgb(6), tmp_path / "samples_6x4x4x3.npz"
    for dtype in (np.int64, np.int32, np.uint8):
        np.savez(path, x.transpose(0, 2, 3, 1), np.array([5, 4, 3, 2, 1, 0], dtype))
        images = load_images(path)
        assert np.array_equal(images.pixels, x)
        assert images.labels is not None
        assert (images.labels.dtype, images.labels.tolist()) == (np.int64, [5, 4, 3, 2, 1, 0])
    np.savez(path, x.transpose(0, 2, 3, 1))
    assert load_images(path).labels is None


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_the_first_images(tmp_path: Path, write: Callable[..., None], fortran: bool) -> None:
    x = rgb(6, 8, 8)
    array = x.transpose(0, 2, 3, 1)
    array = np.asfortranarray(array) if fortran else np.ascontiguousarray(array)
    write(tmp_path / "x.npz", array, np.arange(6))
    assert np.array_equal(load_images(tmp_path / "x.npz").pixels, x)
    for limit in (2, 6, 100):
        images = load_images(tmp_path / "x.npz", limit=limit)
        assert np.array_equal(images.pixels, x[:limit])
        assert images.labels is not None
        assert images.labels.tolist() == list(range(min(limit, 6)))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.arange(5), r"one integer for each image, 6 in all[^$]*int64 \[5\]"),
        (np.arange(7), r"int64 \[7\]"),
        (np.eye(6, dtype=np.float32), "one-hot vectors"),
        (np.eye(6, dtype=np.int64), "one-hot vectors"),
        (np.arange(6.0), r"float64 \[6\]"),
        (np.array(["cat"] * 6), "<U3"),
        (np.ones(6, bool), "bool"),
        (np.array(3), r"int64 \[\]"),
        (np.array([0, 1, 2, -1, 4, -1]), "-1 at index 3"),
        (np.full(6, 2**63, np.uint64), "9223372036854775808 at index 0"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: np.ndarray, reason: str) -> None:
    np.savez(tmp_path / "x.npz", rgb(6), labels)
    with pytest.raises(DataError, match=reason) as caught:
        load_images(tmp_path / "x.npz")
    assert "arr_1" in str(caught.value)


def test_cut_and_changed_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, rgb(6))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_images(path)
    changed = bytearray(data)
    changed[300] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match="cannot be read"):
        load_images(path)


@pytest.mark.parametrize("shape", [b"(9, 3, 4, 4)", b"(9999999999999999, 3, 4, 4)", b"(-6,-3,4, 4)"])
def test_a_header_that_lies(tmp_path: Path, shape: bytes) -> None:
    np.savez(tmp_path / "x.npz", rgb(6))
    _replace_header(tmp_path / "x.npz", b"(6, 3, 4, 4)", shape)
    with pytest.raises(DataError, match="cannot be read"):
        load_images(tmp_path / "x.npz")


def test_an_array_that_unpacks_to_an_absurd_size(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, rgb(6))
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("arr_0.npy").file_size = MAX_ARRAY_BYTES + 2**20
        archive.writestr("other.npy", b"")  # so that the directory is written again
    with pytest.raises(DataError, match=r"arr_0\.npy in .* is too large") as caught:
        load_images(path)
    assert "at most 65536 MiB" in str(caught.value)
    assert "65537 MiB" in str(caught.value)


def test_other_versions_of_the_format(tmp_path: Path) -> None:
    x, path = rgb(2), tmp_path / "x.npz"
    for version in ((1, 0), (2, 0)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, x, version=version)
        assert np.array_equal(load_images(write_zip(path, {"arr_0.npy": buffer.getvalue()})).pixels, x)
    with pytest.raises(DataError, match="cannot be read"):
        load_images(write_zip(path, {"arr_0.npy": b"\x93NUMPY no array"}))
    with pytest.raises(DataError, match="holds no images"):
        load_images(write_zip(path, {"arr_0.npy": b"no array"}))
    for old, new in ((b"(2, 3, 4, 4)", b"(2, 3, 4, 4 "), (b"'|u1'", b"'|u?'"), (b"{'descr'", b"\n {'desc")):
        np.savez(path, x)
        _replace_header(path, old, new)
        with pytest.raises(DataError, match="cannot be read"):
            load_images(path)
