from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatq.errors import DataError, MissingRuntimeError
from flatq.evaluate.extractor import Extractor
from flatq.evaluate.features import NETS, open_features
from flatq.images import load_images

onnxruntime = pytest.importorskip("onnxruntime")

BUNDLED = NETS / "digits48.onnx"


@pytest.fixture(scope="module")
def net() -> Extractor:
    return open_features(None, image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    pytest.importorskip("sklearn")
    return load_images("digits").pixels


@pytest.fixture(scope="module")
def features(net: Extractor, digits: np.ndarray) -> np.ndarray:
    return net.extract(digits)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    s, r = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(s @ r).real, 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * root)


def _write(
    path: Path,
    *,
    dtype: str = "UINT8",
    shape: tuple[object, ...] = ("n", 1, 8, 8),
    body: str = "flatten",
    outputs: tuple[str, ...] = ("out",),
) -> Path:
    """A network whose features are its pixels, or one that breaks the contract."""
    onnx = pytest.importorskip("onnx")
    make, types = onnx.helper, onnx.TensorProto
    nodes = [make.make_node("Cast", ["x"], ["f"], to=types.FLOAT)]
    if body == "log":
        nodes += [make.make_node("Log", ["f"], ["g"]), make.make_node("Flatten", ["g"], [outputs[0]])]
    else:
        nodes.append(make.make_node({"flatten": "Flatten", "map": "Identity"}[body], ["f"], [outputs[0]]))
    nodes += [make.make_node("Identity", [outputs[0]], [name]) for name in outputs[1:]]
    rank = 4 if body == "map" else 2
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("x", getattr(types, dtype), shape)],
        [make.make_tensor_value_info(name, types.FLOAT, [None] * rank) for name in outputs],
    )
    opsets = [make.make_opsetid("", 18)]
    path.write_bytes(make.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_card(net: Extractor) -> None:
    data = BUNDLED.read_bytes()
    card = json.loads(BUNDLED.with_suffix(".json").read_text())
    assert card["sha256"] == net.digest == hashlib.sha256(data).hexdigest()
    assert (card["name"], card["dim"]) == (net.name, net.dim) == ("digits48", 48)
    assert card["size_bytes"] == len(data) < 400_000
    assert card["accuracy"]["heldout"] >= 0.97


def test_no_traces_of_the_machine() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(BUNDLED)
    parts = [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output]
    assert not any(len(part.metadata_props) or part.doc_string for part in parts)
    assert all(word not in BUNDLED.read_bytes() for word in (b"/tmp/", b"/home/", b"/work/", b".py"))


@pytest.mark.usefixtures("digits")
def test_heldout_accuracy() -> None:
    session = onnxruntime.InferenceSession(BUNDLED, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"images": load_images("digits:heldout").pixels})[0]
    assert (logits.argmax(1) == load_images("digits:heldout").labels).mean() >= 0.97


def test_full_rank(features: np.ndarray) -> None:
    assert features.shape == (1797, 48)
    assert features.dtype == np.float32
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T, dtype=np.float64))
    assert eigenvalues[0] > 1e-3 * eigenvalues[-1]
    assert features.std(axis=0).min() > 0.1


def test_distance_grows_with_noise(net: Extractor, digits: np.ndarray, features: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=digits.shape)
    noisy = [np.clip(np.rint(digits + s * noise), 0, 255).astype(np.uint8) for s in (2, 4, 8, 16, 32, 64)]
    distances = [_distance(net.extract(x), features) for x in noisy]
    assert distances[0] > 1e-3  # far above the rounding of eigvals, about 1e-12
    assert all(b > 2 * a for a, b in pairwise(distances))


def test_distance_grows_with_blur(net: Extractor, digits: np.ndarray, features: np.ndarray) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    blurred = [ndimage.gaussian_filter(digits.astype(float), (0, 0, s, s)) for s in (0.3, 0.5, 0.75, 1, 1.5)]
    distances = [_distance(net.extract(np.rint(x).astype(np.uint8)), features) for x in blurred]
    assert distances[0] > 1e-3
    assert all(b > 2 * a for a, b in pairwise(distances))


def test_batches_and_threads_do_not_matter(net: Extractor, digits: np.ndarray, features: np.ndarray) -> None:
    # one image is 48 sums of 256 float32 terms: their order may change, 1e-4 is 100 times that
    two = open_features(None, image_shape=(1, 8, 8), threads=2)
    for other in (replace(net, batch_size=7), replace(net, batch_size=5000), two):
        assert np.allclose(other.extract(digits[:300]), features[:300], rtol=0, atol=1e-4)
    assert net.extract(digits[:0]).shape == (0, 48)


def test_a_network_of_the_user(shared: Path) -> None:
    path = shared / "data" / "features" / "cifar10-res9.onnx"
    net = open_features(str(path), image_shape=(3, 32, 32))
    assert (net.name, net.dim, net.digest[:16]) == ("cifar10-res9", 256, "dec3d434ed8415aa")
    pixels = load_images(shared / "data" / "cifar10-test.zip", limit=40).pixels
    features = net.extract(pixels)
    assert features.shape == (40, 256)
    assert features.std() > 0


def test_any_output_name_where_there_is_one(tmp_path: Path, digits: np.ndarray) -> None:
    net = open_features(_write(tmp_path / "own.v2.onnx"), image_shape=(1, 8, 8))
    assert (net.name, net.dim) == ("own.v2", 64)
    assert np.array_equal(net.extract(digits[:9]), digits[:9].reshape(9, 64))
    two = open_features(_write(tmp_path / "two.onnx", outputs=("a", "features")), image_shape=(1, 8, 8))
    assert two.dim == 64


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "FLOAT"}, r"got: .*x tensor\(float\)"),
        ({"shape": ("n", 3, 8, 8)}, r"got: .*'n', 3, 8, 8"),
        ({"shape": (1, 1, 8, 8)}, "N dynamic"),
        ({"shape": ("n", 64)}, "does not take these images"),
        ({"body": "map"}, r"got: .*float32 \[2, 1, 8, 8\]"),
        ({"outputs": ("a", "b")}, "output named `features`"),
    ],
)
def test_networks_that_break_the_contract(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    path = _write(tmp_path / "net.onnx", **options)
    with pytest.raises(DataError, match=reason):
        open_features(path, image_shape=(1, 8, 8))


def test_files_that_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        open_features(tmp_path / "missing.onnx", image_shape=(1, 8, 8))
    with pytest.raises(DataError, match="cannot be read"):
        open_features(tmp_path, image_shape=(1, 8, 8))
    for content in (b"no onnx", b""):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(DataError, match="cannot load"):
            open_features(tmp_path / "bad.onnx", image_shape=(1, 8, 8))


def test_no_bundled_network_for_other_shapes() -> None:
    for spec in (None, "digits48"):
        with pytest.raises(DataError, match=r"--features net\.onnx"):
            open_features(spec, image_shape=(3, 32, 32))


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    net = open_features(_write(tmp_path / "log.onnx", body="log"), image_shape=(1, 8, 8))
    pixels = np.full((5, 1, 8, 8), 9, np.uint8)
    assert net.extract(pixels) == pytest.approx(np.log(9), abs=1e-6)
    pixels[3, 0, 2, 2] = 0
    with pytest.raises(DataError, match="the first is image 3"):
        net.extract(pixels)


def test_wrong_images(net: Extractor) -> None:
    for pixels in (np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 1, 8, 8), np.float32)):
        with pytest.raises(DataError, match="do not fit"):
            net.extract(pixels)


def test_the_file_is_read_once(tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx")
    opened = open_features(path, image_shape=(1, 8, 8))
    path.unlink()
    assert opened.extract(np.zeros((2, 1, 8, 8), np.uint8)).shape == (2, 64)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError, match=r'pip install "flatq\[cpu\]"'):
        open_features(None, image_shape=(1, 8, 8))
