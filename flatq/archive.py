"""Checks that the zip archive of a `.pt` file is whole, which torch does not when it reads one.

Format: PKWARE APPNOTE 6.3, as `torch.save` uses it: members one after the other without gaps, their headers
padded by an extra field "FB" so that the data are aligned.
"""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

__all__ = ["check_archive", "is_archive"]

_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_CHUNK = 1 << 20
_ZIP64 = 1
_PADDING = int.from_bytes(b"FB", "little")


def is_archive(stream: BinaryIO) -> bool:
    """Whether torch takes these bytes for a zip archive; older checkpoints are a bare pickle instead."""
    stream.seek(0)
    return stream.read(4) == b"PK\3\4"


def check_archive(stream: BinaryIO) -> None:
    """Check the CRC-32 of every member, and that all other bytes are as a writer leaves them.

    Reads in chunks of 1 MiB. In files under 4 GiB a change of any single byte is found.

    Raises:
        zipfile.BadZipFile: damaged; says where. Headers without sense raise other exceptions: ValueError,
            NotImplementedError, struct.error and the like.
    """
    with zipfile.ZipFile(stream) as archive:
        members, start = archive.infolist(), archive.start_dir
        end = 0
        for info in sorted(members, key=lambda info: info.header_offset):
            if info.header_offset != end:
                raise zipfile.BadZipFile(f"bytes before {info.filename} that belong to no member")
            with archive.open(info) as member:  # reading to its end raises where the CRC differs
                while member.read(_CHUNK):
                    pass
            end = _check_headers(stream, info)
    if end != start or len({_of_the_writer(info) for info in members}) != 1:
        raise zipfile.BadZipFile("damaged table of members")
    table = b"".join(map(_entry, members))
    stream.seek(start)
    if stream.read(len(table)) != table:
        raise zipfile.BadZipFile("damaged table of members")
    if stream.read(_CHUNK) not in _ends(len(members), len(table), start):
        raise zipfile.BadZipFile("damaged end of the archive")


def _check_headers(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The offset after the member, whose headers before and after the data have to agree with the table."""
    stream.seek(info.header_offset)
    *fixed, crc, packed, size, name_length, extra_length = _LOCAL.unpack(stream.read(_LOCAL.size))
    name, extra = stream.read(name_length), stream.read(extra_length)
    end = stream.tell() + info.compress_size
    sums = (info.CRC, min(info.compress_size, _MAX_32), min(info.file_size, _MAX_32))
    after = bool(info.flag_bits & 8)  # CRC and sizes stand after the data
    wanted = [b"PK\3\4", info.extract_version, info.flag_bits, info.compress_type, *_time(info)]
    if fixed != wanted or name != _name(info) or (crc, packed, size) != ((0, 0, 0) if after else sums):
        raise zipfile.BadZipFile(f"damaged header of {info.filename}")
    while extra:
        kind, length = struct.unpack("<2H", extra[:4])
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind not in (_PADDING, _ZIP64) or (kind == _PADDING and content != b"Z" * length):
            raise zipfile.BadZipFile(f"damaged padding of {info.filename}")
    if not after:
        return end
    stream.seek(end)
    found = stream.read(24)
    long = struct.pack("<4sIQQ", b"PK\7\10", info.CRC, info.compress_size, info.file_size)
    for footer in (long, struct.pack("<4s3I", b"PK\7\10", *sums)):
        if found.startswith(footer):
            return end + len(footer)
    raise zipfile.BadZipFile(f"damaged footer of {info.filename}")


def _time(info: zipfile.ZipInfo) -> tuple[int, int]:
    year, month, day, hour, minute, second = info.date_time
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def _name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _of_the_writer(info: zipfile.ZipInfo) -> tuple[int, ...]:
    """What the table says of a member without another place to compare it with; one writer, one value.

    Bit 3 of the flags (CRC after the data) is left out: torch does not set it for an empty tensor, and the
    member's own header has it too.
    """
    flags = info.flag_bits | 8
    made = (info.create_version, info.create_system, info.extract_version, info.reserved, flags)
    return *made, info.volume, info.internal_attr, info.external_attr


def _entry(info: zipfile.ZipInfo) -> bytes:
    """The member's entry in the table."""
    name = _name(info)
    return (
        struct.pack(
            "<4s4B4H3I5H2I",
            b"PK\1\2",
            *(info.create_version, info.create_system, info.extract_version, info.reserved),
            *(info.flag_bits, info.compress_type, *_time(info), info.CRC),
            *(min(info.compress_size, _MAX_32), min(info.file_size, _MAX_32)),
            *(len(name), len(info.extra), len(info.comment), info.volume),
            *(info.internal_attr, info.external_attr, min(info.header_offset, _MAX_32)),
        )
        + name
        + info.extra
        + info.comment
    )


def _ends(count: int, size: int, start: int) -> tuple[bytes, bytes]:
    """What follows a table of `count` entries, `size` bytes from `start`: without zip64 records, and with."""
    few = min(count, _MAX_16)
    short = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, min(size, _MAX_32), min(start, _MAX_32), 0)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, size, start)
    return short, record + struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1) + short
