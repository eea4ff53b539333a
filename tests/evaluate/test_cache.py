from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flatq.evaluate.cache import Cache, cache_folder, open_cache
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.reference import measure_reference, reference_key
from flatq.images import ImageSet, load_images


class _Net:
    """An extractor whose features are sums of pixels, times a third or not; counts how often it is asked."""

    def __init__(self, factor: float = 1.0, version: str = "1", threads: int = 1) -> None:
        self.asked, self._factor = 0, np.float32(factor) if factor == 1.0 else factor
        identity = {"backend": "sums", "version": version, "device": "cpu", "threads": threads}
        self.extractor = Extractor("onnx", "sums", "cd" * 32, 8, (1, 8, 8), "none", identity, self._run, 99)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        self.asked += 1
        features: np.ndarray = pixels[:, 0].sum(axis=1, dtype=np.float32) * self._factor
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
def cache(tmp_path: Path, notes: list[str]) -> Cache:
    return Cache(tmp_path / "cache", notes.append)


@pytest.mark.parametrize("factor", [1.0, 1 / 3])
def test_the_second_time_is_the_first_to_the_bit(
    images: ImageSet, cache: Cache, notes: list[str], factor: float
) -> None:
    net = _Net(factor)
    first = measure_reference(images, net.extractor, cache=cache)
    again = measure_reference(images, net.extractor, cache=cache)
    assert net.asked == 1
    assert first.features is not None
    assert again.features is not None
    assert again.features.dtype == first.features.dtype
    for a, b in (
        (first.features, again.features),
        (first.statistics.mean, again.statistics.mean),
        (first.statistics.cov, again.statistics.cov),
        (first.statistics.root, again.statistics.root),
    ):
        assert np.array_equal(a, b)
    assert (again.statistics.n, again.statistics.rank) == (first.statistics.n, first.statistics.rank)
    assert again.source == first.source
    measure_reference(images, net.extractor)
    assert net.asked == 2  # without a cache
    assert not notes


def test_statistics_are_of_all_images_though_few_features_are_kept(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_reference(images, _Net().extractor)
    monkeypatch.setattr("flatq.evaluate.precision_recall.MAX_POINTS", 10)
    few = measure_reference(images, _Net().extractor)
    assert few.features is not None
    assert few.features.shape == (10, 8)
    assert np.array_equal(few.statistics.cov, whole.statistics.cov)


def test_whatever_moves_the_features_has_an_entry_of_its_own(
    images: ImageSet, cache: Cache, tmp_path: Path
) -> None:
    other = load_images(tmp_path / "set.npz", limit=29)
    for pictures, net in (
        (images, _Net()),
        (other, _Net()),
        (images, _Net(version="2")),
        (images, _Net(threads=2)),
    ):
        measure_reference(pictures, net.extractor, cache=cache)
        assert net.asked == 1
    assert len(list((cache.folder / "reference").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty", "other"])
def test_a_damaged_entry_is_measured_again_and_said(
    images: ImageSet, cache: Cache, notes: list[str], damage: str
) -> None:
    net = _Net()
    features = measure_reference(images, net.extractor, cache=cache).features
    assert features is not None
    path = cache.path("reference", reference_key(images, net.extractor))
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "bytes":
        at = data.index(features.tobytes())
        path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with np.load(path) as archive:
            np.savez(path, **(dict(archive) | {"key": np.array("{}")}))
    again = measure_reference(images, net.extractor, cache=cache).features
    assert again is not None
    assert np.array_equal(again, features)
    assert net.asked == 2
    assert len(notes) == 1
    assert "damaged" in notes[0]
    measure_reference(images, net.extractor, cache=cache)
    assert net.asked == 2  # it was mended
    assert len(list(path.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_said(notes: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert open_cache(tmp_path / "file", notes.append) is None
    assert len(notes) == 1
    assert "cannot be written" in notes[0]


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FLATQ_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "flatq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "flatq"
