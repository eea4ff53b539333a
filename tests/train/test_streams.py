"""The random streams: none is shared by two purposes, processes or seeds, and none ever moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatq.train.streams import stream, stream_seed

KEYS = {
    "weights": 0, "order": 1, "timesteps": 2, "noise": 3, "perturbation": 4, "label_dropout": 5, "dropout": 6,
    "weight_noise": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_spawn_keys_are_fixed(name: str) -> None:
    child = np.random.SeedSequence(2**40 + 3, spawn_key=(KEYS[name], 2))
    assert stream_seed(2**40 + 3, name, 2) == int(child.generate_state(1, np.uint64)[0])


def test_no_two_streams_ranks_or_seeds_are_alike() -> None:
    cases = [(seed, name, rank) for seed in (0, 1, 2, 2**32) for name in KEYS for rank in range(3)]
    # torch's CPU generator takes the low 32 bits
    assert len({stream_seed(*case) % 2**32 for case in cases}) == len(cases)
    assert not torch.equal(
        torch.rand(4, generator=stream(0, "noise")), torch.rand(4, generator=stream(2**32, "noise"))
    )
