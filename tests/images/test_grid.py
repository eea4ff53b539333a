from __future__ import annotations

from pathlib import Path

import numpy as np
from pictures import rgb
from PIL import Image

from flatq.images import make_grid, save_grid


def test_grid(tmp_path: Path) -> None:
    x = rgb(3, 2, 4)
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
