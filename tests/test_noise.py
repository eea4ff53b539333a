from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import UsageError
from flatq.noise import ImageNoise

SHAPE = (3, 2, 2)

# (seed, image index, shape, first values of successive draws). A change here breaks every stored comparison.
GOLDEN = [
    (
        0,
        0,
        SHAPE,
        [
            [0.059911035001277924, 0.015559634193778038, -1.1644384860992432, -0.13264712691307068],
            [-1.4493513107299805, 0.5533656477928162, -0.8052921891212463, 1.3485920429229736],
        ],
    ),
    (0, 1, SHAPE, [[-1.4314630031585693, 1.6707168817520142, -0.4027239680290222, -1.2956420183181763]]),
    (
        2**64 - 1,
        2**63 + 5,
        (1, 1, 4),
        [[-0.04691718891263008, -0.04949153587222099, 1.427686095237732, 0.8975657224655151]],
    ),
]


@pytest.mark.parametrize(("seed", "index", "shape", "draws"), GOLDEN)
def test_golden(seed: int, index: int, shape: tuple[int, int, int], draws: list[list[float]]) -> None:
    noise = ImageNoise(seed, [index], shape)
    for expected in draws:
        drawn = noise.draw()
        assert drawn.dtype == np.float32
        assert drawn.shape == (1, *shape)
        # Relative 1e-6: the tails of the ziggurat take log1p and exp of the platform's libm.
        np.testing.assert_allclose(drawn.ravel()[: len(expected)], expected, rtol=1e-6)


def test_batching_and_order_do_not_matter() -> None:
    indices = [5, 0, 2**64 - 1, 5, 17]
    together = ImageNoise(3, indices, SHAPE)
    alone = [ImageNoise(3, [k], SHAPE) for k in indices]
    for _ in range(3):
        np.testing.assert_array_equal(together.draw(), np.concatenate([one.draw() for one in alone]))


def test_distinct_seeds_indices_and_draws_differ() -> None:
    first = ImageNoise(0, [0, 1], SHAPE)
    a, b = first.draw(), first.draw()
    swapped = ImageNoise(1, [0, 1], SHAPE).draw()  # (1, 0) must not be (0, 1)
    images = [*a, *b, *swapped]
    for j, one in enumerate(images):
        for other in images[j + 1 :]:
            assert not np.any(one == other)


def test_standard_normal() -> None:
    sample = ImageNoise(0, range(64), (3, 16, 16)).draw().astype(np.float64)
    assert abs(sample.mean()) < 5 / np.sqrt(sample.size)  # five standard errors
    assert abs(sample.var() - 1) < 5 * np.sqrt(2 / sample.size)
    rows = sample.reshape(64, -1)
    between = (rows @ rows.T / 768)[np.triu_indices(64, 1)]
    assert np.abs(between).max() < 6 / np.sqrt(768)


def test_empty_batch_and_numpy_integers() -> None:
    assert ImageNoise(0, [], SHAPE).draw().shape == (0, *SHAPE)
    one = ImageNoise(0, [7], SHAPE).draw()
    np.testing.assert_array_equal(ImageNoise(np.uint64(0), np.array([7]), SHAPE).draw(), one)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, True, "0", None])
def test_seed_and_indices_are_checked(bad: int) -> None:
    with pytest.raises(UsageError, match="seed is out of range"):
        ImageNoise(bad, [0], SHAPE)
    with pytest.raises(UsageError, match="index is out of range"):
        ImageNoise(0, [0, bad], SHAPE)


@pytest.mark.parametrize("shape", [(3, 2), (3, 0, 2), (1, 3, 2, 2)])
def test_shape_is_checked(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="noise shape"):
        ImageNoise(0, [0], shape)
