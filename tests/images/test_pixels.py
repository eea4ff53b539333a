from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.images import Rounding, to_float, to_uint8


def test_float_convention() -> None:
    levels = np.arange(256, dtype=np.uint8)
    x = to_float(levels)
    assert x.dtype == np.float32
    assert np.allclose(x, levels / 127.5 - 1, rtol=0, atol=1.2e-7)  # one rounding at magnitude 2
    assert (x[0], x[255]) == (-1, 1)
    assert np.array_equal(to_uint8(x), levels)
    assert get_args(Rounding) == ("round", "truncate")
    lost = levels.astype(int) - to_uint8(x, "truncate")
    assert set(lost.tolist()) <= {0, 1}
    assert to_uint8(np.float32([-3, 0.004, 3])).tolist() == [0, 128, 255]
    assert to_uint8(np.float32([-3, 0.0039, 3]), "truncate").tolist() == [0, 127, 255]
    with pytest.raises(DataError, match="not finite"):
        to_uint8(np.float32([0, np.nan]))
