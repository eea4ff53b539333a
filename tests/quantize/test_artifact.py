"""The artifact's files: packed codes, round trip, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flatq.checkpoint import Checkpoint
from flatq.errors import ArtifactError, UsageError
from flatq.quantize.artifact import Artifact, pack, read_artifact, read_manifest, unpack, write_artifact


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 5), (3, 1, 3, 3), (4, 2, 3, 3), (0,)])
@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_and_unpack_are_inverse(shape: tuple[int, ...], bits: int) -> None:
    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(sum(shape))
    codes = torch.randint(-half, half, shape, generator=generator, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.numel() * packed.element_size() == -(-codes.numel() * bits // 8)
    back = unpack(packed, bits, shape)
    assert back.dtype == torch.int8
    assert torch.equal(back, codes)


def test_every_int4_code_survives_and_the_first_stands_in_the_low_half() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8)
    assert torch.equal(unpack(pack(codes, 4), 4, (16,)), codes)
    assert pack(torch.tensor([1, -1], dtype=torch.int8), 4).tolist() == [0xF1]


def test_codes_of_three_bits_lie_one_behind_the_other() -> None:
    packed = pack(torch.tensor([1, -1, -4], dtype=torch.int8), 3)
    assert packed.tolist() == [0b00_111_001, 0b1]  # -4 is 100, its lower two bits end the first byte


def _scales(artifact: Artifact) -> dict[str, torch.Tensor]:
    return {name: grid.scale for name, grid in artifact.grids.items()}


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_an_artifact_reads_as_it_was_written(
    name: str, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = tiny_artifacts[name]
    manifest = write_artifact(artifact, tmp_path / "a")
    again = read_artifact(tmp_path / "a")
    assert again.manifest == manifest == read_manifest(tmp_path / "a")
    for one, other in (
        (artifact.integers, again.integers),
        (_scales(artifact), _scales(again)),
        (artifact.rest, again.rest),
        (artifact.ranges, again.ranges),
    ):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            assert torch.equal(one[key], other[key]), key
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_codes_and_rest_are_every_parameter_once(
    tiny: Checkpoint, tiny_artifacts: dict[str, Artifact]
) -> None:
    artifact = tiny_artifacts["w8a8"]
    names = [*artifact.rest, *(f"{name}.weight" for name in artifact.integers)]
    assert sorted(names) == sorted(tiny.network().state_dict())


def test_int4_codes_take_half_a_byte(tiny_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = tiny_artifacts["w4a8"]
    write_artifact(artifact, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "weights.safetensors")
    assert len(artifact.integers) > 20
    for name, codes in artifact.integers.items():
        packed = stored[f"{name}.weight.integers"]
        if name in ("unet.conv_in", "unet.conv_out"):
            assert packed.dtype == torch.int8
            assert packed.shape == codes.shape
            continue
        assert packed.dtype == torch.uint8
        assert packed.numel() == (codes.numel() + 1) // 2


@pytest.mark.parametrize("file", ["weights.safetensors", "ranges.safetensors"])
@pytest.mark.parametrize("how", ["changed", "truncated", "removed"])
def test_a_changed_file_is_refused(
    file: str, how: str, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    path = tmp_path / "a" / file
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if how == "changed" else content[:-5])
    with pytest.raises(ArtifactError, match=file):
        read_artifact(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "flatq-deployment"}', "\xff"])
def test_a_damaged_manifest_is_refused(
    content: str, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    (tmp_path / "a" / "flatq.json").write_text(content, encoding="latin-1")
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "a")


def test_a_folder_that_is_not_empty_is_left_alone(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="already exists"):
        write_artifact(tiny_artifacts["w8a8"], tmp_path / "a")
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    write_artifact(tiny_artifacts["w8a8"], tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]
