"""The log: what was added and removed since the last segment, as records that hold a whole change each.

A record is a magic number, the payload's length, a CRC-32 over length and payload, and the payload: the length of a JSON head, the
head {ids, items, removes} and the vectors as raw float32. A record is synced before the next one begins. So one that cannot be read
was never acknowledged if it is the last, and is damage if a whole one lies behind it. A writer that closes adds an empty one: then
damage to the last change is seen too.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.manifest import DAMAGED
from edgeclip.runtime.index.types import Item

MAGIC = b"\xabECrec\r\n"  # not valid UTF-8, so that no JSON holds it
_RECORD = struct.Struct("<8sQI")  # magic, bytes of the payload, CRC-32
HEAD_BYTES = _RECORD.size
_HEAD = struct.Struct("<I")  # bytes of the JSON head
_FILE = struct.Struct("<8sQI")  # magic, generation, width of a vector; then CRC-32 of these
_FILE_MAGIC = b"\xabEClog\x01\n"


@dataclass(frozen=True, eq=False)
class Batch:
    """One change: it is there whole or not at all."""

    ids: NDArray[np.int64]  # (N,) ascending
    vectors: NDArray[np.float32]  # (N, D)
    items: list[Item]  # N
    removes: NDArray[np.int64]  # ids that are gone from now on, also those that are replaced

    @property
    def empty(self) -> bool:
        """Whether it changes nothing: the seal of a writer that has closed."""
        return not len(self.ids) and not len(self.removes)


@dataclass(frozen=True)
class Position:
    """How far a log was read."""

    end: int  # behind the last whole record
    last: int  # where that record begins
    mark: bytes  # its first bytes: other ones there mean that it was cut off and written anew


def beginning(generation: int, dim: int) -> Position:
    """Of the log that a generation began: its `mark` is what the file begins with."""
    head = _FILE.pack(_FILE_MAGIC, generation, dim)
    mark = head + zlib.crc32(head).to_bytes(4, "little")
    return Position(len(mark), 0, mark)


def encode(batch: Batch) -> bytes:
    """One record, whose payload `decode` reads."""
    head: dict[str, Any] = {
        "ids": batch.ids.tolist(),
        "items": [[item.key, item.record] for item in batch.items],
        "removes": batch.removes.tolist(),
    }
    text = json.dumps(head, allow_nan=False).encode()
    payload = b"".join([_HEAD.pack(len(text)), text, np.ascontiguousarray(batch.vectors, "<f4").tobytes()])
    return _RECORD.pack(MAGIC, len(payload), _crc(payload)) + payload


def read(path: Path, start: Position, dim: int) -> tuple[list[Batch], Position] | None:
    """The whole records of a log.

    Args:
        path: the file.
        start: read on from here.
        dim: width D of its vectors.
    Returns:
        the records and how far they go; None: what stood before `start` is not there any more.
    Raises:
        InputError: damage before the last record.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        stream.seek(start.last)
        data = memoryview(stream.read())
    if data[: len(start.mark)] != start.mark:
        return None
    batches, position, offset = [], start, start.end - start.last
    while (payload := _payload(data, offset)) is not None:
        batches.append(decode(payload, dim, f"{path}: the record at byte {start.last + offset}"))
        end = offset + HEAD_BYTES + len(payload)
        mark = bytes(data[offset : offset + HEAD_BYTES])
        position, offset = Position(start.last + end, start.last + offset, mark), end
    if any(_payload(data, behind) is not None for behind in _find(data, offset + 1)):
        raise InputError(
            f"{path}: the record at byte {position.end} is damaged, and whole ones follow. {DAMAGED}"
        )
    return batches, position


def _payload(data: memoryview, offset: int) -> memoryview | None:
    """Of the record at `offset`, if it is whole."""
    if len(data) < offset + HEAD_BYTES:
        return None
    magic, length, crc = _RECORD.unpack_from(data, offset)
    payload = data[offset + HEAD_BYTES :][:length]
    return payload if magic == MAGIC and len(payload) == length and _crc(payload) == crc else None


def _find(data: memoryview, start: int) -> Iterator[int]:
    rest = bytes(data[start:])
    found = rest.find(MAGIC)
    while found >= 0:
        yield start + found
        found = rest.find(MAGIC, found + 1)


def decode(payload: memoryview, dim: int, where: str) -> Batch:
    """What `encode` was given. Raises InputError for a payload that is none."""
    try:
        (length,) = _HEAD.unpack_from(payload)
        head = json.loads(bytes(payload[_HEAD.size :][:length]))
        ids, removes = (np.array(head[name], np.int64) for name in ("ids", "removes"))
        items = [Item(key, record) for key, record in head["items"]]
        vectors = np.frombuffer(payload, "<f4", offset=_HEAD.size + length).reshape(len(items), dim)
        good = len(ids) == len(items) and bool((np.diff(ids) > 0).all())
    except (struct.error, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where} is none of this index ({error}). {DAMAGED}") from error
    if not good:
        raise InputError(f"{where} is none of this index: its ids do not fit its items. {DAMAGED}")
    return Batch(ids, vectors.astype(np.float32, copy=False), items, removes)


def _crc(payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(8, "little")))
