"""Checkpoint files: round trip and refusals."""

from __future__ import annotations

import io
import random
import resource
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from damage import damaged

from flatq.checkpoint import (
    Checkpoint,
    check_archive,
    file_digest,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from flatq.errors import CheckpointError, InputError, UsageError
from flatq.train.state import write_state


class _Stranger:
    pass


def _content(tiny: Checkpoint) -> dict[str, Any]:
    assert tiny.source is not None
    content: dict[str, Any] = torch.load(tiny.source, weights_only=True)
    return content


def test_a_checkpoint_reads_as_it_was_written(tiny: Checkpoint, tmp_path: Path) -> None:
    assert tiny.source is not None
    again = load_checkpoint(tiny.source)
    assert (again.model, again.process, again.provenance) == (tiny.model, tiny.process, tiny.provenance)
    assert again.digest == tiny.digest == file_digest(tiny.source)
    assert again.weights.keys() == {"raw"}
    for name, value in tiny.weights["raw"].items():
        assert torch.equal(again.weights["raw"][name], value)
    saved = save_checkpoint(again, tmp_path / "new" / "b.pt")
    assert saved.digest == file_digest(tmp_path / "new" / "b.pt")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.pt"]
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(again.network()(x, t), tiny.network()(x, t))


def test_a_failed_save_leaves_nothing_behind(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        save_checkpoint(tiny, tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "truncated", "text", "object"])
def test_a_file_that_cannot_be_read_is_refused(what: str, tiny: Checkpoint, tmp_path: Path) -> None:
    assert tiny.source is not None
    path = tmp_path / "c.pt"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "truncated":
        content = tiny.source.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif what == "text":
        path.write_text("not a checkpoint")
    elif what == "object":
        torch.save(_content(tiny) | {"provenance": _Stranger()}, path)
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        load_checkpoint(path)


def _saved(content: object, archive: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=archive)
    return stream.getvalue()


# torch leaves a bit out of the headers of an empty tensor
_SMALL = {
    "format": "flatq-checkpoint",
    "weights": {"raw": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}},
    "order": torch.empty(0, dtype=torch.int64),
}


def test_any_damage_to_an_archive_is_found(tmp_path: Path) -> None:
    """Of `ckpt.pt` and `state.pt` alike; torch reads most of these without a word.

    A change outside members and their checksums, such as of a date, is harmless.
    """
    path, good, rng = tmp_path / "c.pt", _saved(_SMALL, archive=True), random.Random(0)
    path.write_bytes(good)
    assert read_tensors(path)["weights"]["raw"]["a"].tolist() == list(range(6))
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 7)]
    refused = 0
    for content in [*flipped, *(damaged(good, rng) for _ in range(150))]:
        path.write_bytes(content)
        try:
            assert read_tensors(path)["weights"]["raw"]["a"].tolist() == list(range(6))
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_damage_to_an_older_file_is_an_error_or_goes_unnoticed(tmp_path: Path) -> None:
    """Files from before torch 1.6 have no checksums; random bytes reach the unpickler in the same way."""
    path, good, rng = tmp_path / "c.pt", _saved(_SMALL, archive=False), random.Random(0)
    path.write_bytes(good)
    assert read_tensors(path)["weights"]["raw"]["a"].tolist() == list(range(6))
    refused = 0
    for attempt in range(300):
        path.write_bytes(damaged(good, rng) if attempt % 3 else b"\x80\2" + rng.randbytes(200))
        try:
            read_tensors(path)
        except CheckpointError:
            refused += 1
    assert refused > 250


def test_archives_of_other_writers(tmp_path: Path) -> None:
    """Without zip64 records and padding, sizes before the data, compressed."""
    path = tmp_path / "c.zip"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in ("a", "b"):
                archive.writestr(zipfile.ZipInfo(name), b"content" * 99, compression)
        with path.open("rb") as stream:
            check_archive(stream)


def test_no_memory_for_a_whole_archive_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        torch.empty(10**15)

    (tmp_path / "c.pt").write_bytes(_saved(_SMALL, archive=True))
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match="out of memory"):
        read_tensors(tmp_path / "c.pt")


def test_a_full_disk_is_named(tiny: Checkpoint, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save_checkpoint(tiny, tmp_path / "c.pt")
        with pytest.raises(CheckpointError, match="File too large"):
            write_state({"weights": tiny.weights["raw"]}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"model": {}},
        {"process": {"schedule": "none"}},
        {"weights": {}},
        {"weights": None},
        {"weights": {"raw": 3}},
        {"weights": {"raw": {"conv_in.weight": 3}}},
        {"provenance": None},
    ],
    ids=str,
)
def test_another_content_is_refused(change: dict[str, Any], tiny: Checkpoint, tmp_path: Path) -> None:
    torch.save(_content(tiny) | change, tmp_path / "c.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "c.pt").network()


def test_a_bare_state_dict_or_tensor_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    for content in (dict(tiny.weights["raw"]), torch.zeros(3), [1, 2]):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(CheckpointError, match="not a flatq checkpoint"):
            load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("how", ["shape", "missing", "extra"])
def test_weights_that_do_not_fit_are_refused(how: str, tiny: Checkpoint) -> None:
    weights = dict(tiny.weights["raw"])
    if how == "shape":
        weights["conv_in.weight"] = weights["conv_in.weight"][:, :2]
    elif how == "missing":
        del weights["conv_in.weight"]
    else:
        weights["conv_in.other"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"do not fit.*\n.*conv_in"):
        Checkpoint(tiny.model, tiny.process, {"raw": weights}).network()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tiny: Checkpoint) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny.weights["raw"].items()}
    weights["conv_in.weight"][0, 0, 0, 0] = value
    with pytest.raises(CheckpointError, match="not finite"):
        Checkpoint(tiny.model, tiny.process, {"raw": weights}).network()


def test_the_weights_asked_for_must_be_there(tiny: Checkpoint) -> None:
    raw = tiny.weights["raw"]
    with pytest.raises(UsageError, match="ema"):
        tiny.choose("ema")
    assert tiny.choose() == "raw"
    held = Checkpoint(tiny.model, tiny.process, {"raw": raw, "swa": raw, "ema": raw})
    assert held.choose() == "ema"
    assert held.choose("swa") == "swa"


def test_a_path_that_cannot_be_written(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tiny, tmp_path / "file" / "ckpt.pt")
