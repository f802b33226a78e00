"""The filter language: what it refuses and where, what it means on disk and in memory, compared with plain Python."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import filter_sql, filters, records
from edgeclip.runtime.index.filters import MAX_DEPTH, All, Compare, Filter, Not, Some, compare, parse_filter
from edgeclip.runtime.index.records import Records, TailRecords, write_records
from edgeclip.runtime.index.types import Item
from tests.index.filter_cases import as_text, holds, random_condition, random_item
from tests.mutants import broken


def both(folder: Path, items: list[Item]) -> tuple[Records, TailRecords]:
    folder.mkdir()
    write_records(folder, np.arange(len(items)), items)
    return Records.open(folder), TailRecords(items)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Item], Records, TailRecords]:
    chance = random.Random(7)
    items = [random_item(chance, number) for number in range(80)]
    return items, *both(tmp_path_factory.mktemp("stores") / "segment", items)


def differences(
    stores: tuple[list[Item], Records, TailRecords], rounds: int, seed: int = 11
) -> Iterator[str]:
    """Conditions on which disk, memory and plain Python do not agree."""
    (items, disk, memory), chance = stores, random.Random(seed)
    disk._masks, memory._masks = records._Masks(), records._Masks()  # no answer of a run before
    for _ in range(rounds):
        condition = random_condition(chance, depth=2)
        text = as_text(condition, chance)
        tree, want = parse_filter(text), np.array([holds(condition, item) for item in items])
        if (disk.where(tree) != want).any() or (memory.where(tree) != want).any():
            yield text


def test_disk_memory_and_plain_python_agree(stores: tuple[list[Item], Records, TailRecords]) -> None:
    assert list(differences(stores, rounds=250)) == []


@pytest.mark.parity
def test_they_agree_on_many_more(stores: tuple[list[Item], Records, TailRecords]) -> None:
    assert list(differences(stores, rounds=10_000, seed=12)) == []


SQL, TREE = filter_sql._Writer, Compare
FAULTS = [
    (SQL, "_in_json", "WHEN 'array'", "WHEN 'list'"),
    (SQL, "_in_json", "FROM json_each(record, {path})", "FROM json_each(record)"),
    (SQL, "_compare", "CASE WHEN {column} IS NULL THEN {self._in_json(one.name, test)} ELSE", "CASE WHEN FALSE THEN 0 ELSE"),
    (SQL, "_compare", "one.name == KEY", "False"),
    (SQL, "_test", "{read[0]} IN ({TEXT if text else NUMBER}) AND {read[1]}", "{read[1]}"),
    (SQL, "_test", "one.value.casefold() if", "one.value if"),
    (SQL, "write", ") IS TRUE", ")"),
    (TREE, "_holds", "if kind != kind_of(self.value)", "if False"),
    (TREE, "_holds", "(kind, got) in self._wanted", "got in self.value"),
    (TREE, "matches", "isinstance(got, (list, tuple))", "False"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"), FAULTS, ids=[f"{f[0].__name__}-{f[1]}-{n}" for n, f in enumerate(FAULTS)]
)
def test_a_planted_fault_is_seen(
    stores: tuple[list[Item], Records, TailRecords],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    old: str,
    new: str,
) -> None:
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
    try:
        found: Any = next(differences(stores, rounds=250), None)
    except (InputError, TypeError, AttributeError, KeyError) as error:
        found = error
    assert found


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("size > 100000 and (caption ~ 'DOG' or year >= 2020) and not tag in ('a', 'b')", "2"),
        ("year = 2020 or size < 10 and tag = 'a'", "0 2"),  # and is stronger
        ("not year = 2020 and tag = 'a'", "1"),  # not is the strongest
        ("year != 2020", "1 3"),  # a missing field too
        ("year != 2020 and year is not null", "1"),
        ("year = null", "3"),
        ("year = '2020'", ""),
        ("seen = true", "0"),
        ("seen = 1", "1"),
        ("people = 'eve'", "0 1"),
        ("not people in ('eve', 'bob')", "2 3"),
        ("exif.iso >= 400", "2"),
        ("\"lens model\" is null and key glob '[0-2]'", "0 1"),
        ("path glob 'holiday/*.jpg'", "1"),
        ("path GLOB 'holiday/*' AND path NOT GLOB '*.jpg'", "2"),
        ("id = 1", ""),  # unknown: null everywhere
    ],
)
def test_a_filter_finds_what_a_hand_would(tmp_path: Path, text: str, keys: str) -> None:
    items = [
        Item("0", {"size": 5, "year": 2020, "tag": "a", "seen": True, "people": ["eve", "bob"]}),
        Item("1", {"year": 1999.5, "tag": "a", "seen": 1, "people": "eve", "path": "holiday/a/b.jpg", "exif": {"iso": "400"}}),
        Item("2", {"size": 200000, "year": 2020.0, "tag": "c", "path": "holiday/x.png", "exif": {"iso": 400}, "lens model": "50"}),
        Item("3", {"caption": "a hot dog", "size": 99999, "people": [["eve"]]}),
    ]  # fmt: skip
    for store in both(tmp_path / "s", items):
        assert " ".join(items[row].key for row in np.flatnonzero(store.where(parse_filter(text)))) == keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 1: expected a field, got the end."),
        ("size > and x = 1", "at character 8: expected a number or text in quotes, got 'and'."),
        ("size = dog", "at character 8: expected a value, got 'dog' (text stands in quotes)."),
        ("size 5", "at character 6: expected an operator (=, ==, !=, <>, <, <=, >, >=, ~, in, is, glob), got '5'."),
        ("a = 'x", "at character 5: expected a field, an operator or a value, got text without its closing quote."),
        ("a = 1; drop table records", "at character 6: expected a field, an operator or a value, got ';'."),
        ("a = 12abc", "at character 5: expected a field, an operator or a value, got '12abc'."),
        ("(a = 1", "at character 7: expected 'and', 'or' or ')', got the end."),
        ("a = 1)", "at character 6: expected 'and', 'or' or the end, got ')'."),
        ("a = 1 b = 2", "at character 7: expected 'and', 'or' or the end, got 'b'."),
        ("a in ()", "at character 7: expected a value, got ')'."),
        ("a in 1", "at character 6: expected '(', got '1'."),
        ("a in (1 2)", "at character 9: expected ',' or ')', got '2'."),
        ("a not 1", "at character 7: expected in or glob, got '1'."),
        ("a is 1", "at character 6: expected null or not null, got '1'."),
        ("a > true", "at character 5: expected a number or text in quotes, got 'true'."),
        ("a ~ 1", "at character 5: expected text in quotes, got '1'."),
        ("a. = 1", "at character 4: expected a field's name after the dot, got '='."),
        ("in = 1", "at character 1: expected a field, got 'in' (a field of this name: put it in quotes)."),
        ("a = 99999999999999999999", "a = 99999999999999999999: expected a finite number, whole ones of 64 bits."),
        ("a = " + "9" * 9000, "expected a finite number, whole ones of 64 bits."),
        ("a = 1e999", "a = inf: expected a finite number"),
        ("a = 'x\0y'", "text in an index has no character NUL."),
        ("'' = 1", "a name that is empty or has quotes"),
        ("'a\\b' = 1", "a name that is empty or has quotes"),
        ("(" * 60 + "a = 1" + ")" * 60, "at character 17: nested more than 16 deep. Write it flatter."),
        ("not " * 5000 + "a = 1", "nested more than 16 deep."),
        ("a = 1 or " * 2000 + "a = 1", "2001 conditions, more than 500. Many values of one field: use `in (...)`."),
        ("a = 1 or " * 20000 + "a = 1", "180005 characters, more than 100000."),
    ],
    ids=range(29),
)  # fmt: skip
def test_what_cannot_be_read_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_filter(text)
    assert str(caught.value).startswith("filter: ")
    assert len(str(caught.value)) < 300


def test_nothing_of_a_filter_becomes_sql() -> None:
    evil = "x'); DROP TABLE records; --"
    sql, bound = filter_sql.to_sql(
        All(
            (
                Compare((evil,), "=", evil),
                Compare(("key",), "in", (evil, 1, True)),
                Compare((evil,), "~", evil),
            )
        )
    )
    assert "DROP" not in sql
    assert sum("drop" in str(value).lower() for value in bound.values()) == 5


def test_large_filters_are_answered(tmp_path: Path) -> None:
    items = [Item(str(n), {"n": n, "mtime": n / 7}) for n in range(50)]
    for store in both(tmp_path / "s", items):
        wide = Some(tuple(Compare(("n",), "=", n) for n in range(0, 1000, 2)))
        assert np.flatnonzero(store.where(wide)).tolist() == list(range(0, 50, 2))
        assert store.where(compare("n", "in", range(25, 100_000))).sum() == 25
        assert store.where(compare("mtime", "in", [n / 7 for n in range(20)])).sum() == 20
        few = Compare(("path",), "in", ("x", 1, True))
        deep: Filter = Compare(("n",), "in", (3, "x", False))
        for level in range(
            MAX_DEPTH
        ):  # as deep as it may be, at the place where SQLite's parser holds the most
            deep = All((Not(few), deep)) if level % 2 else Some((few, few, deep))
        assert np.flatnonzero(store.where(deep)).tolist() == [3]
        with pytest.raises(InputError, match="nested more than 16 deep"):
            store.where(Not(deep))


def test_trees_and_mappings() -> None:
    item = Item("k", {"tag": "a", "year": 2020, "exif": {"iso": 100}, "people": ["eve"]})
    for where in (
        {"tag": "a", "year": 2020.0, "exif.iso": [100, 200], "missing": None, "people": "eve"},
        {},
        compare("exif.iso", "<=", 100),
        compare(("exif", "iso"), "!=", 200),
        compare("year", "in", [None, 2020]),
        Some((Compare(("year",), "null"), Not(Compare(("tag",), "=", "b")))),
    ):
        assert parse_filter(where).matches(item)
    for where in ({"tag": "b"}, {"tag": []}, {"tag": True}, Some(())):
        assert not parse_filter(where).matches(item)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_filter(3), "expected text, a mapping or a Filter, got int"),  # type: ignore[arg-type]
        (lambda: parse_filter({"a": {"b": 1}}), "a = {'b': 1}: values of this kind are not compared so"),
        (lambda: parse_filter({"": 1}), "a name that is empty"),
        (
            lambda: compare("a", "like", "x"),
            "operator 'like': unknown. Choose from =, <, <=, >, >=, ~, glob, in, null",
        ),
        (lambda: compare("a", "in", "abc"), "a in: expected a list of values, got 'abc'"),
        (lambda: compare("a", "<", None), "Say `is null` or `is not null`"),
        (lambda: compare("a", ">", True), "a > True: values of this kind are not compared so"),
        (lambda: compare("a", "=", float("nan")), "expected a finite number"),
        (lambda: Compare(("a",), "null", 1), "values of this kind"),
    ],
    ids=range(9),
)
def test_a_tree_that_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_the_language_is_the_documented_one() -> None:
    assert filters.__doc__ is not None
    example = filters.__doc__.splitlines()[2].strip()
    assert parse_filter(example) == All(
        (
            Compare(("size",), ">", 100000),
            Some((Compare(("caption",), "~", "dog"), Compare(("year",), ">=", 2020))),
            Not(Compare(("tag",), "in", ("a", "b"))),
        )
    )
    assert records.TailRecords([]).where(parse_filter(example)).shape == (0,)
