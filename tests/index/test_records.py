"""Records on disk: everything comes back as it was, and what is damaged, foreign or cannot be kept is refused in one line."""

from __future__ import annotations

import inspect
import json
import os
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import records
from edgeclip.runtime.index.filters import parse_filter
from edgeclip.runtime.index.item_check import check_item
from edgeclip.runtime.index.records import Records, TailRecords, write_records
from edgeclip.runtime.index.types import Item
from tests.mutants import broken

ODD = {
    "path": os.fsdecode(b"caf\xe9/\xff.jpg"),
    "size": 2**63 - 1,
    "mtime": 1700000000.1234567,
    "caption": ["two", "captions"],
    "none": None,
    "yes": True,
    "nested": {"a": [1, 2.5, {"b": "\u0301 日本 😀 \ud800"}], "": 0},
    'quote " and \\': "\t'\"\\",
    "key": "not the item's own",
}


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    items = [
        Item(os.fsdecode(b"caf\xe9/\xff.jpg"), ODD),
        Item("b", {"size": 2}),
        Item("c", {"size": "big"}),
        Item("b", {"size": 3}),
    ]
    write_records(tmp_path, np.array([3, 5, 8, 9]), items)
    return tmp_path


def test_what_was_written_is_read(segment: Path) -> None:
    assert [path.name for path in segment.iterdir()] == ["records.sqlite"]  # no journal
    held = Records.open(segment)
    assert len(held) == 4
    (first,) = held.items([0])
    assert first == Item(os.fsdecode(b"caf\xe9/\xff.jpg"), ODD)
    assert [type(value) for value in first.record.values()] == [type(value) for value in ODD.values()]
    assert [item.record["size"] for item in held.items(np.array([3, 1, 3, 2]))] == [3, 2, 3, "big"]
    assert list(held.keys()) == [first.key, "b", "c", "b"]
    assert held.rows_of(["b", "nobody", first.key, "x' or 1=1"]) == {
        "b": 3,
        first.key: 0,
    }  # of two rows the later
    assert held.rows_of([]) == {} and held.items([]) == []  # noqa: PT018
    with pytest.raises(IndexError, match="has no row 4"):
        held.items([0, 4])
    with sqlite3.connect(
        segment / "records.sqlite"
    ) as plain:  # ids are there for who reads the file without edgeclip
        assert [row for (row,) in plain.execute("SELECT id FROM records ORDER BY row")] == [3, 5, 8, 9]
    held.close()


def test_a_reader_goes_on_when_the_writer_has_merged_the_file_away(segment: Path) -> None:
    held = Records.open(segment)
    (segment / "records.sqlite").unlink()  # before anything was asked
    assert held.items([1])[0].key == "b"
    asked = [held.items([0])[0].record == ODD for _ in iter(held.keys())]
    found: list[int] = []
    with held._connection():  # all others wait for this one
        waiting = threading.Thread(target=lambda: found.append(len(held)))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join()
    assert (asked, found) == ([True] * 4, [4])
    held.close()
    with pytest.raises(InputError, match=r"the index was closed\. Open it again\."):
        held.items([1])
    with pytest.raises(
        InputError, match=r"records.sqlite: missing or damaged \(unable to open database file\)\. Check with"
    ):
        Records.open(segment)


def test_the_file_is_read_when_it_is_asked(segment: Path) -> None:
    held = Records.open(segment)
    _run("PRAGMA user_version=2")(segment / "records.sqlite")
    with pytest.raises(InputError, match="records of version 2"):
        len(held)


def test_a_folder_of_any_name_and_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"50% ?mode=rw&x#y \xff")
    folder.mkdir()
    write_records(folder, [], [])
    held = Records.open(folder)
    assert len(held) == 0
    assert held.where(parse_filter("a != 1")).shape == (0,)
    assert list(held.keys()) == []
    folder.chmod(0o555)  # a read-only disk
    assert Records.open(folder).rows_of(["a"]) == {}
    folder.chmod(0o755)


def test_in_memory_it_is_the_same_and_grows() -> None:
    items = [Item("a"), Item("b"), Item("a", {"size": 1})]
    tail = TailRecords(items)
    assert tail.rows_of(["a", "x"]) == {"a": 2}
    items.append(Item("x", {"size": 2}))
    assert tail.rows_of(["a", "x"]) == {"a": 2, "x": 3}
    assert tail.where(parse_filter("size >= 1")).tolist() == [False, False, True, True]
    assert tail.items(np.array([3, 0])) == [items[3], items[0]]
    assert list(tail.keys()) == ["a", "b", "a", "x"]
    assert len(tail) == 4


def test_a_filter_that_is_asked_again_is_not_read_again(
    segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, items = Records.open(segment), [Item("a", {"x": True}), Item("b", {"x": 1})]
    tail = TailRecords(items)
    first = held.where(parse_filter("size > 1"))
    assert held.where(parse_filter("size > 1")) is first
    assert not first.flags.writeable
    # Python takes True for 1, and a filter does not
    assert [tail.where(parse_filter(f"x = {value}")).tolist() for value in ("true", "1", "true")] == [
        [True, False],
        [False, True],
        [True, False],
    ]
    items.append(Item("c", {"x": True}))
    assert tail.where(parse_filter("x = true")).tolist() == [True, False, True]
    for n in range(3 * records.KEPT):
        held.where(parse_filter(f"size = {n}"))
    assert len(held._masks._held) == records.KEPT


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (a)")


def _run(sql: str) -> Any:
    def change(path: Path) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.executescript(sql)
        connection.close()

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, r"missing or damaged \(database disk image is malformed\)"),
        (lambda path: path.write_bytes(b""), "no records of an index"),
        (lambda path: path.write_bytes(b"x" * 9000), r"missing or damaged \(file is not a database\)"),
        (_foreign, "no records of an index"),
        (_run("PRAGMA user_version=2"), r"records of version 2, this edgeclip reads 1\. Update it\."),
        (_run("DELETE FROM records WHERE row=3"), r"damaged: expected 4 rows, found 3\."),
        (_run("DROP TABLE facts"), r"missing or damaged \(no such table: facts\)"),
        (_run("UPDATE records SET record='{'"), "missing or damaged"),
        (_run("UPDATE records SET key=CAST(x'ff' AS TEXT)"), "missing or damaged"),
    ],
    ids=range(9),
)
def test_a_damaged_file_is_one_line(segment: Path, damage: Any, message: str) -> None:
    damage(segment / "records.sqlite")
    with pytest.raises(InputError, match=message) as caught:
        Records.open(segment).items([0, 1, 2, 3])
    assert str(caught.value).startswith(str(segment))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item(""), "items[3]: expected a key of one character or more, none of them NUL, got ''."),
        (Item(7), "got 7."),  # type: ignore[arg-type]
        (Item("a\0"), "got 'a\\x00'."),
        (Item("a", [1]), "items[3] 'a': expected a record of fields, got list."),  # type: ignore[arg-type]
        (Item("a", {"x": {"y": [0, float("nan")]}}), "items[3] 'a': record.x.y[1]: nan is no finite number."),
        (Item("a", {"x": 2**63}), "record.x: a whole number of more than 64 bits. Give it as text."),
        (Item("a", {"x": 10**5000}), "record.x: a whole number of more than 64 bits"),
        (
            Item("a", {"x": np.int64(3)}),
            "record.x: expected text, numbers, true, false, null, lists or objects, got int64.",
        ),
        (Item("a", {"x": b"y"}), "got bytes"),
        (Item("a", {"x": "a\0b"}), "record.x: text with a NUL character"),
        (Item("a", {1: 2}), "record: expected field names of text without NUL, got 1."),  # type: ignore[dict-item]
        (Item("a", {"x": json.loads("[" * 200 + "]" * 200)}), "nested more than 100 deep. Flatten it."),
    ],
    ids=range(12),
)
def test_what_cannot_be_kept_is_refused_before(item: Item, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_item(item, "items[3]")
    check_item(Item("a", ODD))
    check_item(Item("a", {"x": json.loads("[" * 100 + "]" * 100), "y": (1, np.float64(0.5))}))


def test_many_threads_may_ask(tmp_path: Path) -> None:
    items = [Item(f"item {n}", {"n": n}) for n in range(2000)]
    write_records(tmp_path, range(2000), items)
    held, wrong = Records.open(tmp_path), []

    def ask(own: int) -> None:
        for n in range(own, 2000, 400):
            found = held.where(parse_filter(f"n >= {n}")).sum(), held.rows_of([f"item {n}"]), held.items([n])
            if found != (2000 - n, {f"item {n}": n}, [items[n]]):
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(own,)) for own in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (
        1 <= len(held._idle) <= 8
    )  # as many files as were asked at once, not one for every thread and question


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own(segment: Path) -> None:
    held = Records.open(segment)
    assert len(held) == 4
    inherited = held._idle[0]
    if not (child := os.fork()):
        fine = held.items([1])[0].key == "b" and held._idle[0] is not inherited
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held.items([1])[0].key == "b"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_SCHEMA", "PRAGMA max_page_count=4;" + records._SCHEMA)
    with pytest.raises(InputError, match=r"cannot be written \(database or disk is full\)\. Make room there"):
        write_records(tmp_path, range(5000), [Item(str(n)) for n in range(5000)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "seen"),
    [
        (Records, "rows_of", "max(row)", "min(row)", test_what_was_written_is_read),
        (Records, "items", "for row in wanted]", "for row in sorted(wanted)]", test_what_was_written_is_read),
        (Records, "_check", "rows != last + 1", "False", lambda s: test_a_damaged_file_is_one_line(s, _run("DELETE FROM records WHERE row=3"), "damaged: expected")),
        (Records, "after_fork", "= []", "= getattr(self, '_idle', [])", test_a_forked_child_opens_its_own),
    ],
    ids=range(4),
)  # fmt: skip
def test_planted_faults_are_seen(
    segment: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, old: str, new: str, seen: Any
) -> None:
    monkeypatch.setattr(owner, name, broken(inspect.unwrap(getattr(owner, name)), old, new))
    with pytest.raises((AssertionError, IndexError, pytest.fail.Exception)):
        seen(segment)
