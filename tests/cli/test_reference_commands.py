"""`flatq stats`, and `flatq eval` against images, statistics and the cache: exit codes and what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command_line import Cli

from flatq.evaluate.inception import open_inception
from flatq.evaluate.moments import Moments
from flatq.evaluate.statistics_file import ReferenceSource, load_reference, save_reference
from flatq.report.model import Report, read_report
from flatq.train import TrainConfig, train

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

N = 150  # above 2.5 times the 48 features of digits48


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("FLATQ_CACHE", str(tmp_path / "cache"))
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two float models of digits that differ in their seed."""
    config = TrainConfig(data="digits", steps=4, batch_size=8, channels=(16, 32), patch_size=2, threads=1)
    one = train(config, tmp_path_factory.mktemp("one")).source
    other = train(config.model_copy(update={"seed": 1}), tmp_path_factory.mktemp("other")).source
    assert one is not None
    assert other is not None
    return one, other


def _evaluate(cli: Cli, models: tuple[Path, Path], out: Path, *more: object) -> int:
    baseline, model = models
    options = ("--fid", "--steps", 2, "-n", N, "--threads", 1)  # more threads than free cores are slow
    return cli("eval", model, "--baseline", baseline, *options, "-o", out, *more)


def _drift(report: Report) -> tuple[Any, ...]:
    drift = report.models[0].drift
    assert drift is not None
    return drift.fid_float, drift.fid_quantized, drift.raw, drift.corrected, drift.low


def test_statistics_and_images_give_the_same_drift(
    cli: Cli, models: tuple[Path, Path], tmp_path: Path
) -> None:
    assert cli("stats", "digits", "--threads", 1, "-o", tmp_path / "ref.npz") == 0
    assert cli.out.strip() == str(tmp_path / "ref.npz")
    assert "1797 images of digits, 48 features of digits48" in cli.err
    assert _evaluate(cli, models, tmp_path / "a", "--data", "digits") == 0
    images = read_report(tmp_path / "a")
    assert _evaluate(cli, models, tmp_path / "b", "--reference", tmp_path / "ref.npz", "--no-cache") == 0
    stored = read_report(tmp_path / "b")
    assert _drift(images) == _drift(stored)
    assert (images.reference.kind, stored.reference.kind) == ("images", "statistics")
    assert (images.reference.n, stored.reference.n) == (1797, 1797)
    assert images.reference.digest == stored.reference.digest
    assert images.baseline.prc is not None
    assert images.models[0].prc is not None
    assert stored.baseline.prc is None
    assert stored.models[0].kid is not None
    assert stored.models[0].kid.against == "float"
    text = (tmp_path / "b" / "report.md").read_text()
    assert "KID needs the reference's features" in text
    assert "statistics of digits, 1797 images" in text


def test_the_cache_is_used_unless_it_is_not_wanted(
    cli: Cli, models: tuple[Path, Path], tmp_path: Path
) -> None:
    entries = tmp_path / "cache" / "reference"
    assert cli("stats", "digits", "--threads", 1, "-o", tmp_path / "ref.npz", "--no-cache") == 0
    assert not entries.exists()
    assert _evaluate(cli, models, tmp_path / "a") == 0
    (entry,) = entries.iterdir()
    assert cli("stats", "digits", "--threads", 1, "-o", tmp_path / "again.npz") == 0  # from the same entry
    assert list(entries.iterdir()) == [entry]
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "ref.npz").read_bytes()
    entry.write_bytes(b"damaged")
    assert _evaluate(cli, models, tmp_path / "b") == 0
    assert "damaged and is made again" in cli.err
    assert _drift(read_report(tmp_path / "b")) == _drift(read_report(tmp_path / "a"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pytorch-fid", "guided-diffusion"])
def test_statistics_of_others(cli: Cli, models: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    assert cli("stats", "digits", "-o", tmp_path / "ref.npz") == 0
    own = load_reference(tmp_path / "ref.npz").reference
    arrays: dict[str, Any] = {"mu": own.mean, "sigma": own.cov}
    if kind == "guided-diffusion":
        arrays |= {"arr_0": np.zeros((3, 8, 8, 3), np.uint8), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "other.npz", **arrays)
    assert _evaluate(cli, models, tmp_path / "e", "--reference", tmp_path / "other.npz") == 0
    assert "cannot be checked" in cli.err
    report = read_report(tmp_path / "e")
    assert (report.reference.n, report.reference.kind) == (None, "foreign-statistics")
    assert "an unknown number of images" in (tmp_path / "e" / "report.md").read_text()
    assert cli("gate", tmp_path / "e" / "report.json", "--max-drift", 1e9) == 0


def test_bad_references_exit_2_before_anything_is_sampled(
    cli: Cli, models: tuple[Path, Path], tmp_path: Path
) -> None:
    def refused(*more: object) -> str:
        assert _evaluate(cli, models, tmp_path / "e", *more) == 2
        assert not (tmp_path / "e").exists()
        return cli.err

    np.savez(tmp_path / "dim.npz", mu=np.zeros(7), sigma=np.eye(7))
    assert "48 dimensions" in refused("--reference", tmp_path / "dim.npz")
    np.savez(tmp_path / "skew.npz", mu=np.zeros(48), sigma=np.eye(48) + np.eye(48, k=1))
    assert "not symmetric" in refused("--reference", tmp_path / "skew.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "skew.npz").read_bytes()[:200])
    assert "Cannot read" in refused("--reference", tmp_path / "half.npz")
    assert "holds no images" in refused("--data", tmp_path / "dim.npz")
    np.savez(tmp_path / "images.npz", np.zeros((3, 8, 8, 1), np.uint8))
    assert "--data" in refused("--reference", tmp_path / "images.npz")
    assert "both" in refused("--reference", tmp_path / "dim.npz", "--data", "digits")
    assert "--features inception" in refused("--inception-weights", tmp_path / "w.pth")
    assert "--resize" in refused("--resize", "nearest")
    np.savez(tmp_path / "large.npz", np.random.default_rng(0).integers(0, 256, (60, 9, 9, 1), np.uint8))
    assert "no resize was asked for" in refused("--data", tmp_path / "large.npz")
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 1), np.uint8))
    assert "too few images" in refused("--data", tmp_path / "one.npz")
    for arguments in (
        ("nothing",),
        (tmp_path / "dim.npz",),
        (tmp_path / "one.npz",),
        (tmp_path / "large.npz",),
        ("digits", "--features", tmp_path / "dim.npz"),
        ("digits", "--resize", "stretch"),
    ):
        assert cli("stats", *arguments, "-o", tmp_path / "new.npz") == 2, arguments
        assert not (tmp_path / "new.npz").exists()
        assert not cli.out


def test_a_named_resize_is_in_the_report(cli: Cli, models: tuple[Path, Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", pixels)
    options = ("--data", tmp_path / "large.npz", "--resize", "stretch")
    assert _evaluate(cli, models, tmp_path / "e", *options) == 0
    prepared = read_report(tmp_path / "e").reference.preprocessing
    assert prepared is not None
    assert "stretch to 8 x 8" in prepared
    stats = ("stats", tmp_path / "large.npz", "--size", 8, "--resize", "stretch", "--channels", 1)
    assert cli(*stats, "-o", tmp_path / "ref.npz") == 0
    assert load_reference(tmp_path / "ref.npz").source.preprocessing == prepared
    assert cli(*stats, "-o", tmp_path / "few.npz", "--limit", 30) == 0
    assert "covariance is singular" in cli.err


def test_inception_from_end_to_end(
    cli: Cli, models: tuple[Path, Path], inception_weights: Path, tmp_path: Path
) -> None:
    net = open_inception(image_shape=(1, 8, 8), weights=inception_weights)
    moments = Moments(9, np.zeros(2048), np.diag(np.linspace(1, 2, 2048)))
    source = ReferenceSource("images", "digits", "ab" * 32, 9, (1, 8, 8), "none")
    save_reference(tmp_path / "ref.npz", moments, source, net)
    baseline, model = models
    options = ("--features", "inception", "--inception-weights", inception_weights)
    evaluate = ("eval", model, "--baseline", baseline, "--fid", "--steps", 1, "-n", 2, "--threads", 1)
    assert cli(*evaluate, "--reference", tmp_path / "ref.npz", "-o", tmp_path / "e", *options) == 0
    report = read_report(tmp_path / "e")
    assert (report.extractor.kind, report.extractor.dim) == ("inception", 2048)
    assert report.extractor.digest == net.digest
    assert report.extractor.published is False
    assert "not more than the 2048 feature dimensions" in cli.out
    text = (tmp_path / "e" / "report.md").read_text()
    assert "cannot say that the raw FIDs are of the standard kind" in text
    assert "grey repeated to RGB" in text
    (tmp_path / "w.pth").write_bytes(b"no weights")
    bad = ("--features", "inception", "--inception-weights", tmp_path / "w.pth")
    assert cli("stats", "digits", "-o", tmp_path / "new.npz", *bad) == 2


def test_inception_without_torch_fidelity_exits_3(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # its import fails
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert _evaluate(cli, models, tmp_path / "e", "--features", "inception") == 3
    assert 'pip install "flatq[fid]"' in cli.err
    assert cli("stats", "digits", "--features", "inception", "-o", tmp_path / "ref.npz") == 3


def test_doctor_tells_of_a_torchvision_that_does_not_fit(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import importlib.metadata

    real_version, real_import = importlib.metadata.version, importlib.import_module

    def version(name: str) -> str:
        return "0.28.0" if name == "torchvision" else real_version(name)

    def load(name: str, *more: Any) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real_import(name, *more)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", load)
    assert cli("doctor") == 0
    assert "problem: torchvision 0.28.0 does not fit torch" in cli.out
