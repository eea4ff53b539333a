from __future__ import annotations

import builtins
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatq.errors import DataError, MissingRuntimeError
from flatq.images import digit_labels, load_images, make_grid, save_grid, to_float, to_uint8


def _rgb(n: int, h: int = 4, w: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, h, w), dtype=np.uint8)


def _png(chw: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(chw[0] if len(chw) == 1 else chw.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_digits_and_their_split() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    everything, train, heldout = (load_images(s) for s in ("digits", "digits:train", "digits:heldout"))
    assert everything.pixels.shape == (1797, 1, 8, 8)
    assert everything.shape == (1, 8, 8)
    raw = sklearn.load_digits().images
    assert np.abs(everything.pixels[:, 0] * (16 / 255) - raw).max() <= 0.5 * 16 / 255 + 1e-12
    assert everything.pixels.max() == 255
    # golden values: the bundled feature network was trained on this split
    assert train.digest == "4ad5a586d8a3b58e3eaed7a7fcb7b3f4f5df12e73a5ddb31a1091ad48733b785"
    assert (len(train.pixels), len(heldout.pixels)) == (1500, 297)
    parts = np.concatenate([train.pixels, heldout.pixels]).reshape(1797, -1)
    both = (parts, everything.pixels.reshape(1797, -1))
    assert np.array_equal(*(a[np.lexsort(a.T)] for a in both))
    order = np.random.RandomState(0).permutation(1797)
    assert np.array_equal(digit_labels("digits:heldout"), digit_labels("digits")[order[1500:]])
    assert load_images("digits", limit=5).pixels.shape == (5, 1, 8, 8)
    assert load_images("digits", limit=2, size=4, channels=3).pixels.shape == (2, 3, 4, 4)
    with pytest.raises(DataError, match="no part digits:test"):
        load_images("digits:test")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def block(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("blocked")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[cpu\]"'):
        load_images("digits")


def test_one_set_through_every_container(tmp_path: Path) -> None:
    x = _rgb(4)
    names = ["a.png", "b.PNG", "sub/c.png", "sub/d.bmp"]
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for name, image in zip(names, x, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    files = {name: (folder / name).read_bytes() for name in reversed(names)}
    _zip(tmp_path / "set.zip", files | {"__MACOSX/._a.png": b"no image", "notes.txt": b""})
    np.savez(tmp_path / "nchw.npz", x)
    np.savez(tmp_path / "nhwc.npz", images=x.transpose(0, 2, 3, 1), labels=np.arange(4))
    loaded = [load_images(tmp_path / s) for s in ("set", "set.zip", "nchw.npz", "nhwc.npz")]
    for images in loaded:
        assert np.array_equal(images.pixels, x)
    assert [images.name for images in loaded] == ["set", "set", "nchw", "nhwc"]
    assert {images.digest for images in loaded} == {hashlib.sha256(b"4,3,4,4\n" + x.tobytes()).hexdigest()}
    assert np.array_equal(load_images(str(folder), limit=3).pixels, x[:3])


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    x = _rgb(1, 20, 8)[0]
    (tmp_path / "a.png").write_bytes(_png(x))
    (tmp_path / "b.png").write_bytes(_png(_rgb(1, 4, 4, seed=1)[0]))
    got = load_images(tmp_path, size=4).pixels
    # 8 >= 2 * 4: one halving by box, then the centre 4 of 10 rows
    halved = x.reshape(3, 10, 2, 4, 2).mean((2, 4))[:, 3:7]
    assert np.abs(got[0].astype(float) - halved).max() <= 1.0  # Pillow rounds after each pass
    assert np.array_equal(got[1], _rgb(1, 4, 4, seed=1)[0])
    with pytest.raises(DataError, match=r"b\.png has another size than a\.png"):
        load_images(tmp_path)


def test_kinds_of_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(_rgb(1)[0]))
    (tmp_path / "b.png").write_bytes(_png(_rgb(1)[0][:1]))
    with pytest.raises(DataError, match=r"b\.png is grey, a\.png is RGB"):
        load_images(tmp_path)
    assert load_images(tmp_path, channels=1).shape == (1, 4, 4)
    assert load_images(tmp_path, channels=3).shape == (3, 4, 4)
    palette = Image.fromarray(_rgb(1)[0].transpose(1, 2, 0)).quantize(4)
    palette.save(tmp_path / "b.png", transparency=bytes([0, 255]))  # Pillow warns unless it goes through RGBA
    assert load_images(tmp_path).pixels.shape == (2, 3, 4, 4)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png has pixels of the kind 'I;16'"):
        load_images(tmp_path)


@pytest.mark.parametrize("broken", [b"no image", _png(_rgb(1, 64, 64)[0])[:900], b""])
def test_a_broken_image_is_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.png").write_bytes(_png(_rgb(1)[0]))
    (tmp_path / "bad.png").write_bytes(broken)
    with pytest.raises(DataError, match=r"bad\.png in .* cannot be read as an image"):
        load_images(tmp_path)


def test_damaged_zips(tmp_path: Path) -> None:
    path = _zip(tmp_path / "x.zip", {"a.png": _png(_rgb(1)[0])})
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match="cannot be read as a zip"):
        load_images(path)
    path.write_bytes(data.replace(b"IDAT", b"IDAX", 1))  # the checksum of the member no longer fits
    with pytest.raises(DataError, match=r"a\.png in .* cannot be read as an image"):
        load_images(path)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "..\\a.png", "C:/a.png"])
def test_a_name_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "x.zip", {name: _png(_rgb(1)[0])})
    with pytest.raises(DataError, match="leaves the folder"):
        load_images(path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: np.savez(p, other=_rgb(1)), "holds no images"),
        (lambda p: np.savez(p, _rgb(1).astype(np.float32)), "expected: .*uint8"),
        (lambda p: np.savez(p, _rgb(1)[:, :2]), "expected: .*uint8"),
        (lambda p: np.savez(p, _rgb(1)[0]), "expected: .*uint8"),
        (lambda p: np.savez(p, _rgb(1, 4, 3)), "two ways"),
        (lambda p: np.savez(p, _rgb(0)), "at least one"),
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


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image source"):
        load_images(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        load_images(_zip(tmp_path / "empty.zip", {}))
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a file \.tar"):
        load_images(tmp_path / "x.tar")
    for option in ({"size": 0}, {"limit": 0}, {"channels": 2}):
        with pytest.raises(DataError):
            load_images("digits", **option)


def test_shared_cifar(shared: Path) -> None:
    images = load_images(shared / "data" / "cifar10-test.zip", limit=50)
    assert images.pixels.shape == (50, 3, 32, 32)
    assert images.name == "cifar10-test"


def test_float_convention() -> None:
    levels = np.arange(256, dtype=np.uint8)
    x = to_float(levels)
    assert x.dtype == np.float32
    assert np.allclose(x, levels / 127.5 - 1, rtol=0, atol=1.2e-7)  # one rounding at magnitude 2
    assert (x[0], x[255]) == (-1, 1)
    assert np.array_equal(to_uint8(x), levels)
    lost = levels.astype(int) - to_uint8(x, "truncate")
    assert set(lost.tolist()) <= {0, 1}
    assert to_uint8(np.float32([-3, 0.004, 3])).tolist() == [0, 128, 255]
    assert to_uint8(np.float32([-3, 0.0039, 3]), "truncate").tolist() == [0, 127, 255]
    with pytest.raises(DataError, match="not finite"):
        to_uint8(np.float32([0, np.nan]))
    with pytest.raises(DataError, match="unknown rounding"):
        to_uint8(x, "floor")  # type: ignore[arg-type]


def test_grid(tmp_path: Path) -> None:
    x = _rgb(3, 2, 4)
    grid = np.asarray(make_grid(x, columns=2, scale=2)).transpose(2, 0, 1)
    assert grid.shape == (3, 2 * 4 + 1, 2 * 8 + 1)
    assert np.array_equal(grid[:, 0:4:2, 0:8:2], x[0])
    assert np.array_equal(grid[:, 1:4:2, 10:17:2], x[1])
    assert np.array_equal(grid[:, 5:9:2, 0:8:2], x[2])
    for gap in (grid[:, 4], grid[:, :, 8], grid[:, 5:, 9:]):
        assert (gap == 255).all()
    assert make_grid(x[:, :1], columns=8).size == (3 * 4 + 2, 2)
    path = tmp_path / "grid.png"
    save_grid(path, x[:, :1], columns=2)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(path) as saved:
        assert saved.mode == "L"
        assert np.array_equal(np.asarray(saved), np.asarray(make_grid(x[:, :1], columns=2)))
    with pytest.raises(DataError, match="no such folder"):
        save_grid(tmp_path / "missing" / "grid.png", x, columns=2)
    for arguments in ((x[0], 2, 1), (x[:0], 2, 1), (x, 0, 1), (x, 2, 0), (x.astype(int), 2, 1)):
        with pytest.raises(DataError):
            make_grid(*arguments)
