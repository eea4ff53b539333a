"""Fixtures that several rooms' tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The test vectors below `shared`; the test is skipped where they are absent."""
    data = shared / "data"
    if not data.is_dir():
        pytest.skip(f"no test vectors: {data} is absent")
    return data
