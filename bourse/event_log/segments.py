"""The files of a spool: how a record is written, and how a file is read back up to its torn end."""

import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INTENT = 1
CHECKPOINT = 2
SETTLE = 3

RECORD_BYTES_MAX = 16 * 1024 * 1024
_READ_BYTES = 512 * 1024

# Length of the rest and its CRC; then kind, lengths of id and key, time in ms, id, key, value.
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<BHHQ")
_MARK = struct.Struct("<QQI")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as read; `end` is the offset in its file where the next one begins."""

    kind: int
    time_ms: int
    id: str
    key: bytes
    value: bytes
    end: int


def encode(kind: int, name: str, key: bytes, value: bytes) -> bytes:
    """Return a record's bytes; raises ValueError when it is too long."""
    id_ = name.encode()
    rest = _HEADER.pack(kind, len(id_), len(key), time.time_ns() // 1_000_000) + id_ + key + value
    if len(rest) > RECORD_BYTES_MAX:
        raise ValueError(f"a spool record of {len(rest)} bytes is too long")
    return _FRAME.pack(len(rest), zlib.crc32(rest)) + rest


def size_of(name: str, key: bytes, value: bytes) -> int:
    return _FRAME.size + _HEADER.size + len(name.encode()) + len(key) + len(value)


def scan(path: Path, offset: int = 0) -> Iterator[Entry]:
    """Read whole records from `offset`; stop at the end, or where a record is torn or damaged."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data, at = b"", 0
        while True:
            entry, used = _decode(data, at, offset)
            if entry is not None:
                at += used
                offset = entry.end
                yield entry
            elif used:  # more bytes are needed for one record
                rest = data[at:]
                more = os.pread(descriptor, max(_READ_BYTES, used), offset + len(rest))
                if not more:
                    return
                data, at = rest + more, 0
            else:
                return
    finally:
        os.close(descriptor)


def is_blank(path: Path, offset: int) -> bool:
    """Whether nothing was ever written from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(_READ_BYTES), b""))


def _decode(data: bytes, at: int, offset: int) -> tuple[Entry | None, int]:
    """Return (entry, its size), or (None, bytes wanted), or (None, 0) for a damaged record."""
    have = len(data) - at
    if have < _FRAME.size:
        return None, _FRAME.size
    length, crc = _FRAME.unpack_from(data, at)
    if not _HEADER.size <= length <= RECORD_BYTES_MAX:
        return None, 0
    size = _FRAME.size + length
    if have < size:
        return None, size
    start = at + _FRAME.size
    if zlib.crc32(memoryview(data)[start : at + size]) != crc:
        return None, 0
    kind, id_length, key_length, time_ms = _HEADER.unpack_from(data, start)
    start += _HEADER.size
    key_at, value_at = start + id_length, start + id_length + key_length
    return (
        Entry(
            kind,
            time_ms,
            data[start:key_at].decode(),
            data[key_at:value_at],
            data[value_at : at + size],
            offset + size,
        ),
        size,
    )


def encode_mark(segment: int, offset: int) -> bytes:
    """Return the bytes of the mark "shipped up to here"."""
    data = _MARK.pack(segment, offset, 0)[:-4]
    return data + struct.pack("<I", zlib.crc32(data))


def decode_mark(data: bytes) -> tuple[int, int] | None:
    """Return (segment, offset), or None when the mark is absent or damaged."""
    if len(data) != _MARK.size:
        return None
    segment, offset, crc = _MARK.unpack(data)
    if zlib.crc32(data[:-4]) != crc:
        return None
    return segment, offset
