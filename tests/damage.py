"""Random damage to a file's bytes, for tests of what reads them."""

from __future__ import annotations

import random

__all__ = ["damaged"]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy that differs: a flipped bit, or bytes overwritten, inserted, removed, or cut off at the end."""
    at = rng.randrange(len(content))
    few = rng.randbytes(rng.choice((1, 1, 4, 30)))
    changed = rng.choice(
        (
            content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
            content[:at] + few + content[at + len(few) :],
            content[:at] + few + content[at:],
            content[:at] + content[at + len(few) :],
            content[:at],
        )
    )
    return changed if changed != content else damaged(content, rng)
