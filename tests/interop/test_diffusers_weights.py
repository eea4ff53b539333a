"""Weights of a diffusers folder: their forms, and files that do not hold what they should."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_models import WEIGHTS, edit_json, make_unet, outputs, run_import
from safetensors.torch import load_file, save_file

from flatq.errors import CheckpointError


class _Stranger:
    pass


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_every_form(variant: str | None, ending: str, sharded: bool, tmp_path: Path) -> None:
    unet = make_unet()
    if variant == "fp16":
        unet.half()
    options = {"max_shard_size": "20KB"} if sharded else {}
    unet.save_pretrained(tmp_path, variant=variant, safe_serialization=ending == "safetensors", **options)
    assert len(list(tmp_path.glob(f"*.{ending}"))) > (3 if sharded else 0)
    checkpoint, notes = run_import(tmp_path)
    assert any("float16" in line for line in notes) == (variant == "fp16")
    for name, value in unet.state_dict().items():
        assert checkpoint.weights["raw"][name].dtype == torch.float32
        assert torch.equal(checkpoint.weights["raw"][name], value.float())
    assert torch.equal(outputs(checkpoint.network()), outputs(unet.float()))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_attention_under_its_old_names(ending: str, unet_folder: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(unet_folder / WEIGHTS)
    for new, old in names.items():
        for name in [n for n in weights if f".{new}." in n]:
            weights[name.replace(f".{new}.", f".{old}.")] = weights.pop(name)
    assert sum(".proj_attn." in name for name in weights) == 8  # 4 attentions: 1 down, 1 middle, 2 up
    (unet_folder / WEIGHTS).unlink()
    if ending == "safetensors":
        save_file(weights, unet_folder / WEIGHTS)
    else:
        torch.save(weights, unet_folder / "diffusion_pytorch_model.bin")
    checkpoint, _ = run_import(unet_folder)
    assert torch.equal(outputs(checkpoint.network()), outputs(make_unet()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("mid_block.attentions.0.to_q.weight"),
            r"mid_block\.attentions\.0\.to_q\.weight absent",
        ),
        (lambda w: w.update({"conv_in.other": torch.zeros(1)}), r"conv_in\.other \[1\]"),
        (lambda w: w.update({"conv_in.weight": torch.zeros(8, 4, 3, 3)}), r"conv_in\.weight"),
        (lambda w: w["conv_in.weight"].fill_(torch.nan), "not finite"),
    ],
    ids=["missing", "left over", "shape", "nan"],
)
@pytest.mark.parametrize("place", ["unet", "ema"])
def test_weights_that_do_not_fit(
    place: str, change: Any, message: str, unet_folder: Path, tmp_path: Path
) -> None:
    make_unet(1).save_pretrained(tmp_path / "ema")
    _change_weights(unet_folder if place == "unet" else tmp_path / "ema", change)
    with pytest.raises(CheckpointError, match=message):
        run_import(unet_folder, ema=tmp_path / "ema")


def _sharded(folder: Path) -> tuple[Path, Path]:
    """The index and the first shard."""
    make_unet().save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    return folder / f"{WEIGHTS}.index.json", min(folder.glob("*-of-*.safetensors"))


def test_an_index_that_promises_what_its_shards_do_not_hold(unet_folder: Path) -> None:
    _, shard = _sharded(unet_folder)
    weights = load_file(shard)
    weights.pop(min(weights))
    save_file(weights | {"new": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=r"missing: conv_in.*left over: new"):
        run_import(unet_folder)


@pytest.mark.parametrize("how", ["gone", "elsewhere", "empty"])
def test_shards_that_are_not_beside_their_index(how: str, unet_folder: Path, tmp_path: Path) -> None:
    index, shard = _sharded(unet_folder)
    if how == "gone":
        shard.unlink()
    elif how == "elsewhere":
        shard.rename(tmp_path / shard.name)
        edit_json(
            index,
            lambda c: c["weight_map"].update(
                {k: f"../{v}" for k, v in c["weight_map"].items() if v == shard.name}
            ),
        )
    else:
        edit_json(index, lambda c: c.pop("weight_map"))
    with pytest.raises(CheckpointError, match="not beside it"):
        run_import(unet_folder)


@pytest.mark.parametrize("what", ["none", "pickle", "object", "list", "value", "truncated", "text"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_files_that_hold_no_weights(what: str, ending: str, unet_folder: Path) -> None:
    good = load_file(unet_folder / WEIGHTS)
    path = unet_folder / f"diffusion_pytorch_model.{ending}"
    (unet_folder / WEIGHTS).unlink()
    if what == "pickle":
        path.write_bytes(pickle.dumps({"conv_in.weight": _Stranger()}))
    elif what == "object":
        torch.save({**good, "a": _Stranger()}, path)
    elif what == "list":
        torch.save([1], path)
    elif what == "value":
        torch.save({**good, "step": 3}, path)
    elif what == "truncated":
        if ending == "bin":
            torch.save(good, path)
        else:
            save_file(good, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="model"):
        run_import(unet_folder)
