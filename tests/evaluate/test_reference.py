from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.evaluate.moments import Moments, Reference, reference_from_features, reference_from_moments
from flatq.evaluate.statistics_file import ReferenceSource, load_reference, save_reference

SOURCE = ReferenceSource("images", "digits", "ab" * 32, 20, (1, 8, 8), "center-crop")


class _Net:
    """As much of an extractor as a file of statistics names."""

    name, digest = "net", "cd" * 32


@pytest.fixture
def reference() -> Reference:
    return reference_from_features(np.random.default_rng(3).normal(size=(20, 4)))


def _save(path: Path, reference: Reference) -> dict[str, Any]:
    """The content of a file of ours, to be damaged."""
    save_reference(path, reference, SOURCE, _Net())  # type: ignore[arg-type]
    with np.load(path) as archive:
        return dict(archive)


def test_round_trip(tmp_path: Path, reference: Reference) -> None:
    _save(tmp_path / "new" / "ref.npz", reference)
    stored = load_reference(tmp_path / "new" / "ref.npz")
    for name in ("mean", "cov", "root"):
        np.testing.assert_array_equal(getattr(stored.reference, name), getattr(reference, name))
    assert (stored.reference.n, stored.reference.rank) == (20, 4)
    assert (stored.extractor_name, stored.extractor_digest) == ("net", "cd" * 32)
    expected = ReferenceSource("statistics", "digits", "ab" * 32, 20, (1, 8, 8), "center-crop")
    assert stored.source == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ref.npz"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["pytorch-fid", "guided-diffusion"])
def test_statistics_of_others(tmp_path: Path, reference: Reference, kind: str, dtype: type) -> None:
    path = tmp_path / "other.npz"
    arrays: dict[str, Any] = {"mu": reference.mean.astype(dtype), "sigma": reference.cov.astype(dtype)}
    if kind == "guided-diffusion":
        images = np.zeros((7, 8, 8, 3), np.uint8)  # not as many as the statistics are of
        arrays |= {"arr_0": images, "mu_s": np.zeros(9), "sigma_s": np.eye(9)}
    np.savez(path, **arrays)
    stored = load_reference(path)
    np.testing.assert_allclose(stored.reference.cov, reference.cov, rtol=1e-6, atol=1e-7)
    assert (stored.reference.n, stored.source.n, stored.source.image_shape) == (None, None, None)
    assert (stored.extractor_name, stored.extractor_digest) == (None, None)
    assert (stored.source.kind, stored.source.name) == ("foreign-statistics", "other.npz")
    assert len(stored.source.digest) == 64


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    with pytest.raises(DataError, match="Cannot read"):
        load_reference(path)
    with pytest.raises(DataError, match="Cannot read"):
        load_reference(tmp_path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="Cannot read"):
        load_reference(path)
    with path.open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(DataError, match="Cannot read"):
        load_reference(path)
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"arr_0 \(missing: mu, sigma\)[\s\S]*--data"):
        load_reference(path)
    np.savez(path, mu=np.array([{}, {}], dtype=object), sigma=np.eye(2))
    with pytest.raises(DataError, match="Cannot read"):
        load_reference(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.int64(99)}, "version is not what"),
        ({"version": np.array("1")}, "version is not what"),
        ({"n": None}, "missing: n"),
        ({"n": np.int64(1)}, "n is not what"),
        ({"n": np.float64(20)}, "n is not what"),
        ({"image_shape": np.array([8, 8])}, "image_shape is not what"),
        ({"extractor_digest": np.array([1, 2])}, "extractor_digest is not what"),
        ({"mu": np.zeros(3)}, "wrong shape"),
        ({"mu": np.array(["a"] * 4)}, "Cannot cast"),
        ({"sigma": np.eye(4) * 1j}, "Cannot cast"),
        ({"sigma": np.eye(4) + np.eye(4, k=1)}, "not symmetric"),
        ({"sigma": -np.eye(4)}, "not positive semidefinite"),
        ({"sigma": np.full((4, 4), np.nan)}, "not finite"),
    ],
    ids=str,
)
def test_damaged(tmp_path: Path, reference: Reference, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "ref.npz"
    content = _save(path, reference) | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(DataError, match=message) as error:
        load_reference(path)
    assert "ref.npz" in str(error.value)


def test_a_truncated_file(tmp_path: Path, reference: Reference) -> None:
    path = tmp_path / "ref.npz"
    _save(path, reference)
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match="Cannot read"):
            load_reference(path)


def test_a_place_that_cannot_be_written(tmp_path: Path, reference: Reference) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        _save(tmp_path / "file" / "ref.npz", reference)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        _save(tmp_path / "folder", reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_moments_of_an_unknown_number() -> None:
    assert reference_from_moments(Moments(None, np.zeros(2), np.eye(2))).n is None
