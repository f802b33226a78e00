"""One thing to be indexed, and the facts that tell whether it has changed."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError

IMAGE_COLUMNS = (
    "image",
    "path",
    "file_name",
    "filename",
    "filepath",
    "image_path",
    "file",
    "img",
    "jpg",
    "png",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "description", "sentence", "txt")
# what a hit and its record say of the picture itself; a user's field of the same name gets "field_" before it
OWN = (
    "key",
    "id",
    "score",
    "source",
    "path",
    "size",
    "mtime",
    "sha256",
    "offset",
    "caption",
    "captions",
    "box",
)


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture, a caption or a ready-made vector, with what is stored beside it."""

    key: str
    record: dict[str, Any] = field(
        default_factory=dict
    )  # source, path, size, mtime or sha256, caption, the user's fields
    picture: Path | bytes | None = None
    vector: NDArray[np.float32] | None = None  # (D,), of any length but 0

    @property
    def captions(self) -> list[str]:
        """All of them."""
        one = self.record.get("caption")
        return list(self.record.get("captions") or ([one] if one else []))


class Whole:
    """Sources that have all that they ever gave, unless it is gone."""

    names: Sequence[str]

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Whether an item with this record came from here."""
        return record.get("source") in self.names


@dataclass(frozen=True)
class Unreadable:
    """What stood in an entry's place, or how a whole file fell short."""

    key: str
    reason: str  # names the place
    partly: bool = False  # others may be missing because of it: nothing may be taken for gone


def same_content(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both records are of the same picture, text or vector: by its hash where there is one, else by size and time."""
    if "sha256" in new:
        return bool(old.get("sha256") == new["sha256"])
    return all(old.get(name) == new.get(name) for name in ("size", "mtime"))


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal: tells whether content that has no time of its own has changed."""
    return hashlib.sha256(data).hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """size in bytes and mtime in seconds. Raises OSError."""
    facts = path.stat()
    return {"size": facts.st_size, "mtime": facts.st_mtime}


def caption_facts(texts: Iterable[Any]) -> dict[str, Any]:
    """The first text as `caption`; all of them as `captions` where there are several."""
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not found:
        return {}
    return {"caption": found[0], **({"captions": found} if len(found) > 1 else {})}


def user_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's scalars as JSON can hold them, without what is None, under names that are not our own."""
    found = {}
    for name, value in row.items():
        if (plain := _plain(value)) is not None:
            found[f"field_{name}" if name in OWN else str(name)] = plain
    return found


def split_captions(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(caption facts, the row's other fields); the first of CAPTION_COLUMNS that is there is the caption."""
    named = {str(name).strip().lower(): name for name in row}
    column = next((named[name] for name in CAPTION_COLUMNS if name in named), None)
    if column is None:
        return {}, dict(row)
    value = row[column]
    return caption_facts(value if isinstance(value, list) else [value]), {
        n: v for n, v in row.items() if n != column
    }


def check_key(key: str) -> str:
    """The key itself. Raises InputError for a file name that is no Unicode: no database holds it."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key!r}: the name is no Unicode. Rename the file.") from None
    return key


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, Decimal)):
        number = float(value)
        return number if math.isfinite(number) else None
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else None
