"""Where the picture of an item lies: in a file of its own, below a folder or beside a table, or inside a shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.images import DecodeLimits
from edgeclip.runtime.index.types import Hit, Item


def file_of(item: Hit | Item) -> Path | None:
    """The file that an item's picture is; None where its record names none, or one inside another file.

    A record's path is one below its "source" where that is a folder, beside it where that is a table, and as it stands without one.
    An item without a path may have it as its key.
    """
    record = item.record
    path, source = record.get("path"), record.get("source")
    if _in_shard(record):
        return None
    if not isinstance(path, str):
        return Path(item.key) if not is_text(item) and os.path.isfile(item.key) else None  # noqa: PTH113  (a key is any text)
    if not isinstance(source, str):
        return Path(path)
    # a folder may be gone by now: a table has a suffix
    folder = Path(source) if os.path.isdir(source) or not Path(source).suffix else Path(source).parent  # noqa: PTH112
    return folder / path


def read_picture(item: Hit | Item) -> Path | bytes | None:
    """The picture of an item for `decode`: its file, or its bytes out of a shard; None: it has none.

    Raises:
        InputError: it is gone, or the shard holds something else by now.
    """
    if _in_shard(item.record):
        return _from_shard(item.record)
    file = file_of(item)
    if file is not None and not os.path.exists(file):  # noqa: PTH110  (no name is too long for it)
        inside = item.record.get("sha256") and item.record.get("source")
        raise InputError(
            f"The picture lies inside {Path(str(inside)).name}." if inside else "The picture is gone."
        )
    return file


def _in_shard(record: Mapping[str, Any]) -> bool:
    """Whether it tells bytes of another file; "offset" alone may be anybody's own field."""
    facts = [(name, type(record.get(name))) for name in ("source", "offset", "size", "sha256")]
    return facts == [("source", str), ("offset", int), ("size", int), ("sha256", str)]


def is_text(item: Hit | Item) -> bool:
    """Whether it is a caption by itself, and no picture."""
    return "path" not in item.record and bool(item.record.get("caption"))


def _from_shard(record: Mapping[str, Any]) -> bytes:
    source, offset, size = record["source"], record["offset"], record["size"]
    if not (offset >= 0 and 0 <= size <= DecodeLimits().max_bytes):
        raise InputError(f"The picture cannot be {size} bytes at {offset} of {source}.")
    try:
        with Path(source).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except (OSError, ValueError) as error:
        raise InputError("The picture is gone, with the shard that it lay in.") from error
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise InputError("The shard of this picture has changed.")
    return data
