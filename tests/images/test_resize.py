"""The three resizes against Pillow calls from their definitions, and against sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pictures import png, rgb
from PIL import Image

from flatq.errors import DataError, UsageError
from flatq.images import RESIZES, Resize, load_images, resize_image

Resample = tuple[Callable[[np.ndarray], np.ndarray], float]

BOX: Resample = (lambda x: ((x > -0.5) & (x <= 0.5)).astype(float), 0.5)
LANCZOS: Resample = (lambda x: np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3), 3.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


BICUBIC: Resample = (_cubic, 2.0)


def _matrix(n: int, m: int, resample: Resample) -> np.ndarray:
    """float64 [m, n]: n samples to m, the kernel widened by n / m where that reduces, each row of sum 1."""
    kernel, _ = resample
    width = max(n / m, 1.0)
    centres = (np.arange(m) + 0.5) * n / m
    weights = kernel((np.arange(n) + 0.5 - centres[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


def _resized(candidates: list[np.ndarray], h: int, w: int, resample: Resample) -> list[np.ndarray]:
    """[C, H, W] to [C, h, w], levels rounded and clipped after each of the two passes.

    Which pass goes first is Pillow's choice, so each candidate becomes two.
    """
    return [
        second(first(x))
        for x in candidates
        for rows, columns in [(_matrix(x.shape[1], h, resample), _matrix(x.shape[2], w, resample))]
        for first, second in [
            (partial(_pass, "chw,vw->chv", columns), partial(_pass, "chw,vh->cvw", rows)),
            (partial(_pass, "chw,vh->cvw", rows), partial(_pass, "chw,vw->chv", columns)),
        ]
    ]


def _pass(axes: str, matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(np.einsum(axes, x, matrix) + 0.5), 0, 255)


def _centre(x: np.ndarray, h: int, w: int) -> np.ndarray:
    top, left = (x.shape[1] - h) // 2, (x.shape[2] - w) // 2
    return x[:, top : top + h, left : left + w]


def _oracle(x: np.ndarray, size: int, resize: Resize) -> list[np.ndarray]:
    x = x.astype(float)
    h, w = x.shape[1:]
    if resize == "stretch":
        return _resized([x], size, size, BICUBIC)
    if resize == "center-crop":
        return _resized([_centre(x, min(h, w), min(h, w))], size, size, LANCZOS)
    candidates = [x]
    while min(h, w) >= 2 * size:
        h, w = h // 2, w // 2
        candidates = _resized(candidates, h, w, BOX)
    scale = size / min(h, w)
    candidates = _resized(candidates, round(h * scale), round(w * scale), BICUBIC)
    return [_centre(y, size, size) for y in candidates]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    # no side that is halved puts the middle of a pixel on an edge of the box: there the last bit would decide
    ("h", "w", "size"),
    [(40, 40, 16), (43, 67, 16), (70, 35, 16), (19, 90, 8), (9, 12, 16), (32, 20, 20), (80, 88, 18)],
)
def test_numbers(tmp_path: Path, resize: Resize, h: int, w: int, size: int) -> None:
    x = rgb(1, h, w)[0]
    (tmp_path / "a.png").write_bytes(png(x))
    images = load_images(tmp_path, size=size, resize=resize)
    assert images.pixels.shape == (1, 3, size, size)
    assert images.preprocessing == f"{resize} to {size} x {size}"
    differences = [np.abs(images.pixels[0] - expected) for expected in _oracle(x, size, resize)]
    # Pillow's weights have 22 bits: only where a sum lies at a half a level may differ by one, and hand
    # that on to a few more; the wrong order of passes alone changes a sixth of all
    assert min((difference > 0).mean() for difference in differences) < 0.02
    assert min(difference.max() for difference in differences) <= 1


def test_the_choices_differ() -> None:
    image = Image.fromarray(rgb(1, 41, 67)[0].transpose(1, 2, 0))
    results = [np.asarray(resize_image(image, 16, resize), float) for resize in RESIZES]
    for i in range(3):
        for j in range(i):
            assert np.abs(results[i] - results[j]).mean() > 5


def test_center_crop_is_that_of_edm() -> None:
    """dataset_tool's steps: the slice of the array, then Lanczos."""
    for h, w in ((41, 67), (70, 33), (30, 31)):
        x = rgb(1, h, w)[0].transpose(1, 2, 0)
        side = min(x.shape[:2])
        square = x[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
        expected = Image.fromarray(np.ascontiguousarray(square)).resize((16, 16), Image.Resampling.LANCZOS)
        got = resize_image(Image.fromarray(x), 16, "center-crop")
        assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_stretch_is_one_bicubic_resize() -> None:
    image = Image.fromarray(rgb(1, 41, 67)[0].transpose(1, 2, 0))
    expected = image.resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resize_image(image, 16, "stretch")), np.asarray(expected))


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    x = rgb(1, 20, 8)[0]
    (tmp_path / "a.png").write_bytes(png(x))
    (tmp_path / "b.png").write_bytes(png(rgb(1, 4, 4, seed=1)[0]))
    got = load_images(tmp_path, size=4, resize="center-crop-adm").pixels
    # 8 >= 2 * 4: one halving by box, then the centre 4 of 10 rows
    halved = x.reshape(3, 10, 2, 4, 2).mean((2, 4))[:, 3:7]
    assert np.abs(got[0].astype(float) - halved).max() <= 1.0  # Pillow rounds after each pass
    assert np.array_equal(got[1], rgb(1, 4, 4, seed=1)[0])
    with pytest.raises(DataError, match=r"b\.png is of another kind or size than a\.png") as caught:
        load_images(tmp_path)
    assert all(f"{name} ({what})" in str(caught.value) for name, what in RESIZES.items())


@pytest.mark.parametrize("resize", RESIZES)
def test_an_image_of_the_size_stays_as_it_is(tmp_path: Path, resize: Resize) -> None:
    x = rgb(3, 8, 8)
    np.savez(tmp_path / "x.npz", x)
    for channels in (None, 1):
        plain = load_images(tmp_path / "x.npz", channels=channels)
        images = load_images(tmp_path / "x.npz", size=8, resize=resize, channels=channels)
        assert np.array_equal(images.pixels, plain.pixels)
        assert images.preprocessing == ("none" if channels is None else "RGB to grey")
    image = Image.fromarray(x[0].transpose(1, 2, 0))
    assert np.array_equal(np.asarray(resize_image(image, 8, resize)), np.asarray(image))


def test_another_size_without_a_resize(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", rgb(2, 8, 6))
    (tmp_path / "a.png").write_bytes(png(rgb(1, 8, 6)[0]))
    for source, name in ((tmp_path / "x.npz", "image 0"), (tmp_path, r"a\.png")):
        with pytest.raises(DataError, match=f"{name} is not 8 x 8") as caught:
            load_images(source, size=8)
        assert "got:      8 x 6 (height x width)" in str(caught.value)
        assert all(f"{choice} ({what})" in str(caught.value) for choice, what in RESIZES.items())


def test_a_resize_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="stretch has no size to go to"):
        load_images("digits", resize="stretch")
    with pytest.raises(UsageError, match="no resize 'squash'") as caught:
        load_images("digits", size=4, resize="squash")  # type: ignore[arg-type]
    assert all(name in str(caught.value) for name in RESIZES)
