from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import png, rgb, write_zip
from PIL import Image

from flatq.errors import DataError
from flatq.images import load_images


def test_one_set_through_every_container(tmp_path: Path) -> None:
    x = rgb(4)
    names = ["a.png", "b.PNG", "sub/c.png", "sub/d.bmp"]
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for name, image in zip(names, x, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    files = {name: (folder / name).read_bytes() for name in reversed(names)}
    write_zip(tmp_path / "set.zip", files | {"__MACOSX/._a.png": b"no image", "notes.txt": b""})
    np.savez(tmp_path / "nchw.npz", x)
    np.savez(tmp_path / "nhwc.npz", images=x.transpose(0, 2, 3, 1), labels=np.arange(4))
    loaded = [load_images(tmp_path / s) for s in ("set", "set.zip", "nchw.npz", "nhwc.npz")]
    for images in loaded:
        assert np.array_equal(images.pixels, x)
    assert [images.name for images in loaded] == ["set", "set", "nchw", "nhwc"]
    assert {images.digest for images in loaded} == {hashlib.sha256(b"4,3,4,4\n" + x.tobytes()).hexdigest()}
    assert np.array_equal(load_images(str(folder), limit=3).pixels, x[:3])


def test_kinds_of_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(rgb(1)[0]))
    (tmp_path / "b.png").write_bytes(png(rgb(1)[0][:1]))
    with pytest.raises(DataError, match=r"b\.png is of another kind or size than a\.png"):
        load_images(tmp_path)
    assert load_images(tmp_path, channels=1).shape == (1, 4, 4)
    assert load_images(tmp_path, channels=3).shape == (3, 4, 4)
    palette = Image.fromarray(rgb(1)[0].transpose(1, 2, 0)).quantize(4)
    palette.save(tmp_path / "b.png", transparency=bytes([0, 255]))  # Pillow warns unless it goes through RGBA
    assert load_images(tmp_path).pixels.shape == (2, 3, 4, 4)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png has pixels of the kind 'I;16'"):
        load_images(tmp_path)


@pytest.mark.parametrize("broken", [b"no image", png(rgb(1, 64, 64)[0])[:900], b""])
def test_a_broken_image_is_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png(rgb(1)[0]))
    (tmp_path / "bad.png").write_bytes(broken)
    with pytest.raises(DataError, match=r"bad\.png in .* cannot be read as an image"):
        load_images(tmp_path)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image source"):
        load_images(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        load_images(write_zip(tmp_path / "empty.zip", {}))
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


def test_the_record_of_what_was_changed(tmp_path: Path) -> None:
    x = rgb(2, 8, 8)
    grey, colour = Image.fromarray(x[0, 0]), Image.fromarray(x[1].transpose(1, 2, 0))
    seen_through = colour.copy()
    seen_through.putalpha(grey)
    wide = colour.resize((12, 8))
    cases: list[tuple[Image.Image, dict[str, Any], str]] = [
        (grey, {}, "none"),
        (grey, {"channels": 3}, "grey to RGB"),
        (colour, {"channels": 3}, "none"),
        (colour, {"channels": 1}, "RGB to grey"),
        (colour.convert("CMYK"), {}, "CMYK to RGB"),
        (seen_through, {}, "transparency dropped"),
        (colour.quantize(4), {}, "none"),
        (wide, {"size": 8, "resize": "stretch"}, "stretch to 8 x 8"),
        (
            grey,
            {"size": 4, "resize": "center-crop-adm", "channels": 3},
            "center-crop-adm to 4 x 4, grey to RGB",
        ),
    ]
    for number, (image, options, expected) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        suffix = "jpg" if image.mode == "CMYK" else "png"
        image.save(folder / f"a.{suffix}")
        assert load_images(folder, **options).preprocessing == expected
    # one image of a set is enough
    colour.save(tmp_path / "0" / "b.png")
    assert load_images(tmp_path / "0", channels=3).preprocessing == "grey to RGB"
