"""Trains the bundled feature network `digits48` and writes its ONNX file and card.

A small convolutional classifier of scikit-learn's 8 x 8 digits; the 48 values before the logits are the
features, kept at unit variance and decorrelated by a penalty (Bardes, Ponce, LeCun 2022, arXiv 2105.04906,
eq. 1 and 3). Using the network lives in `flatq.evaluate.features`.

    python benchmarks/train_digits_features.py [--out FOLDER]

Half a minute on one core. The seed is fixed; another version of torch gives another file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatq.images import load_images

__all__ = ["export", "main", "train"]

NAME = "digits48"
DIM = 48
SEED = 20240
EPOCHS = 80
BATCH = 100
PEAK_RATE = 3e-3
WEIGHT_DECAY = 0.02
SHIFT_PX = 0.6
TURN_RAD = 0.15
VARIANCE_WEIGHT = 0.5
COVARIANCE_WEIGHT = 0.02
OUT = Path(__file__).resolve().parents[1] / "flatq" / "evaluate" / "nets"


def build() -> Any:
    """A torch module, uint8 [N, 1, 8, 8] -> (float32 [N, 48], float32 [N, 10])."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 24, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(24, 32, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(32, 48, 3, padding=1, stride=2),
                nn.SiLU(),
                nn.Conv2d(48, 64, 3, padding=1),
                nn.SiLU(),
                nn.AvgPool2d(2),
                nn.Flatten(),
            )
            self.features = nn.Linear(256, DIM)
            self.head = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 10))

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.features(self.body(images.to(torch.float32) / 127.5 - 1.0))
            return features, self.head(features)

    return Net()


def train(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Any:
    """The trained module of `build`, in eval mode. Fixed seed and number of epochs, nothing is selected."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    net = build()
    x, y = torch.from_numpy(pixels).float(), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x))[: len(x) // BATCH * BATCH].view(-1, BATCH):
            features, logits = net(_augment(x[index]))
            centred = features - features.mean(0)
            covariance = centred.T @ centred / (BATCH - 1)
            variance = covariance.diagonal()
            off = covariance - torch.diag(variance)
            loss = functional.cross_entropy(logits, y[index], label_smoothing=0.05)
            loss = loss + VARIANCE_WEIGHT * (1 - (variance + 1e-4).sqrt()).square().mean()
            loss = loss + COVARIANCE_WEIGHT * off.square().sum() / DIM
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _augment(x: Any) -> Any:
    """float [n, 1, 8, 8] in 0..255, half of the images shifted and turned a little, none made noisy.

    Noise and blur must move the features, so they are no augmentation here.
    """
    import torch
    from torch.nn import functional

    n = len(x)
    on = (torch.rand(n) < 0.5).float()
    angle = on * (torch.rand(n) * 2 - 1) * TURN_RAD
    shift = on[:, None] * (torch.rand(n, 2) * 2 - 1) * (SHIFT_PX / 4)  # the grid spans 2 for 8 px
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(theta, [n, 1, 8, 8], align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return torch.where(on[:, None, None, None] > 0, moved, x)


def export(net: Any) -> bytes:
    """The ONNX file: opset 18, N dynamic, weights inside, without names or paths of the machine."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),),
            str(path),
            dynamo=True,
            opset_version=18,
            external_data=False,
            input_names=["images"],
            output_names=["features", "logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        model = onnx.load(str(path))
    graph = model.graph
    for holder in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]
    graph.name = NAME
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def card(net: Any, data: bytes) -> dict[str, Any]:
    """What the network is, how it was made, and how well it does."""
    import onnx
    import sklearn  # type: ignore[import-untyped]
    import torch

    accuracy, features = {}, {}
    with torch.no_grad():
        for part in ("train", "heldout"):
            out = net(torch.from_numpy(load_images(f"digits:{part}").pixels))
            features[part] = out[0].double().numpy()
            hits = out[1].argmax(1).numpy() == load_images(f"digits:{part}").labels
            accuracy[part] = round(float(hits.mean()), 4)
    eigenvalues = np.linalg.eigvalsh(np.cov(np.concatenate(list(features.values())).T))
    return {
        "format": 1,
        "name": NAME,
        "what": "feature network for Frechet distances on scikit-learn's 8 x 8 digits; its distances have "
        "their own scale and compare only with each other, never with Inception FID",
        "input": "images: uint8 [N, 1, 8, 8], 0..255, scaled inside to x / 127.5 - 1",
        "outputs": {"features": f"float32 [N, {DIM}], linear", "logits": "float32 [N, 10]"},
        "dim": DIM,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "parameters": sum(p.numel() for p in net.parameters()),
        "accuracy": accuracy,
        "covariance": {
            "trace": round(float(eigenvalues.sum()), 3),
            "largest": round(float(eigenvalues[-1]), 4),
            "smallest": round(float(eigenvalues[0]), 4),
        },
        "training": {
            "data": "digits:train, 1500 images; the held-out 297 were not used, but share the writers",
            "data_sha256": load_images("digits:train").digest,
            "loss": f"cross entropy (label smoothing 0.05), {VARIANCE_WEIGHT} x deviation from unit variance "
            f"+ {COVARIANCE_WEIGHT} x squared covariances / {DIM}",
            "optimizer": f"AdamW, one cycle to {PEAK_RATE}, weight decay {WEIGHT_DECAY}",
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "augmentation": f"half of the images: shift to {SHIFT_PX} px, turn to {TURN_RAD} rad",
            "seed": SEED,
        },
        "versions": {
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "command": "python benchmarks/train_digits_features.py",
        "license": "Apache-2.0; the digits are from the UCI repository (Alpaydin, Kaynak 1998), CC BY 4.0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train digits48 and write its ONNX file and card.")
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    net = train(load_images("digits:train").pixels, load_images("digits:train").labels)
    data = export(net)
    facts = card(net, data)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    for suffix, content in ((".onnx", data), (".json", text.encode())):
        temporary = out / f".{NAME}{suffix}.{os.getpid()}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, out / f"{NAME}{suffix}")  # noqa: PTH105 (the house rule names os.replace)
    print(text, end="")


if __name__ == "__main__":
    main()
