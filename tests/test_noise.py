from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flatq.errors import UsageError
from flatq.noise import NoiseStream, normal

SHAPE = (3, 2, 2)
SEED, INDICES, DRAW, STREAM = 0x9E3779B97F4A7C15, [0, 3, 2**32 - 1], 2**31 + 7, NoiseStream.PROBES
"""Of the comparisons with other implementations: each word of the key and the counter counts."""


def _words(counter: tuple[int, int, int, int], seed: int) -> tuple[int, ...]:
    """Philox 4x32-10 as its paper states it, one counter at a time."""
    c, k = list(counter), [seed % 2**32, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def _scalar(seed: int, index: int, draw: int, size: int, stream: int) -> NDArray[np.float32]:
    """One image's values by Python's integers and libm."""
    values: list[float] = []
    for block in range(-(-size // 4)):
        u = [(word + 0.5) / 2**32 for word in _words((block, draw, index, stream), seed)]
        for first, second in (u[:2], u[2:]):
            radius = math.sqrt(-2 * math.log(first))
            values += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    return np.array(values[:size], dtype=np.float32)


def _torch(seed: int, index: int, draw: int, size: int, stream: int) -> NDArray[np.float32]:
    """One image's values by torch, on any device: the low 64 bits of a product of int64 hold all it needs."""
    torch = pytest.importorskip("torch")
    low = 0xFFFFFFFF
    blocks = torch.arange(-(-size // 4), dtype=torch.int64)
    c = [blocks, *(torch.full_like(blocks, word) for word in (draw, index, stream))]
    k = [seed & low, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32 & low) ^ c[1] ^ k[0], p1 & low, (p0 >> 32 & low) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    u = (torch.stack(c, dim=1).double() + 0.5) * 2.0**-32
    radius, angle = torch.sqrt(-2 * torch.log(u[:, ::2])), 2 * math.pi * u[:, 1::2]
    values = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)
    found: NDArray[np.float32] = values.flatten()[:size].float().numpy()
    return found


def _javascript(seed: int, index: int, draw: int, size: int, stream: int) -> NDArray[np.float32]:
    """One image's values by the script that a browser can run."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the browser's script cannot run")
    module = (Path(__file__).parent / "noise.mjs").as_uri()
    program = (
        f"import {{ normal }} from {module!r};"
        f"process.stdout.write(new Uint8Array(normal({seed}n, {index}, {draw}, {size}, {stream}).buffer));"
    )
    ran = subprocess.run(
        [node, "--input-type=module", "--eval", program], stdout=subprocess.PIPE, check=True, timeout=60
    )
    return np.frombuffer(ran.stdout, dtype="<f4")


def test_known_answer() -> None:
    """The words are those of the authors' test vectors (Random123, philox4x32 10 0 0)."""
    assert _words((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    found = normal(0, [0], 0, (1, 2, 2))
    assert found.dtype == np.float32
    expected = [0.9911377, -0.9246626, -0.6176090, -0.4820686]
    np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=6e-8)


@pytest.mark.parametrize(
    ("implementation", "shape"),
    [(_scalar, (3, 13, 11)), (_torch, (3, 1000, 333)), (_javascript, (3, 1000, 333))],
    ids=["python", "torch", "javascript"],
)
def test_other_implementations_draw_the_same(
    implementation: Callable[[int, int, int, int, int], NDArray[np.float32]], shape: tuple[int, int, int]
) -> None:
    """The sizes are no multiples of 4, and the large ones are drawn in chunks."""
    size = math.prod(shape)
    found = normal(SEED, INDICES, DRAW, shape, stream=STREAM).reshape(len(INDICES), size)
    others = np.stack([implementation(SEED, index, DRAW, size, STREAM) for index in INDICES])
    apart = np.abs(found.view(np.int32) - others.view(np.int32))  # in ulp, as the signs are equal
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= apart.size / 1e6


def test_batch_size_and_order_do_not_matter() -> None:
    indices, shape = [5, 0, 2**32 - 1, 5, 17], (3, 61, 67)
    together = normal(3, indices, 2, shape)
    assert together.shape == (5, *shape)
    np.testing.assert_array_equal(together, np.concatenate([normal(3, [k], 2, shape) for k in indices]))
    np.testing.assert_array_equal(together[:, :, :1], normal(3, indices[::-1], 2, shape)[::-1, :, :1])


def test_seeds_indices_draws_and_streams_share_no_value() -> None:
    images = [
        image
        for seed in (0, 1, 2**32)
        for draw in (0, 1, 2**31)
        for stream in NoiseStream
        for image in normal(seed, [0, 1], draw, SHAPE, stream=stream)
    ]
    values = np.stack(images).ravel()
    assert len(np.unique(values)) == len(values) == 3 * 3 * 3 * 2 * 12


def test_standard_normal() -> None:
    sample = normal(0, range(64), 0, (3, 16, 16)).astype(np.float64)
    assert abs(sample.mean()) < 5 / np.sqrt(sample.size)  # five standard errors
    assert abs(sample.var() - 1) < 5 * np.sqrt(2 / sample.size)
    rows = sample.reshape(64, -1)
    between = (rows @ rows.T / 768)[np.triu_indices(64, 1)]
    assert np.abs(between).max() < 6 / np.sqrt(768)


def test_empty_batch_and_numpy_integers() -> None:
    assert normal(0, [], 0, SHAPE).shape == (0, *SHAPE)
    one = normal(0, [7], 0, SHAPE)
    np.testing.assert_array_equal(normal(np.uint64(0), np.array([7]), 0, SHAPE), one)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, True, "0", None])
def test_seed_index_and_draw_are_checked(bad: int) -> None:
    with pytest.raises(UsageError, match="seed is out of range"):
        normal(bad, [0], 0, SHAPE)
    with pytest.raises(UsageError, match="index is out of range"):
        normal(0, [0, bad], 0, SHAPE)
    with pytest.raises(UsageError, match="draw is out of range"):
        normal(0, [0], bad, SHAPE)


def test_an_index_or_a_draw_has_32_bits() -> None:
    with pytest.raises(UsageError, match=r"index is out of range(.|\n)*\[0, 2\*\*32\)"):
        normal(0, [2**32], 0, SHAPE)
    with pytest.raises(UsageError, match="draw is out of range"):
        normal(0, [0], 2**32, SHAPE)


@pytest.mark.parametrize("shape", [(3, 2), (3, 0, 2), (1, 3, 2, 2)])
def test_shape_is_checked(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="noise shape"):
        normal(0, [0], 0, shape)
