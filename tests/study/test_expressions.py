"""Contrasts as text: what they say, and that errors name what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from flatq.study.expressions import Expression, Quantity

A, B = np.array([1.0, 4.0, 9.0]), np.array([2.0, 2.0, 3.0])
ERROR = np.full(3, 0.1)


def values(quantity: Quantity) -> np.ndarray:
    return {"lpf": {"adm": A, "sam": B}, "lpf_error": {"adm": ERROR, "sam": ERROR}}[quantity.kind][
        quantity.model
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lpf(a, raw) - 2 * lpf(b, raw) / 4 + 1", A - 2 * B / 4 + 1),
        ("-log(lpf(b, raw) / lpf(a, raw))", -np.log(B / A)),
        ("abs(lpf(a, raw) - lpf(b, raw)) / mean(lpf(a, raw))", np.abs(A - B) / A.mean()),
        ("log_ratio(lpf(a, raw), lpf(b, raw), lpf_error(a, raw), lpf_error(b, raw))", np.log(A / B)),
        # 1 is not more than twice 2, so that all seeds are differences
        (
            "log_ratio(lpf(a, raw), lpf(b, raw), 20 * lpf_error(a, raw), lpf_error(b, raw))",
            (A - B) / B.mean(),
        ),
        ("log(0.65)", np.log(0.65)),
    ],
)
def test_values_are_those_by_hand(text: str, expected: np.ndarray) -> None:
    found = Expression(text)
    result, differences = found.evaluate(values, {"a": "adm", "b": "sam"})
    assert result == pytest.approx(expected)
    assert differences == ("20 *" in text)


def test_quantities_are_read_with_their_options() -> None:
    found = Expression("fid(plain, ema, naive8, steps=100, runtime=openvino) - fid(ip, raw)")
    plain, ip = found.quantities({"plain": "adm"})
    assert plain == Quantity("fid", "adm", "ema", "naive8", 100, "openvino")
    assert plain.describe() == "fid(adm, ema, naive8, steps=100, runtime=openvino)"
    assert ip == Quantity("fid", "ip", "raw")
    assert Expression(0.1).number == 0.1
    assert Expression("-log(2)").number == pytest.approx(-np.log(2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "'1 \\+' is no expression"),
        ("lpf(adm)", "lpf takes 2 to 2 names"),
        ("drift(adm, raw)", "drift takes 3 to 3 names"),
        ("lpf(adm, best)", "weights are one of raw, ema, swa"),
        ("lpf('adm', raw)", "lpf takes 2 to 2 names"),
        ("lpf(adm, raw, steps=20)", "lpf knows no steps"),
        ("fid(adm, raw, steps=many)", "fid knows no steps"),
        ("log(1, 2)", "log takes 1 values"),
        ("median(lpf(adm, raw))", "median.*is not understood; there are"),
        ("lpf(adm, raw) ** 2", "is not understood"),
        ("adm", "'adm' is not understood"),
        ("__import__('os')", "is not understood"),
    ],
)
def test_errors_name_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Expression(text)
