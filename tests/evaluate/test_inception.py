from __future__ import annotations

import builtins
import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatq.errors import CheckpointError, DataError, MissingRuntimeError, UsageError
from flatq.evaluate import inception
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.features import open_extractor
from flatq.evaluate.inception import open_inception, state_digest

torch = pytest.importorskip("torch")

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def net(inception_weights: Path) -> Extractor:
    return open_inception(image_shape=SHAPE, weights=inception_weights)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache of weights, empty, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


def test_what_it_says_of_itself(net: Extractor) -> None:
    assert (net.kind, net.dim, net.image_shape, net.published) == ("inception", 2048, SHAPE, False)
    assert "299 x 299" in net.preprocessing
    assert "grey" not in net.preprocessing
    assert net.identity["threads"] == 1
    assert "torch-fidelity" in net.identity["version"]


def test_no_random_number_is_drawn(inception_weights: Path) -> None:
    before = torch.get_rng_state()
    open_inception(image_shape=(1, 8, 8), weights=inception_weights)
    assert torch.equal(before, torch.get_rng_state())


def test_the_digest_is_of_the_content(net: Extractor, inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    expected = hashlib.sha256()
    for name in sorted(state):
        array = state[name].numpy()
        expected.update(f"{name} {array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    assert net.digest == expected.hexdigest() == state_digest(dict(reversed(state.items())))
    # training's counters may be missing in an old file: the same network
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    torch.save({name: state[name] for name in state if name not in counters}, tmp_path / "old.pth")
    assert open_inception(image_shape=SHAPE, weights=tmp_path / "old.pth").digest == net.digest
    state["fc.bias"] = state["fc.bias"] + 1
    assert state_digest(state) != net.digest


def test_grey_is_repeated(net: Extractor, inception_weights: Path) -> None:
    grey = open_extractor("inception", image_shape=(1, 16, 16), inception_weights=inception_weights)
    assert "grey repeated to RGB" in grey.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), dtype=np.uint8)
    seen: list[tuple[int, int]] = []
    features = grey.extract(pixels, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(features, net.extract(np.repeat(pixels, 3, axis=1)))
    assert seen == [(1, 1)]
    assert torch.get_num_threads() > 0


def test_wrong_images(net: Extractor, inception_weights: Path) -> None:
    for pixels in (np.zeros((2, 1, 16, 16), np.uint8), np.zeros((2, *SHAPE), np.float32)):
        with pytest.raises(DataError, match="do not fit"):
            net.extract(pixels)
    with pytest.raises(DataError, match="grey or RGB"):
        open_inception(image_shape=(4, 16, 16), weights=inception_weights)


def test_weights_that_do_not_fit(inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    del state["fc.bias"], state["Conv2d_1a_3x3.conv.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["fc.weight"] = state["fc.weight"][:7]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(DataError) as error:
        open_inception(image_shape=SHAPE, weights=tmp_path / "bad.pth")
    text = str(error.value)
    for name in ("Conv2d_1a_3x3.conv.weight", "fc.bias", "extra.weight", "fc.weight"):
        assert name in text


@pytest.mark.usefixtures("torch_fidelity")
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        open_inception(image_shape=SHAPE, weights=file)
    file.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="plain tensors"):
        open_inception(image_shape=SHAPE, weights=file)
    torch.save(torch.nn.Linear(2, 2), file)  # would be unpickled
    with pytest.raises(CheckpointError, match="plain tensors"):
        open_inception(image_shape=SHAPE, weights=file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(DataError, match="epoch"):
        open_inception(image_shape=SHAPE, weights=file)


@pytest.mark.usefixtures("torch_fidelity")
def test_offline_and_not_cached(hub: Path) -> None:
    with pytest.raises(MissingRuntimeError, match="--inception-weights FILE") as error:
        open_inception(image_shape=SHAPE)
    assert str(hub) in str(error.value)


def test_the_cached_file_must_be_the_published_one(
    hub: Path, inception_weights: Path, net: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(inception_weights.read_bytes())
    with pytest.raises(DataError, match="not the published ones"):
        open_inception(image_shape=SHAPE)
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", hashlib.sha256(hub.read_bytes()).hexdigest())
    cached = open_inception(image_shape=SHAPE)
    assert cached.published
    assert cached.digest == net.digest


@pytest.mark.usefixtures("torch_fidelity")
def test_a_download_is_checked(hub: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, target: str, *, hash_prefix: str, progress: bool) -> None:
        assert url.endswith(hub.name)
        assert hash_prefix == inception.PUBLISHED_SHA256
        assert hash_prefix.startswith(hub.stem.rsplit("-", 1)[1])
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(MissingRuntimeError, match="invalid hash value"):
        open_inception(image_shape=SHAPE)


def test_devices(inception_weights: Path) -> None:
    for device in ("none", "meta"):
        with pytest.raises(UsageError, match="no device"):
            open_inception(image_shape=SHAPE, weights=inception_weights, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(MissingRuntimeError, match="CUDA"):
            open_inception(image_shape=SHAPE, weights=inception_weights, device="cuda")


@pytest.mark.gpu
def test_on_a_gpu(net: Extractor, inception_weights: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    there = open_inception(image_shape=SHAPE, weights=inception_weights, device="cuda")
    assert "cuda" in there.identity["device"]
    expected = net.extract(pixels)
    # float32 without TF32: 94 convolutions in another order of sums
    np.testing.assert_allclose(there.extract(pixels), expected, rtol=0, atol=1e-4 * expected.max())


def test_options_of_inception_alone() -> None:
    pytest.importorskip("onnxruntime")
    for options in ({"inception_weights": Path("w.pth")}, {"device": "cuda"}):
        with pytest.raises(UsageError, match="--features inception"):
            open_extractor(None, image_shape=(1, 8, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            ModuleNotFoundError("No module named 'torch_fidelity'"),
            r'not installed[\s\S]*pip install "flatq\[fid\]"',
        ),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision does not fit this torch"),
        (ImportError("libcudart.so.13: cannot open"), "torchvision does not fit this torch"),
    ],
    ids=["absent", "other build", "no library"],
)
def test_without_torch_fidelity(raised: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def block(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "torch_fidelity":
            raise raised
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(MissingRuntimeError, match=message):
        open_extractor("inception", image_shape=SHAPE)
