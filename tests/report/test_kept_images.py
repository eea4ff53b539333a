"""Which images a report keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import add_pictures
from reports import make_report

from flatq.report.sidecar import CHANGED, FIRST, kept_rows, most_changed, read_sidecar


def test_the_first_and_the_farthest_are_kept() -> None:
    distance = np.random.default_rng(0).permutation(500) / 500.0
    rows = kept_rows(distance, (1, 8, 8))
    farthest = np.argsort(distance)[::-1][:CHANGED]
    assert rows.tolist() == sorted({*range(FIRST), *farthest.tolist()})
    assert most_changed(distance).tolist() == farthest.tolist()
    assert kept_rows(distance[:5], (1, 8, 8)).tolist() == [0, 1, 2, 3, 4]


def test_what_did_not_change_is_not_among_them_and_ties_go_by_index() -> None:
    assert most_changed(np.zeros(9)).size == 0
    assert most_changed(np.array([0.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 2]


@pytest.mark.parametrize("size", [8, 32, 64, 128, 256, 512])
def test_large_images_are_kept_in_smaller_numbers(size: int) -> None:
    rows = kept_rows(np.arange(500) / 500.0, (3, size, size))
    assert 8 <= len(rows) <= FIRST + CHANGED
    assert len(rows) * size * size <= (FIRST + CHANGED) * 64 * 64 + 8 * size * size


def test_images_come_back_by_index(tmp_path: Path) -> None:
    entry = make_report(tmp_path, {"w8a8": 0.1}, n=100).models[0]
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    more = {"kept": np.array([5, 7]), "kept_float": images, "kept_quantized": images[::-1]}
    add_pictures(tmp_path, "w8a8", [0], **more)
    pictures = read_sidecar(entry, tmp_path)
    assert pictures is not None
    pair = pictures.pair(7)
    assert pair is not None
    assert np.array_equal(pair[0], images[1])
    assert np.array_equal(pair[1], images[0])
    assert pictures.pair(6) is None
    assert pictures.image_distance is not None
    assert pictures.image_distance[7] == 0.007
