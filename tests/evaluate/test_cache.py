from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.cache import ReferenceCache, cache_folder, cache_key
from flatq.evaluate.extractor import Progress
from flatq.evaluate.measure import measure_reference, write_statistics
from flatq.evaluate.reference import load_reference
from flatq.images import ImageSet, load_images


class _Net:
    """Features that are sums of pixels, times a third or not; counts how often it is asked."""

    kind: Literal["onnx"] = "onnx"
    name, digest, dim, image_shape = "sums", "cd" * 32, 8, (1, 8, 8)
    preprocessing, published = "none", None

    def __init__(self, factor: float = 1.0, version: str = "1") -> None:
        self.asked, self._factor, self._version = 0, factor, version

    def identity(self, threads: int) -> dict[str, Any]:
        return {"backend": "sums", "version": self._version, "device": "cpu", "threads": threads}

    def extract(
        self, pixels: np.ndarray, *, threads: int = 1, progress: Progress | None = None
    ) -> np.ndarray:
        self.asked += 1
        features: np.ndarray = pixels[:, 0].sum(axis=1, dtype=np.float64) * self._factor
        return features


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", pixels)
    return load_images(tmp_path / "set.npz")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> ReferenceCache:
    return ReferenceCache(tmp_path / "cache", notes.append)


@pytest.mark.parametrize(("factor", "stored"), [(1.0, np.float32), (1 / 3, np.float64)])
def test_the_second_time_is_the_first_to_the_bit(
    images: ImageSet, cache: ReferenceCache, notes: list[str], factor: float, stored: type
) -> None:
    net = _Net(factor)
    features, reference = measure_reference(images, net, cache=cache)
    again, same = measure_reference(images, net, cache=cache)
    assert net.asked == 1
    assert features is not None
    assert again is not None
    assert again.dtype == np.float64
    for a, b in (
        (features, again),
        (reference.mean, same.mean),
        (reference.cov, same.cov),
        (reference.root, same.root),
    ):
        assert np.array_equal(a, b)
    assert (same.n, same.rank) == (reference.n, reference.rank)
    bare, other = measure_reference(images, net, cache=cache, features=False)
    assert bare is None
    assert np.array_equal(other.root, reference.root)
    assert net.asked == 1
    (file,) = (cache.folder / "reference").iterdir()
    with np.load(file) as archive:
        assert archive["features"].dtype == stored  # float32 where that loses nothing
    measure_reference(images, net)
    assert net.asked == 2  # without a cache
    assert not notes


def test_whatever_moves_the_features_has_an_entry_of_its_own(
    images: ImageSet, cache: ReferenceCache, tmp_path: Path
) -> None:
    other = load_images(tmp_path / "set.npz", limit=29)
    for pictures, net, threads in (
        (images, _Net(), 1),
        (other, _Net(), 1),
        (images, _Net(version="2"), 1),
        (images, _Net(), 2),
    ):
        measure_reference(pictures, net, threads=threads, cache=cache)
        assert net.asked == 1
    assert len(list((cache.folder / "reference").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty", "other"])
def test_a_damaged_entry_is_measured_again_and_said(
    images: ImageSet, cache: ReferenceCache, notes: list[str], damage: str
) -> None:
    net = _Net()
    features, _ = measure_reference(images, net, cache=cache)
    assert features is not None
    path = cache.path(cache_key(images, net, 1))
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "bytes":
        at = data.index(features.astype(np.float32).tobytes())
        path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with np.load(path) as archive:
            np.savez(path, **(dict(archive) | {"key": np.array("{}")}))
    again, _ = measure_reference(images, net, cache=cache)
    assert again is not None
    assert np.array_equal(again, features)
    assert net.asked == 2
    assert len(notes) == 1
    assert "damaged" in notes[0]
    measure_reference(images, net, cache=cache)
    assert net.asked == 2  # it was mended
    assert len(list(path.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_said(images: ImageSet, notes: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    features, _ = measure_reference(images, _Net(), cache=ReferenceCache(tmp_path / "file", notes.append))
    assert features is not None
    assert len(notes) == 1
    assert "not cached" in notes[0]


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FLATQ_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "flatq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "flatq"


def test_statistics_into_a_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sklearn")
    seen: list[tuple[int, int]] = []
    written = write_statistics(
        "digits", tmp_path / "ref.npz", limit=300, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (300, 300)
    read = load_reference(tmp_path / "ref.npz")
    assert np.array_equal(read.reference.root, written.reference.root)
    assert (read.extractor_name, read.source.n, read.source.image_shape) == ("digits48", 300, (1, 8, 8))
    assert read.source.digest == load_images("digits", limit=300).digest
    with pytest.raises(DataError, match="too few images"):
        write_statistics("digits", tmp_path / "one.npz", limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]
