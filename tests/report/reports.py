"""Small reports with their sidecars, for tests of what reads them; nothing is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flatq.evaluate.drift import fid_drift
from flatq.evaluate.frechet import frechet_side
from flatq.evaluate.kid import kid_drift
from flatq.evaluate.moments import reference_from_features
from flatq.report.model import Baseline, Environment, ExtractorEntry, ModelEntry, ReferenceEntry, Report
from flatq.report.write import write_report

__all__ = ["make_report"]

D = 6
REAL = -0.3 + 0.9 * np.random.default_rng(99).normal(size=(2000, D))
REFERENCE = reference_from_features(REAL)
RUNTIME = {"runtime": "onnxruntime", "version": "1.22.0", "device": "cpu", "threads": 1}


def features(noise: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and x + a shift and noise of this size; row i depends on (seed, i) alone. 0 gives x itself."""
    rows = np.random.default_rng(seed).normal(size=(4000, 2 * D))[:n]
    x = rows[:, :D]
    return x, x if noise == 0 else x + noise * (0.5 + rows[:, D:])


def make_report(
    folder: Path, models: dict[str, float], n: int = 400, *, seed: int = 0, **more: Any
) -> Report:
    """Writes report.json, report.md and a sidecar for each model of this name and noise; NaN gives a model
    none of whose images are finite."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, noise in models.items():
        x, q = features(0.0 if np.isnan(noise) else noise, n, seed)
        if np.isnan(noise):
            q = np.zeros_like(x)
        kept: dict[str, Any] = {"indices": np.arange(n), "features_float": x}
        for key, side in (("float", x), ("quantized", q)):
            influence = frechet_side(side, REFERENCE).influence
            if influence is not None:
                kept[f"influence_{key}"] = influence
        np.savez(folder / f"{name}.npz", allow_pickle=False, **kept)
        entries.append(
            ModelEntry(
                name=name,
                label=f"ema {name}",
                precision=name,
                digest="ab" * 32,
                runtime=RUNTIME,
                size_bytes=1_000_000,
                drift=fid_drift(x, q, REFERENCE),
                kid=kid_drift(x, q, REAL),
                not_finite=n if np.isnan(noise) else 0,
                rms_distance_mean=0.05,
                rms_distance_max=0.2,
                grid=f"{name}.png",
                sidecar=f"{name}.npz",
            )
        )
    base: dict[str, Any] = {
        "plan": {"steps": 20, "sampler": "ancestral", "eta": 0.0, "seed": seed, "clip": True},
        "n": n,
        "first_index": 0,
        "last_index": n - 1,
        "extractor": ExtractorEntry(name="digits48", digest="cd" * 32, dim=D),
        "reference": ReferenceEntry(name="digits:heldout", digest="ef" * 32, n=2000),
        "rounding": "round",
        "baseline": Baseline(
            name="float", digest="01" * 32, precision="fp32", runtime=RUNTIME, size_bytes=4_000_000
        ),
        "models": entries,
        "environment": Environment(python="3.11", platform="Linux", versions={}, cpu="Some CPU"),
    }
    report = Report(**(base | more))
    write_report(report, folder)
    return report
