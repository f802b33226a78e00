"""What stands beside the vectors of a segment: one SQLite file, written once; and the same over the log's tail in memory."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime import fork
from edgeclip.runtime.index.filter_sql import (
    NUMBERS,
    TEXTS,
    add_functions,
    to_bytes,
    to_json,
    to_sql,
    to_text,
)
from edgeclip.runtime.index.filters import Filter
from edgeclip.runtime.index.types import Item

FILE = "records.sqlite"
APPLICATION_ID, SCHEMA_VERSION = 0x65634958, 1  # "ecIX": `file` and SQLite's tools show whose it is
BLOCK = 4096  # keys that are read at a time
KEPT = 8  # answers to filters, each a byte a row

# columns before the record: a filter on them reads no JSON, and a scan no overflow pages
_SCHEMA = """
    CREATE TABLE records (row INTEGER PRIMARY KEY, id INTEGER NOT NULL, key TEXT NOT NULL,
        path TEXT, caption TEXT, size, mtime, record TEXT NOT NULL);
    CREATE TABLE facts (rows INTEGER NOT NULL);
"""
# numbers come as JSON, so that SQLite itself reads them: see filter_sql.py
_INSERT = """
    INSERT INTO records VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), json_extract(?, '$'),
        json_extract(?, '$'), CAST(? AS TEXT))
"""


def write_records(folder: Path, ids: Sequence[int] | NDArray[np.int64], items: Sequence[Item]) -> None:
    """Write folder/records.sqlite: row i is ids[i] and items[i]. Not fsynced; nothing else is left in the folder.

    The items were checked before (item_check.py): here it is too late to refuse one, for it was acknowledged.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    if len(ids) != len(items):
        raise ValueError(f"{len(ids)} ids for {len(items)} items")
    path = folder / FILE
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            _write(connection, ids, items)
    except sqlite3.Error as error:
        path.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error}). Make room there, or choose another place."
        ) from error


def _write(
    connection: sqlite3.Connection, ids: Sequence[int] | NDArray[np.int64], items: Sequence[Item]
) -> None:
    _require_json(connection)
    # nobody reads it before it is whole, and who stops halfway throws the folder away: no journal, no fsync
    connection.executescript(
        f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; PRAGMA journal_mode=OFF; "
        f"PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; BEGIN; {_SCHEMA}"
    )
    connection.executemany(_INSERT, _rows(ids, items))
    connection.execute("INSERT INTO facts VALUES (?)", (len(items),))
    connection.execute("CREATE INDEX keys ON records (key)")  # sorted once: faster than row by row
    connection.execute("COMMIT")


def _rows(ids: Sequence[int] | NDArray[np.int64], items: Sequence[Item]) -> Iterator[tuple[Any, ...]]:
    for row, (number, item) in enumerate(zip(ids, items, strict=True)):
        record = item.record
        texts = [to_bytes(text) if isinstance(text := record.get(name), str) else None for name in TEXTS]
        numbers = [
            repr(value) if type(value := record.get(name)) in (int, float) else None for name in NUMBERS
        ]
        yield row, int(number), to_bytes(item.key), *texts, *numbers, to_json(record)


class Records:
    """The records of one segment, read only: of any number of threads, and also when the writer has unlinked the file."""

    def __init__(self, path: Path) -> None:
        self.path, self._count, self._closed = path, -1, False
        self._masks = _Masks()
        self.after_fork()
        fork.register(self)

    @classmethod
    def open(cls, folder: Path) -> Records:
        """Take hold of the file in a segment's folder; it is read when first asked. Raises InputError where it is missing."""
        records = cls(folder / FILE)
        with records._translated():
            records._put_back(records._take())
        return records

    def after_fork(self) -> None:
        """SQLite's connections do not outlive a fork: a child opens its own."""
        self._ready = threading.Condition()
        self._idle: list[sqlite3.Connection] = []  # a pool: a server has more threads than files may be open
        self._opened = 0

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        with self._connection():
            return self._count

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Item]:
        """The items of these rows, in their order. Raises InputError: the file is missing or damaged; IndexError: no such row."""
        wanted = [int(row) for row in rows]
        found: dict[int, Item] = {}
        with self._connection() as connection:
            # the order of the query is the file's own, so a block of neighbours is read in one go
            sql = "SELECT row, key, record FROM records WHERE row IN (SELECT value FROM json_each(?))"
            held = connection.execute(sql, (json.dumps(sorted(set(wanted))),)).fetchall()
            records = json.loads(b"[" + b",".join([record for _, _, record in held]) + b"]")  # in one go
            for (row, key, _), record in zip(held, records, strict=True):
                found[row] = Item(to_text(key), record)
        if len(found) < len(set(wanted)):
            raise IndexError(f"{self.path}: has no row {min(set(wanted) - set(found))}")
        return [found[row] for row in wanted]

    def rows_of(self, keys: Sequence[str]) -> dict[str, int]:
        """Key to row, of the keys that are there; of a key's several rows the last. Raises InputError as `items`."""
        sql = "SELECT key, max(row) FROM records WHERE key IN (SELECT value FROM json_each(CAST(? AS TEXT))) GROUP BY key"
        with self._connection() as connection:
            return {to_text(key): row for key, row in connection.execute(sql, (to_json(list(keys)),))}

    def where(self, where: Filter) -> NDArray[np.bool_]:
        """(N,) bool, read only: which rows a filter holds for. Raises InputError as `items`; a filter that is too large."""
        sql, bound = to_sql(where)
        return self._masks.of((sql, *bound.values()), lambda: self._where(sql, bound))

    def _where(self, sql: str, bound: Mapping[str, Any]) -> NDArray[np.bool_]:
        with self._connection() as connection:
            mask = np.zeros(self._count, np.bool_)
            rows = connection.execute(f"SELECT row FROM records WHERE {sql}", bound)
            mask[np.fromiter((row for (row,) in rows), np.int64)] = True
        return mask

    def keys(self) -> Iterator[str]:
        """All keys, by row. Raises InputError as `items`."""
        for start in range(0, len(self), BLOCK):  # who reads them may ask for something else in between
            with self._connection() as connection:
                sql = "SELECT key FROM records WHERE row >= ? AND row < ? ORDER BY row"
                block = connection.execute(sql, (start, start + BLOCK)).fetchall()
            yield from (to_text(key) for (key,) in block)

    def close(self) -> None:
        """Let go of the file; what other threads are asking just now they are still told."""
        with self._ready:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One that no other thread has, of a file that was checked."""
        if self._closed:
            raise InputError(f"{self.path}: the index was closed. Open it again.")
        with self._translated():
            connection = self._take()
            try:
                if self._count < 0:
                    self._check(connection)
                yield connection
            finally:
                self._put_back(connection)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{self.path}: missing or damaged ({error}). "
                "Check with `edgeclip index verify`, restore it, or build the index again."
            ) from error

    def _take(self) -> sqlite3.Connection:
        with self._ready:
            while not self._idle:
                try:
                    self._idle.append(self._connect())
                    self._opened += 1
                except sqlite3.OperationalError:
                    if not self._opened or self.path.exists():
                        raise
                    self._ready.wait()  # unlinked: what is open goes on, and is shared
            return self._idle.pop()

    def _put_back(self, connection: sqlite3.Connection) -> None:
        with self._ready:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)
            self._ready.notify()

    def _connect(self) -> sqlite3.Connection:
        # immutable: no locks, no look for a journal; works on a read-only disk
        uri = f"file:{quote(os.fsencode(self.path.absolute()))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        connection.text_factory = bytes
        connection.execute("PRAGMA temp_store=MEMORY")  # a list of many keys would go into a file
        add_functions(connection)
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        def ask(sql: str) -> Any:
            return connection.execute(sql).fetchone()[0]

        if ask("PRAGMA application_id") != APPLICATION_ID:
            raise InputError(
                f"{self.path}: no records of an index. Check the index with `edgeclip index verify`."
            )
        if (version := ask("PRAGMA user_version")) != SCHEMA_VERSION:
            raise InputError(
                f"{self.path}: records of version {version}, this edgeclip reads {SCHEMA_VERSION}. Update it."
            )
        _require_json(connection)
        rows, last = ask("SELECT rows FROM facts"), ask("SELECT ifnull(max(row), -1) FROM records")
        if rows != last + 1:
            raise InputError(
                f"{self.path}: damaged: expected {rows} rows, found {last + 1}. Restore it, or build the index again."
            )
        self._count = rows


class TailRecords:
    """The same over a list in memory, which may grow."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items, self._masks = items, _Masks()

    def __len__(self) -> int:
        return len(self._items)

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Item]:
        """The items of these rows, in their order: copies, since what the caller does to them is not to be written later."""
        return [Item(self._items[int(row)].key, deepcopy(self._items[int(row)].record)) for row in rows]

    def rows_of(self, keys: Sequence[str]) -> dict[str, int]:
        """Key to row, of the keys that are there; of a key's several rows the last."""
        wanted = set(keys)
        return {item.key: row for row, item in enumerate(self._items) if item.key in wanted}

    def where(self, where: Filter) -> NDArray[np.bool_]:
        """(N,) bool, read only: which rows a filter holds for. Raises InputError: a filter that is too large."""
        sql, bound = to_sql(where)
        items = self._items[:]
        return self._masks.of(
            (len(items), sql, *bound.values()), lambda: np.fromiter(map(where.matches, items), np.bool_)
        )

    def keys(self) -> Iterator[str]:
        """All keys, by row."""
        return (item.key for item in self._items)

    def close(self) -> None:
        """Nothing to let go of."""


class _Masks:
    """Answers to the last filters: of 100,000 rows one takes 0.1 s, and who pages through results asks the same again."""

    def __init__(self) -> None:
        self._held: dict[Hashable, NDArray[np.bool_]] = {}

    def of(self, asked: Hashable, find: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        held = self._held
        if (mask := held.get(asked)) is None:
            mask = find()
            mask.flags.writeable = False
            self._held = dict([*held.items(), (asked, mask)][-KEPT:])  # a new one: no lock is needed
        return mask


def _require_json(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("SELECT json_type('[1]')")
    except sqlite3.OperationalError as error:
        raise InputError(
            f"this Python's SQLite {sqlite3.sqlite_version} lacks JSON ({error}); built in since 3.38. Use a newer Python."
        ) from error
