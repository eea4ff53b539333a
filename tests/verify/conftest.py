"""Deployments to verify, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from exports import Deployments

from flatq.calib.inputs import CalibrationPlan
from flatq.checkpoint import Checkpoint
from flatq.quantize.artifact import Artifact
from flatq.quantize.rounding import quantize_checkpoint
from flatq.recipe import PRESETS


@pytest.fixture(scope="session")
def deployments(
    tiny: Checkpoint,
    labelled: Checkpoint,
    tiny_artifacts: dict[str, Artifact],
    tiny_export: Callable[[str, str], Path],
    built_once: Callable[[str, Callable[[], Artifact]], Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Deployments:
    """`tiny` by w8a8, w4a8, w4a4 and w8, and `labelled` by w8a8 with guidance."""
    few = CalibrationPlan(images=2, steps=2)
    guided = CalibrationPlan(images=5, steps=2, guidance=2.0)
    more = {
        "w8": built_once(
            "tiny-w8", lambda: quantize_checkpoint(tiny, PRESETS["w8"], calibration=few, threads=1)
        ),
        "labelled": built_once(
            "labelled-guided",
            lambda: quantize_checkpoint(labelled, PRESETS["w8a8"], calibration=guided, threads=1),
        ),
    }
    made = {name: partial(tiny_export, name) for name in tiny_artifacts}
    return Deployments({**tiny_artifacts, **more}, tmp_path_factory.mktemp("verify"), made)
