"""What an ONNX file says of itself, read without the package onnx: versions, and the files it points to.

Field numbers are those of onnx.proto. Nothing here interprets the graph.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatq.errors import ArtifactError

__all__ = ["OnnxFile", "read_onnx_file"]

# message -> {field number: message}, as far as a tensor can hide in it.
_NESTED = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


@dataclass(frozen=True)
class OnnxFile:
    """Attributes:
    ir_version: of the file format.
    opset: of the standard operators; 0 where the file names none.
    external: what its tensors name as the place of their data, in the file's own words.
    """

    ir_version: int
    opset: int
    external: tuple[str, ...]


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the versions, and refuse data outside the model's own folder.

    Raises:
        ArtifactError: not an ONNX file, or external data that is missing, a link or not in the folder.
    """
    try:
        with path.open("rb") as file:
            # Not closed by hand: views into it live on in a traceback. It goes with the last of them.
            found = _scan(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError, IndexError) as error:
        raise ArtifactError(
            f"{path} is not an ONNX file",
            expected="a whole protobuf message",
            got=str(error) or "an empty file",
            next_step="export again, or copy the whole folder",
        ) from error
    for location in found.external:
        data = path.parent / location
        inside = Path(location).name == location and not data.is_symlink()
        if not inside or not data.is_file():
            raise ArtifactError(
                f"{path} keeps data in another file that cannot be taken",
                expected="a file inside the model's own folder",
                got=f"{location}: " + ("no such file" if inside else "outside the folder, or a link"),
                next_step="copy the whole folder, or export again",
            )
    return found


def _scan(view: memoryview) -> OnnxFile:
    ir_version = opset = 0
    external: dict[str, None] = {}
    stack: list[tuple[str, memoryview]] = [("model", view)]
    while stack:
        message, content = stack.pop()
        domain, version = b"", 0
        key, value = b"", b""
        for number, field in _fields(content):
            if isinstance(field, int):
                ir_version = field if (message, number) == ("model", 1) else ir_version
                version = field if (message, number) == ("opset", 2) else version
            elif number in _NESTED.get(message, {}):
                stack.append((_NESTED[message][number], field))
            elif message == "opset" and number == 1:
                domain = bytes(field)
            elif message == "entry":
                key, value = (bytes(field), value) if number == 1 else (key, bytes(field))
        if message == "opset" and domain in (b"", b"ai.onnx"):
            opset = max(opset, version)
        if message == "entry" and key == b"location":
            external[value.decode("utf-8")] = None
    if not ir_version:
        raise ValueError("no IR version")
    return OnnxFile(ir_version, opset, tuple(external))


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, number or bytes) of one message, without its nested ones."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(content, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(content, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(content):
            raise ValueError("the file ends within a field")
        if wire == 2:
            yield number, content[position : position + size]
        position += size


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without an end at byte {position}")
