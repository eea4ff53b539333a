from __future__ import annotations

import numpy as np
import pytest

from flatq.errors import DataError
from flatq.images import check_labels


def test_labels_that_fit() -> None:
    check_labels(np.arange(10), 10, "digits")
    check_labels(np.zeros(0, np.int64), 1, "nothing")


def test_labels_outside_the_classes() -> None:
    with pytest.raises(DataError, match=r"cats\.zip has labels") as caught:
        check_labels(np.array([0, 2, 3, 1, 7]), 3, "cats.zip")
    assert "labels of 0..2 (3 classes)" in str(caught.value)
    assert "3 at index 2, 2 of 5 outside" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="-1 at index 1"):
        check_labels(np.array([0, -1]), 3, "cats.zip")
