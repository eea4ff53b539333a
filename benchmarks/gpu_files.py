"""What tools/gpu_run.sh found, as few small files, and the way back from its weights to checkpoints.

    python benchmarks/gpu_files.py deliver RESULTS OUT
    python benchmarks/gpu_files.py join FILE... -o sam.pt

`deliver` copies results.json (every part's JSON and the end of the log), samples.png, and weights in half
precision that were not delivered before, as far as the limits leave room. `join` makes a flatq checkpoint of
the weights files of one run: raw, ema or both, each with all its pieces.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["deliver", "join", "main"]

MOST_FILES = 8
FILE_BYTES = 16 * 2**20
ALL_BYTES = 64 * 2**20

_RUNS = ("sam", "adm", "adm-twice")
_VARIANTS = ("raw", "ema")
_LOG_LINES = 300


def deliver(results: Path, out: Path) -> None:
    """Copies results into `out`, beside what this call has already put there; see the module's text."""
    out.mkdir(parents=True, exist_ok=True)
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))}
    log = results / "log.txt"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    summary = out / "results.json"
    summary.write_text(json.dumps({**found, "log": lines[-_LOG_LINES:]}, indent=1) + "\n", "utf-8")
    if (results / "samples.png").exists():
        shutil.copyfile(results / "samples.png", out / "samples.png")
    for piece in [p for run in _RUNS if run in found for p in _pieces(results, run)]:
        mark = piece.with_suffix(".delivered")
        there = [path for path in out.iterdir() if path.name != piece.name]
        size = sum(path.stat().st_size for path in there) + piece.stat().st_size
        # one place and one MiB stay free for samples.png, which may come later
        kept = 0 if (out / "samples.png").exists() else 1
        if mark.exists() or len(there) + 1 + kept > MOST_FILES or size + kept * 2**20 > ALL_BYTES:
            continue
        shutil.copyfile(piece, out / piece.name)
        mark.touch()
    names = sorted(path.name for path in (results / "weights").glob("*.safetensors"))
    left = [name for name in names if not (results / "weights" / name).with_suffix(".delivered").exists()]
    if left:
        print(f"not delivered yet, call again for them: {', '.join(left)}")


def _pieces(results: Path, run: str) -> list[Path]:
    """The weights files of a run in half precision, written where they are missing."""
    from flatq.checkpoint import load_checkpoint

    folder = results / "weights"
    written = sorted(folder.glob(f"{run}.*.safetensors"))
    if written:
        return written
    import torch
    from safetensors.torch import save_file

    checkpoint = load_checkpoint(results / run / "ckpt.pt")
    folder.mkdir(exist_ok=True)
    pieces = []
    for variant in _VARIANTS:
        halves = {name: value.to(torch.float16) for name, value in checkpoint.weights[variant].items()}
        groups: list[dict[str, torch.Tensor]] = [{}]
        taken = 0
        for name, value in halves.items():
            if taken + value.nbytes > 0.9 * FILE_BYTES:  # the rest is for the file's header
                groups.append({})
                taken = 0
            groups[-1][name] = value
            taken += value.nbytes
        for i, group in enumerate(groups):
            about = {
                "model": checkpoint.model.model_dump(mode="json"),
                "process": checkpoint.process.model_dump(mode="json"),
                "provenance": dict(checkpoint.provenance),
                "variant": variant,
                "piece": i,
                "pieces": len(groups),
            }
            path = folder / f"{run}.{variant}.{i + 1}of{len(groups)}.safetensors"
            save_file(group, path, metadata={"flatq": json.dumps(about)})
            assert path.stat().st_size <= FILE_BYTES, f"{path.name} is too large; use a smaller network"
            pieces.append(path)
    return pieces


def join(files: Sequence[Path], out: Path) -> None:
    """Writes the checkpoint that `deliver` took apart; its weights went through float16.

    Raises:
        SystemExit: a piece is missing, or the files are of different runs.
    """
    from safetensors import safe_open

    from flatq.checkpoint import Checkpoint, save_checkpoint
    from flatq.network_config import ModelConfig
    from flatq.process import ProcessConfig

    abouts: list[dict[str, Any]] = []
    weights: dict[str, dict[str, Any]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["flatq"])
            tensors = weights.setdefault(about["variant"], {})
            tensors.update({name: opened.get_tensor(name).float() for name in opened.keys()})  # noqa: SIM118
        abouts.append(about)
    first = abouts[0]
    if any(about[key] != first[key] for about in abouts for key in ("model", "process", "provenance")):
        raise SystemExit("the files are of different runs; name those of one")
    for variant in weights:
        found = sorted(about["piece"] for about in abouts if about["variant"] == variant)
        if found != list(range(first["pieces"])):
            raise SystemExit(f"pieces of {variant}: expected {first['pieces']}, got {len(found)}")
    provenance = {**first["provenance"], "stored_as": "float16"}
    model, process = (
        ModelConfig.model_validate(first["model"]),
        ProcessConfig.model_validate(first["process"]),
    )
    save_checkpoint(Checkpoint(model, process, weights, provenance), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    delivering = commands.add_parser("deliver")
    delivering.add_argument("results", type=Path)
    delivering.add_argument("out", type=Path)
    joining = commands.add_parser("join")
    joining.add_argument("files", type=Path, nargs="+")
    joining.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "deliver":
        deliver(options.results, options.out)
    else:
        join(options.files, options.out)


if __name__ == "__main__":
    main()
