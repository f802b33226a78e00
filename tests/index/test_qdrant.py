"""`Index`'s calls on Qdrant, in its local mode (a server is the same client, and was not to be had here)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index.away import push as pushing
from edgeclip.runtime.index.away import qdrant_filters, qdrant_points
from edgeclip.runtime.index.away.push import PushReport, push
from edgeclip.runtime.index.away.qdrant import QdrantIndex
from edgeclip.runtime.index.away.qdrant_client import (
    QdrantOptions,
    collection_settings,
    parse_target,
    search_settings,
)
from edgeclip.runtime.index.filters import All, Compare, Filter, Not, Some
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.queries import Query
from edgeclip.runtime.index.types import Item, Origin
from tests.index.away import ODD, ORIGIN, InMemory, small
from tests.mutants import broken
from tests.vectors import clip_like

pytest.importorskip("qdrant_client")


@pytest.fixture
def pushed() -> Iterator[tuple[InMemory, QdrantIndex]]:
    """Fifty items, here and there."""
    index = small()
    with QdrantIndex.create(":memory:", ORIGIN) as there:
        push(index, there)
        yield index, there


def brute(index: InMemory, query: Any, k: int, where: Filter | None = None) -> list[tuple[str, int]]:
    scores = index.vectors_ @ query
    best = [i for i in np.argsort(-scores, kind="stable") if where is None or where.matches(index.items_[i])]
    return [(index.items_[i].key, int(index.ids[i])) for i in best[:k]]


def test_the_same_answers(pushed: tuple[InMemory, QdrantIndex]) -> None:
    index, there = pushed
    queries = clip_like(5, 16, "text")
    for query, hits in zip(queries, there.search_many(queries, 7), strict=True):
        assert [(hit.key, hit.id) for hit in hits] == brute(index, query, 7)
        np.testing.assert_allclose(
            [hit.score for hit in hits], np.sort(index.vectors_ @ query)[::-1][:7], atol=1e-6
        )
        assert all(hit.record == index.items_[(hit.id - 5) // 3].record for hit in hits)
    best = there.search(queries[0], 3)
    assert len(there.search(queries[0], 50, threshold=best[1].score - 1e-6)) == 2
    assert len(there.search(queries[0], 500)) == 50


def test_what_is_stored(pushed: tuple[InMemory, QdrantIndex]) -> None:
    index, there = pushed
    assert len(there) == 50
    assert dict(there.items()) == dict(index.items())
    assert there.get([ODD, "p/7.jpg", "nowhere"]) == {ODD: index.items_[1], "p/7.jpg": index.items_[7]}
    np.testing.assert_allclose(there.vectors(["p/9.jpg", ODD]), index.vectors_[[9, 1]], atol=1e-7)
    ids, vectors, _ = next(there.batches(20))
    np.testing.assert_array_equal(ids, index.ids[:20])
    np.testing.assert_allclose(vectors, index.vectors_[:20], atol=1e-7)
    assert there.info()["items"] == 50
    with pytest.raises(InputError, match="no item 'nowhere'"):
        there.vectors(["nowhere"])


def test_add_replaces_and_ids_are_never_given_twice(pushed: tuple[InMemory, QdrantIndex]) -> None:
    _, there = pushed
    last = 49 * 3 + 5
    rows = clip_like(3, 16, seed=9)
    assert there.add(rows, ["new", {"path": "p/4.jpg", "size": 1}, Item(ODD)]) == [
        last + 1,
        last + 2,
        last + 3,
    ]
    assert len(there) == 51
    assert there.get(["p/4.jpg"])["p/4.jpg"].record == {"path": "p/4.jpg", "size": 1}
    assert there.search(rows[2], 1)[0].id == last + 3
    assert there.remove(["new", "nowhere", last + 3, 10**6]) == 2
    assert there.add(rows[:1], ["newer"]) == [last + 4]
    with pytest.raises(InputError, match="key 'a' is there twice"):
        there.add(rows[:2], ["a", "a"])
    with pytest.raises(InputError, match=r"vectors\[0\]: expected a row of length 1, got 2"):
        there.add(rows[:1] * 2, ["a"])
    with pytest.raises(InputError, match="one for each of 2 vectors, got 1"):
        there.add(rows[:2], ["a"])


WHERES = [
    "size > 1010", "sharp = true", "caption ~ '1'", "key glob 'p/1*'", "tags = 'a' and not size >= 1030", "mixed = 'text' or mixed = 8",
    "exif.iso in (300, 600.0, 'x')", "none is null", "not none is null", "not tags = 'a'", "mixed != 8", "size in (1, 'a', true)",
    "not (sharp = true and size < 1020)", "not (caption ~ 'x' or size < 1020)", "mtime < 7.5", "path < 'p/2'", "huge is not null", "key = 'p/3.jpg'",
]  # fmt: skip


def test_filters_mean_the_same(pushed: tuple[InMemory, QdrantIndex]) -> None:
    index, there = pushed
    query = clip_like(1, 16, "text")[0]
    for where in WHERES:
        wanted = qdrant_filters.parse_filter(where)
        for k in (3, 50):
            found = [(hit.key, hit.id) for hit in there.search(query, k, where=where)]
            assert found == brute(index, query, k, wanted), where


def random_value(r: random.Random) -> Any:
    return r.choice([0, 1, 2, 2.0, 1.5, True, False, "a", "A", "ab", "", 2**53 + 1, 'json:"'])


def random_filter(r: random.Random, depth: int) -> Filter:
    kind = r.choice(["compare"] * 3 + ["all", "some", "not"]) if depth else "compare"
    if kind == "not":
        return Not(random_filter(r, depth - 1))
    if kind in ("all", "some"):
        parts = tuple(random_filter(r, depth - 1) for _ in range(r.randrange(4)))
        return All(parts) if kind == "all" else Some(parts)
    name, op = (
        r.choice([("a",), ("b",), ("b", "c"), ("odd name",), ("key",)]),
        r.choice(["=", "in", "null", "<", ">=", "~", "glob"]),
    )
    if op == "in":
        return Compare(name, op, tuple(random_value(r) for _ in range(r.randrange(3))))
    if op == "null":
        return Compare(name, op)
    values = iter(lambda: random_value(r), object())
    wanted = {"<": (int, float, str), ">=": (int, float, str), "~": (str,), "glob": (str,)}.get(
        op, (int, float, str, bool)
    )
    return Compare(
        name, op, next(v for v in values if isinstance(v, wanted) and (op == "=" or not isinstance(v, bool)))
    )


def random_record(r: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("a", "b", "odd name"):
        choice = r.randrange(5)
        if choice == 1:
            found[name] = random_value(r)
        elif choice == 2:
            found[name] = [r.choice([random_value(r), None, [1], {"c": 1}]) for _ in range(r.randrange(3))]
        elif choice == 3:
            found[name] = {"c": random_value(r)}
        elif choice == 4:
            found[name] = None
    return found


def test_random_filters_mean_the_same() -> None:
    r = random.Random(5)
    items = [Item(f"k{i}" if i % 5 else f"a{i}", random_record(r)) for i in range(60)]
    index = InMemory(clip_like(60, 16), items)
    query = clip_like(1, 16, "text")[0]
    asked = 0
    with QdrantIndex.create(":memory:", ORIGIN) as there:
        push(index, there)
        for _ in range(60):
            where = random_filter(r, 3)
            asked += qdrant_filters.Wanted.of(where).filter is not None
            wanted = brute(index, query, 60, where)
            assert [(hit.key, hit.id) for hit in there.search(query, 60, where=where)] == wanted, where
    assert asked > 20  # the others say nothing that Qdrant could check


def test_remove_where(pushed: tuple[InMemory, QdrantIndex]) -> None:
    index, there = pushed
    where = qdrant_filters.parse_filter("caption ~ 'ünïcode 1'")
    met = sum(where.matches(item) for item in index.items_)
    assert there.remove_where("caption ~ 'ünïcode 1'") == met > 0
    assert len(there) == 50 - met


def test_push_goes_on_and_prunes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "SENT", 8)
    index = small()
    with QdrantIndex.create(":memory:", ORIGIN) as there:
        with monkeypatch.context() as patch:
            calls = iter(range(100))
            put = there.points.put

            def breaks(*arguments: Any) -> None:
                if next(calls) == 3:
                    raise KeyboardInterrupt
                put(*arguments)

            patch.setattr(there.points, "put", breaks)
            with pytest.raises(KeyboardInterrupt):
                push(index, there)
        assert len(there) == 24
        assert push(index, there) == PushReport(26, 24, 0)
        assert push(index, there) == PushReport(0, 50, 0)
        # of one picture a newer vector, under another id; another one is gone
        changed = InMemory(index.vectors_, [*index.items_[:-1], Item("p/0.jpg")])
        changed.ids = changed.ids.copy()
        changed.ids[-1] = 1000
        keep = [i for i in range(50) if i not in (0, 4)]
        changed.vectors_, changed.items_, changed.ids = (
            changed.vectors_[keep],
            [changed.items_[i] for i in keep],
            changed.ids[keep],
        )
        told: list[int] = []
        assert push(changed, there, prune=True, tell=told.append) == PushReport(1, 47, 2)
        assert dict(there.items()) == dict(changed.items())
        assert told[-1] == 48
        assert there.add(index.vectors_[:1], ["x"]) == [1001]


def test_push_refuses_another_index_or_model() -> None:
    index = small()
    with QdrantIndex.create(":memory:", ORIGIN) as there:
        push(index, there)
        other = InMemory(index.vectors_, [Item(f"other {i}") for i in range(50)])
        with pytest.raises(
            InputError, match=r":memory:: id 5 is 'p/0.jpg' there and 'other 0' here: it holds another index"
        ):
            push(other, there)
        foreign = InMemory(index.vectors_, index.items_, Origin("cd" * 32, "other", 16))
        with pytest.raises(
            InputError, match=r"vectors of toy \(abababababab\), expected other \(cdcdcdcdcdcd\)"
        ):
            push(foreign, there)


def test_a_folder_survives_and_asks_before_it_unpickles(tmp_path: Path) -> None:
    target = f"qdrant:{tmp_path / 'pets.qdrant'}#pets"
    with pytest.raises(InputError, match=r"no Qdrant folder\. `edgeclip index export"):
        QdrantIndex.open(target)
    with QdrantIndex.create(target, ORIGIN) as there:
        there.add(clip_like(3, 16), ["a", "b", "c"])
        with pytest.raises(InputError, match=r"pets\.qdrant#pets: .*as pickles, which run whatever code"):
            QdrantIndex.open(target)
        with pytest.raises(
            InputError, match=r"Qdrant: Storage folder .* is already accessed by another instance"
        ):
            QdrantIndex.open(target, allow_pickle=True)
    with QdrantIndex.open(target, allow_pickle=True) as there:
        assert (there.origin, list(there.keys())) == (ORIGIN, ["a", "b", "c"])
        assert there.add(clip_like(1, 16), ["d"]) == [3]
    with pytest.raises(InputError, match="already exists"):
        QdrantIndex.create(target, ORIGIN, allow_pickle=True)
    with QdrantIndex.create(target, ORIGIN, allow_pickle=True, overwrite=True) as there:
        assert len(there) == 0
    with pytest.raises(InputError, match="no such collection"):
        QdrantIndex.open(target.replace("#pets", "#cats"), allow_pickle=True)


def test_a_collection_of_others() -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("edgeclip", models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(InputError, match=r"its metadata names no model of edgeclip's"):
        QdrantIndex.open(":memory:", client=client)


def test_queries_that_cannot_be_used(pushed: tuple[InMemory, QdrantIndex]) -> None:
    _, there = pushed
    with pytest.raises(InputError, match=r"expected finite \(Q, 16\) vectors, got \(1, 8\)"):
        there.search(np.ones(8, np.float32))
    with pytest.raises(InputError, match="expected finite"):
        there.search(np.full(16, np.nan, np.float32))
    with pytest.raises(InputError, match="k: expected 1 or more, got 0"):
        there.search(np.ones(16, np.float32), 0)
    with pytest.raises(InputError, match="opened without a model, so a query is a vector, got str"):
        there.search("a cat")
    one = Query(images=[there.vectors([next(iter(there.keys()))])[0]])  # vectors alone need no model
    assert there.search(one, 1)[0].key == next(iter(there.keys()))
    count = len(there)
    with pytest.raises(InputError, match="expected a condition on what to remove, got None"):
        there.remove_where(None)
    assert len(there) == count


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    for place in (tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(InputError, match="already exists and is no Qdrant folder"):
            QdrantIndex.create(f"qdrant:{place}", ORIGIN)
    assert [one.name for one in tmp_path.iterdir()] == ["a.jpg"]


def test_targets() -> None:
    assert str(parse_target("qdrant:pets")) == str(parse_target("pets")) == "qdrant:pets"
    server = parse_target("qdrant:https://host:6333/below/pets")
    assert (server.url, server.collection) == ("https://host:6333/below", "pets")
    for bad in (
        "qdrant:http://host:6333",
        "qdrant:http://host:6333/",
        "qdrant:http://host/pets?x=1",
        "qdrant:",
    ):
        with pytest.raises(InputError, match=r"expected .*, e\.g\. qdrant:"):
            parse_target(bad)
    with pytest.raises(InputError, match="QDRANT_API_KEY") as caught:
        parse_target("qdrant:http://me:secret@host/pets")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(
        InputError, match=r"qdrant:http://127\.0\.0\.1:9/pets: Qdrant: .*refused\. Expected a server there"
    ):
        QdrantIndex.create("qdrant:http://127.0.0.1:9/pets", ORIGIN)


def test_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.index.qdrant_server import KEY, serve

    index, query = small(), clip_like(1, 16, "text")[0]
    with serve() as (address, asked):
        target = f"qdrant:{address}/pets"
        with pytest.raises(InputError, match=r"Qdrant: Unexpected Response: 401 .*Must provide an API key"):
            QdrantIndex.open(target)
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        with QdrantIndex.ready(target, ORIGIN, options=QdrantOptions("binary", oversampling=10)) as there:
            assert push(index, there) == PushReport(50, 0, 0)
        with QdrantIndex.ready(target, ORIGIN) as there:
            assert push(index, there, prune=True) == PushReport(0, 50, 0)
            assert dict(there.items()) == dict(index.items())
            where = qdrant_filters.parse_filter("size > 1010 and not caption ~ '3'")
            hits = there.search(query, 7, where=where, threshold=-1, exact=True)
            assert [(hit.key, hit.id) for hit in hits] == brute(index, query, 7, where)
            assert there.add(clip_like(1, 16, seed=3), [ODD]) == [153]
            assert there.remove([ODD]) == 1
            assert len(there) == 49
            np.testing.assert_allclose(next(there.batches(3))[1][0], index.vectors_[0], atol=1e-6)
        with pytest.raises(InputError, match="was made with binary quantization, got int8"):
            QdrantIndex.ready(target, ORIGIN, options=QdrantOptions("int8"))
        with QdrantIndex.ready(target, ORIGIN, overwrite=True) as there:
            assert len(there) == 0
    made = next(body for method, path, body in asked if (method, path) == ("PUT", ""))
    assert made["quantization_config"] == {"binary": {"always_ram": True}}
    assert made["hnsw_config"] == {"m": 16, "ef_construct": 128}
    searched = next(body for _, path, body in asked if path == "/points/query/batch")["searches"][0]
    assert searched["params"] == {
        "hnsw_ef": 64, "exact": True, "quantization": {"ignore": True, "rescore": True, "oversampling": 10.0},
    }  # fmt: skip


def test_the_same_as_an_index(tmp_path: Path) -> None:
    rows = clip_like(300, 16)
    items = [{"path": f"p/{i}.jpg", "size": i} for i in range(300)]
    with (
        Index.create(tmp_path / "pets.index", ORIGIN) as index,
        QdrantIndex.create(":memory:", ORIGIN) as there,
    ):
        index.add(rows, items)
        index.flush()
        index.remove(["p/3.jpg"])
        index.add(rows[5:6], [{"path": "p/5.jpg", "size": 1000}])
        assert push(index, there) == PushReport(299, 0, 0)
        for where in (None, "size > 100 and path ~ '1'", {"size": [7, 1000]}):
            queries = clip_like(5, 16, "text", seed=2)
            home, away = (
                index.search_many(queries, 9, where=where),
                there.search_many(queries, 9, where=where),
            )
            for ours, theirs in zip(home, away, strict=True):
                assert [(hit.key, hit.id, hit.record) for hit in ours] == [
                    (hit.key, hit.id, hit.record) for hit in theirs
                ]
                np.testing.assert_allclose(
                    [hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5
                )
        assert dict(there.items()) == dict(index.items())


def test_options_reach_the_client() -> None:
    server = parse_target("http://host:6333/pets")
    int8 = collection_settings(server, 16, QdrantOptions("int8", quantile=0.9))["quantization_config"].scalar
    assert (int8.type.value, int8.quantile, int8.always_ram) == ("int8", 0.9, True)
    binary = collection_settings(server, 16, QdrantOptions("binary", always_ram=False, on_disk=True))
    assert binary["quantization_config"].binary.always_ram is False
    assert binary["vectors_config"].on_disk is True
    asked = search_settings(server, QdrantOptions("binary", oversampling=10), exact=False)
    assert (asked.quantization.oversampling, asked.quantization.rescore, asked.exact) == (10, True, False)
    assert search_settings(server, QdrantOptions(), exact=True).quantization is None
    for wrong, message in [
        ({"quantization": "pq"}, "none, int8 or binary"),
        ({"quantile": 2}, "0.5 to 1"),
        ({"oversampling": 0}, "1 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            QdrantOptions(**wrong)
    with QdrantIndex.create(":memory:", ORIGIN, options=QdrantOptions("int8")) as there:
        again = QdrantIndex.open(":memory:", client=there._client)
        assert again.options == QdrantOptions("int8")


FAULTS = [
    (
        qdrant_filters,
        "_compare",
        "is_empty=models.PayloadField(key=path)), False",
        "is_empty=models.PayloadField(key=path)), True",
    ),
    (qdrant_filters, "_is_plain_number", "and abs(value) <= _MOST", ""),
    (qdrant_filters, "_translate", "if exact and found is not None", "if found is not None"),
    (qdrant_filters, "_translate", "len(known) == len(parts)", "True"),
    (qdrant_filters, "_equal", "to_utf8(value) if isinstance(value, str) else value", "value"),
    (qdrant_points, "_payload", "to_utf8(item.key)", "item.key"),
]


CHOSEN: list[Filter] = [
    Not(Compare(("a",), "null")),
    Compare(("a",), "=", 2**53 + 1),
    Some((Compare(("a",), "=", 1), Compare(("a",), "~", "x"))),
    Compare(("a",), "=", 'json:"'),
]


@pytest.mark.parametrize(("module", "name", "old", "new"), FAULTS)
def test_the_comparison_sees(
    module: Any, name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare_chosen()
    monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
    with pytest.raises(AssertionError):
        _compare_chosen()


def _compare_chosen() -> None:
    records = [{}, {"a": []}, {"a": 1}, {"a": 2**53 + 1}, {"a": "xx"}, {"a": 'json:"'}]
    index = InMemory(clip_like(6, 16), [Item(f"{i}", record) for i, record in enumerate(records)])
    index.items_[0] = Item(ODD)
    with QdrantIndex.create(":memory:", ORIGIN) as there:
        push(index, there)
        for where in CHOSEN:
            wanted = brute(index, index.vectors_[0], 6, where)
            found = there.search(index.vectors_[0], 6, where=where)
            assert [(hit.key, hit.id) for hit in found] == wanted
        assert ODD in there.get([ODD])
