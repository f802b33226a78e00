"""What CSV, JSON Lines and Parquet share: rows that hold or name a picture, say its captions, and hold fields of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.index.sources.entry import (
    IMAGE_COLUMNS,
    Entry,
    Unreadable,
    check_key,
    digest,
    file_facts,
    split_captions,
    user_facts,
)

VECTOR_COLUMNS = ("embedding", "vector", "embeddings", "vectors")
KEY_COLUMNS = ("key", "id", "name")
_URLS = ("url", "urls", "image_url")


def pick(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of `wanted` among `names`, whatever its case."""
    present = {name.strip().lower(): name for name in names}
    return next((present[name] for name in wanted if name in present), None)


def columns_of(names: Sequence[str], where: str) -> tuple[str | None, str | None]:
    """(picture, vector) columns of a table; vectors win, and a table of captions alone has neither.

    Raises:
        InputError: only addresses on the network, or nothing at all to be indexed; lists the columns.
    """
    vector, picture = pick(names, VECTOR_COLUMNS), pick(names, IMAGE_COLUMNS)
    if vector or picture:
        return picture, vector
    if url := pick(names, _URLS):
        raise InputError(
            f"{where}: column {url!r} names pictures on the network, which are not fetched. Download them first (img2dataset writes shards)."
        )
    if not split_captions(dict.fromkeys(names, ""))[1].keys() < set(names):
        raise InputError(
            f"{where}: no column {', '.join(IMAGE_COLUMNS[:3])}, {VECTOR_COLUMNS[0]} or caption; there are {', '.join(names) or 'none'}."
        )
    return None, None


def row_entry(
    row: Mapping[str, Any], number: int, table: Path, picture: str | None, vector: str | None
) -> Entry | Unreadable:
    """The entry of one row.

    Args:
        number: of the row, from 1; names it where nothing else does.
        table: the absolute path of the file.
        picture, vector: columns that hold them, as `columns_of` says.
    """
    where = f"{table.name}:{number}"
    rest = {name: value for name, value in row.items() if name not in (picture, vector)}
    captions, rest = split_captions(rest)
    record: dict[str, Any] = {"source": str(table), **user_facts(rest), **captions}
    try:
        if vector is not None:
            return _of_vector(row, record, where, picture, vector)
        if picture is None:
            return (
                Entry(_name(row, where), record) if captions else Unreadable(where, f"{where}: no caption.")
            )
        return _of_picture(row, record, where, table, picture)
    except InputError as error:
        path = row[picture] if picture is not None and vector is None else None
        return Unreadable(path if isinstance(path, str) and path else where, str(error))


def merged(entries: Iterable[Entry | Unreadable]) -> Iterator[Entry | Unreadable]:
    """Rows of one picture are one entry with several captions. Holds all the rows."""
    found: dict[str, Entry | Unreadable] = {}
    for entry in entries:
        first = found.setdefault(entry.key, entry)
        if first is not entry and isinstance(first, Entry) and isinstance(entry, Entry):
            texts = [*first.captions, *entry.captions]
            first.record.update(caption=texts[0], captions=texts) if texts else None
    yield from found.values()


def _name(row: Mapping[str, Any], where: str) -> str:
    column = pick(row, KEY_COLUMNS)
    return check_key(str(row[column])) if column and row[column] not in (None, "") else where


def _of_vector(
    row: Mapping[str, Any], record: dict[str, Any], where: str, picture: str | None, vector: str
) -> Entry:
    try:
        found = np.asarray(row[vector], np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {vector}: expected a list of numbers ({error}).") from error
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or not found.any():
        raise InputError(
            f"{where}: {vector}: expected a list of finite numbers, not all 0, got shape {found.shape}."
        )
    name = _name(row, where)
    if picture and isinstance(row[picture], str):
        record["path"] = row[picture]
        name = row[picture] if name == where else name
    return Entry(check_key(name), record, vector=found)


def _of_picture(
    row: Mapping[str, Any], record: dict[str, Any], where: str, table: Path, column: str
) -> Entry:
    value = row[column]
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    data = value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None
    if data:
        name = _name(row, where)
        named = f"{table.name}/{path}" if path and name == where else name
        record.update(path=path or where, size=len(data), sha256=digest(data))
        return Entry(check_key(named), record, bytes(data))
    if not path:
        raise InputError(f"{where}: {column}: expected a path or an encoded picture, got {_shown(value)}.")
    file = table.parent / path
    try:
        record.update(path=check_key(path), **file_facts(file))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    return Entry(path, record, file)


def _shown(value: Any) -> str:
    return "nothing" if value in (None, "", b"") else type(value).__name__
