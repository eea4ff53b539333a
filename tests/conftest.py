"""Fixtures that the tests of several packages use."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from flatq.runtime.cpu import saturation_note

if TYPE_CHECKING:
    from flatq.checkpoint import Checkpoint
    from flatq.quantize.artifact import Artifact

BuiltOnce = Callable[[str, Callable[[], Any]], Any]
TinyExport = Callable[[str, str], Path]

_KEPT: list[object] = []  # a torch.library.Library takes its operators along when it is deleted
SHARED = Path(__file__).resolve().parents[2] / "shared"
# Tests whose 8-bit layers on OpenVINO are to compute what the torch graph does.
EXACT_ON_OPENVINO = (
    "tests/verify/",
    "tests/export/test_equal_layers.py::test_every_target_keeps_and_runs_them[openvino]",
    "tests/export/test_openvino.py::test_layers_whose_bias_is_zero_compute_what_torch_does_and_are_found",
    "tests/export/test_openvino.py::test_the_export_computes_what_the_lowered_graph_does[w8a8]",
    "tests/quantize/test_degenerate.py::test_degenerate_layers_give_numbers_in_integers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On x86 CPUs without VNNI OpenVINO's sums of products with 8-bit weights saturate, so that its layers do
    differ there: parity is right to fail, and these tests say nothing."""
    problem = saturation_note()
    for item in items:
        if problem is not None and item.nodeid.startswith(EXACT_ON_OPENVINO) and "openvino" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=problem))


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


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the whole run, so that no test writes into the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLATQ_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all pytest-xdist workers have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def built_once(common_folder: Path) -> BuiltOnce:
    """`built_once(name, build)`: what `build()` returns, pickled by the first pytest-xdist worker that asks
    for it, so that the others only read it."""
    from filelock import FileLock

    def get(name: str, build: Callable[[], Any]) -> Any:
        path = common_folder / f"{name}.pickle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(pickle.dumps(build()))
        return pickle.loads(path.read_bytes())

    return get


@pytest.fixture(scope="session")
def torch_fidelity() -> ModuleType:
    """torch-fidelity, also where the torchvision beside it was built for another torch; else a skip.

    `make test` installs both into a folder of their own, because a torchvision that does not fit breaks
    diffusers: its import asks for two operators that its compiled part would have defined. Defining them
    here (without a body) lets it be imported; Inception uses neither.
    """
    torch = pytest.importorskip("torch")
    side = Path(sys.prefix) / "side"
    # For the imports alone: processes that a test spawns later inherit the path, and not the two operators.
    with pytest.MonkeyPatch.context() as patch:
        if side.is_dir():
            patch.setattr(sys, "path", [*sys.path, str(side)])
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            pytest.skip(f"no torchvision: {error}")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)
            importlib.import_module("torchvision")
        return pytest.importorskip("torch_fidelity", reason="no torch-fidelity")


@pytest.fixture(scope="session")
def inception_weights(torch_fidelity: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict for torch-fidelity's Inception network: random, of a scale that keeps features apart."""
    import torch

    class Bare(torch_fidelity.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, _: object) -> None:
            pass

    empty = tmp_path_factory.mktemp("inception") / "empty.pth"
    torch.save({}, empty)
    with torch.device("meta"):
        shapes = Bare("bare", ["2048"], feature_extractor_weights_path=empty).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, like in shapes.items():
        if name.endswith(("conv.weight", "fc.weight")):
            drawn = torch.randn(like.shape, generator=generator)
            state[name] = drawn * (2 / like[0].numel()) ** 0.5  # He et al. 2015
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.ones(like.shape)
        else:
            state[name] = torch.zeros(like.shape, dtype=like.dtype)
    torch.save(state, empty.with_name("weights.pth"))
    return empty.with_name("weights.pth")


@pytest.fixture(scope="session")
def feature_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four features: the pixels of 3 x 16 x 16 images against fixed random directions."""
    import numpy as np
    import onnx.parser

    weights = np.random.default_rng(1).standard_normal((3 * 16 * 16, 4)).astype(np.float32)
    graph = onnx.parser.parse_graph(
        """net (uint8[N, 3, 16, 16] images) => (float[N, 4] features) {
            x = Cast <to = 1> (images)
            flat = Flatten (x)
            features = MatMul (flat, weights)
        }"""
    )
    graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    path = tmp_path_factory.mktemp("features") / "directions.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def _tiny(folder: Path, **fields: Any) -> Checkpoint:
    from networks import random_weights

    from flatq.checkpoint import Checkpoint, save_checkpoint
    from flatq.network_config import ModelConfig
    from flatq.process import ProcessConfig

    config = ModelConfig(
        image_size=16,
        image_channels=3,
        out_channels=3,
        unet={
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            "attn_norm_num_groups": 8,
        },
        **fields,
    )
    weights = random_weights(config)
    checkpoint = Checkpoint(config, ProcessConfig(schedule="cosine"), {"raw": weights}, {"method": "none"})
    return save_checkpoint(checkpoint, folder / "tiny.pt")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A saved checkpoint of a small UNet with attention, random weights, 16 x 16 RGB."""
    return _tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """As `tiny`, for 5 classes and the null label 5."""
    return _tiny(tmp_path_factory.mktemp("labelled"), num_classes=6, null_label=5)


@pytest.fixture(scope="session")
def tiny_artifacts(tiny: Checkpoint, built_once: BuiltOnce) -> dict[str, Artifact]:
    """`tiny` quantized by the presets w8a8, w4a8 and w4a4."""
    from flatq.calib.inputs import CalibrationPlan
    from flatq.quantize.rounding import quantize_checkpoint
    from flatq.recipe import PRESETS

    calibration = CalibrationPlan(images=2, steps=2)

    def artifact(name: str) -> Artifact:
        return quantize_checkpoint(tiny, PRESETS[name], calibration=calibration, threads=1)

    return {name: built_once(f"tiny-{name}", partial(artifact, name)) for name in ("w8a8", "w4a8", "w4a4")}


@pytest.fixture(scope="session")
def tiny_export(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact], built_once: BuiltOnce, common_folder: Path
) -> TinyExport:
    """`tiny_export("w4a8", "onnxruntime")`: the deployment folder of `tiny` for a target, in that of its
    artifact; "fp32" and "fp16" are float exports. Each is made once for all tests, which do not change it."""
    from flatq.export.deploy import export_artifact, export_checkpoint
    from flatq.quantize.artifact import write_artifact

    def build(name: str, target: Any) -> Path:
        folder = common_folder / "exports" / name
        if name in tiny_artifacts:
            built_once(f"artifact-{name}", lambda: write_artifact(tiny_artifacts[name], folder))
            export_artifact(folder, target, folder / target)
        else:
            export_checkpoint(tiny, target, folder / target, float_precision=name)
        return folder / target

    return lambda name, target: built_once(f"export-{name}-{target}", partial(build, name, target))
