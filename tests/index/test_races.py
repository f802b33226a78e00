"""Threads and forks that ask an index while it changes: what was acknowledged is found, and nothing that was removed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import maintenance, view
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Hit, IndexSettings, Item, Origin

DIM, MANY = 16, 600
ORIGIN = Origin("0" * 64, "toy", DIM)
VECTORS = np.random.default_rng(0).normal(size=(MANY, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """What went wrong in any of them."""
    wrong: list[BaseException] = []

    def guarded(own: int) -> None:
        try:
            work(own)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(own,)) for own in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize(
    ("precision", "many"),
    [
        ("int8", 48),
        pytest.param("fp16", MANY, marks=pytest.mark.parity),
        pytest.param("bits", MANY, marks=pytest.mark.parity),
    ],
)
def test_readers_in_many_threads_find_what_was_acknowledged(
    tmp_path: Path, precision: Any, many: int
) -> None:
    writer = Index.create(tmp_path / "i", ORIGIN, settings=IndexSettings(precision=precision, flush_at=8))
    reader = Index.open(tmp_path / "i")
    acknowledged, over = 0, threading.Event()

    def ask(own: int) -> None:
        while not over.is_set():
            before = acknowledged
            found = len(reader)
            assert found >= before, f"{found} of {before}"
            if before:
                wanted = (before - 1) - own % before
                hit = reader.search(VECTORS[wanted], 1, where="even = true or even = false")[0]
                assert (hit.key, hit.record) == (f"{wanted}", {"even": wanted % 2 == 0})
                assert reader.get([f"{wanted}"])[f"{wanted}"].record == hit.record
                assert sum(1 for _ in reader.keys()) >= before  # noqa: SIM118

    def write(own: int) -> None:
        nonlocal acknowledged
        try:
            for n in range(0, many, 3):
                writer.add(VECTORS[n : n + 3], [Item(str(i), {"even": i % 2 == 0}) for i in range(n, n + 3)])
                acknowledged = n + 3
        finally:
            over.set()

    wrong = in_threads(5, lambda own: ask(own) if own else write(own))
    assert not wrong, wrong[0]
    writer.close()
    reader.close()


@pytest.mark.parametrize("moment", ["Segment", "Records", "Scales", "look"])
@pytest.mark.parametrize("opening", [True, False], ids=["opening", "refreshing"])
def test_the_writer_merges_just_while_a_reader_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, opening: bool
) -> None:
    writer = Index.create(tmp_path / "i", ORIGIN, settings=IndexSettings(precision="int8"))
    writer.add(VECTORS[:20], [str(i) for i in range(20)])
    writer.flush()
    reader = None if opening else Index.open(tmp_path / "i")
    writer.add(VECTORS[20:40], [str(i) for i in range(20, 40)])
    writer.remove(["7"])
    writer.flush()
    done: list[bool] = []

    def meanwhile() -> None:
        if not done:
            done.append(True)
            writer.add(VECTORS[40:50], [str(i) for i in range(40, 50)])
            writer.optimize()
            if reader is not None:  # another thread asks
                other = threading.Thread(target=lambda: len(reader))
                other.start()
                other.join(0.3)

    owner, name = (
        (view, "look")
        if moment == "look"
        else (getattr(view, moment), "from_bytes" if moment == "Scales" else "open")
    )
    if owner is view:
        monkeypatch.setattr(view, "_living", _first(meanwhile, view._living))  # between segments and the tail
    else:
        monkeypatch.setattr(owner, name, _first(meanwhile, getattr(owner, name)))
    if reader is None:
        reader = Index.open(tmp_path / "i")
    first, second = (sorted(map(int, reader.keys())) for _ in range(2))
    assert done
    assert first in ([n for n in range(40) if n != 7], second)  # before the change, or after it
    assert second == [n for n in range(50) if n != 7]
    writer.close()
    reader.close()


def _first(before: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        before()
        return call(*arguments)

    return both


def test_what_an_error_would_deny_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log took it; the segment that should follow finds the disk full."""
    with Index.create(tmp_path / "i", ORIGIN, settings=IndexSettings(flush_at=4)) as writer:
        with monkeypatch.context() as full:
            full.setattr(
                maintenance, "write_records", lambda *_: (_ for _ in ()).throw(InputError("disk: is full"))
            )
            assert writer.add(VECTORS[:5], list("abcde")) == [0, 1, 2, 3, 4]
            assert "stays in the log for now: disk: is full" in caplog.text
            with pytest.raises(InputError, match="disk: is full"):
                writer.flush()
        assert len(Index.open(tmp_path / "i")) == 5
        writer.add(VECTORS[5:6], ["f"])
        assert writer.info()["in_log"] == 0
        assert list(writer.keys()) == list("abcdef")


@pytest.mark.parametrize(
    "value", [float("nan"), 2**64, "a\0b", np.int64(1), {1: 2}], ids=["nan", "huge", "nul", "numpy", "name"]
)
def test_what_no_segment_could_hold_is_not_acknowledged(tmp_path: Path, value: Any) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        with pytest.raises(InputError, match=r"items\[1\] 'b': record\.?x?: "):
            writer.add(
                VECTORS[:2], [Item("a"), Item("b", {"x": value} if not isinstance(value, dict) else value)]
            )
        writer.add(VECTORS[:1], [Item(os.fsdecode(b"\xff"), {"path": os.fsdecode(b"\xff")})])
        writer.flush()
        assert list(writer.keys()) == [os.fsdecode(b"\xff")]


def test_what_a_caller_does_to_an_answer_is_not_stored(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        writer.add(VECTORS[:1], [Item("a", {"tags": ["x"]})])
        hit = writer.search(VECTORS[0])[0]
        hit.record["tags"].append(float("nan"))  # type: ignore[attr-defined]
        writer.flush()
        assert writer.search(VECTORS[0])[0].record == {"tags": ["x"]}


def test_a_k_beyond_all_sense(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        assert writer.search(VECTORS[0], 10**15) == []
        with pytest.raises(InputError, match="at character 3"):
            writer.search(VECTORS[0], where="a ! 1")
        writer.add(VECTORS[:3], list("abc"))
        assert len(writer.search(VECTORS[0], 10**15)) == 3
        writer.flush()
        assert len(writer.search(VECTORS[0], 10**15)) == 3
        with pytest.raises(InputError, match="k: expected 1 or more, got 0"):
            writer.search(VECTORS[0], 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("write", [True, False], ids=["writer", "reader"])
def test_a_child_forked_while_a_thread_holds_the_lock_goes_on_reading(tmp_path: Path, write: bool) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        writer.add(VECTORS[:3], list("abc"))
        index = writer if write else Index.open(tmp_path / "i")
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with index._lock, index._store._lock:
                held.set()
                free.wait()

        other = threading.Thread(target=hold)
        other.start()
        held.wait()
        if not (child := os.fork()):
            signal.alarm(10)  # ends it, should it hang
            fine = [hit.key for hit in index.search(VECTORS[1], 1)] == ["b"] and len(index) == 3
            try:
                index.add(VECTORS[3:4], ["d"])
            except InputError as error:
                os._exit(0 if fine and "cannot be changed" in str(error) else 1)
            os._exit(2)
        free.set()
        other.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        writer.add(VECTORS[3:4], ["d"])
        assert [hit.key for hit in index.search(VECTORS[3], 1)] == ["d"]


def test_removed_ids_are_found_among_rows_like_numpy_finds_them() -> None:
    chance = np.random.default_rng(3)
    for _ in range(300):
        ids, removed = (np.unique(chance.integers(0, 30, chance.integers(0, 12))) for _ in range(2))
        living = view._living(ids, removed)
        want = ~np.isin(ids, removed)
        assert want.all() if living is None else (living == want).all()


def test_a_lone_key_is_no_list_of_letters(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        writer.add(VECTORS[:3], ["1", "2", "12"])
        for ask in (writer.remove, writer.get, writer.vectors):
            with pytest.raises(InputError, match=r"expected a list of keys, got '12'\. One key: \['12'\]"):
                ask("12")
        for what in (1.9, True, None):
            with pytest.raises(InputError, match=f"expected keys and ids, got {what}"):
                writer.remove([what])  # type: ignore[list-item]
        with pytest.raises(InputError, match="expected a condition on what to remove, got None"):
            writer.remove_where(None)
        assert writer.remove(["12", np.int64(0), 2**70, -1]) == 2
        assert list(writer.keys()) == ["2"]


def test_keys_of_several_parts_come_in_the_order_that_was_asked(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", ORIGIN, settings=IndexSettings(precision="fp16")) as writer:
        writer.add(VECTORS[:20], [Item(str(n), {"n": n}) for n in range(20)])
        writer.flush()
        writer.add(VECTORS[20:23], [Item(str(n), {"n": n}) for n in (20, 3, 22)])
        keys = ["22", "5", "3", "19", "20", "5"]
        assert [item.record["n"] for item in writer.get([*keys, "nobody"]).values()] == [22, 5, 3, 19, 20]
        np.testing.assert_allclose(writer.vectors(keys), VECTORS[[22, 5, 21, 19, 20, 5]], atol=1e-3)
        with pytest.raises(InputError, match="no item 'nobody'"):
            writer.vectors(["3", "nobody"])
        assert writer.vectors([]).shape == (0, DIM)


def test_a_relative_path_holds_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Index.create("i", ORIGIN) as writer, Index.open("i") as reader:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        writer.add(VECTORS[:3], list("abc"))
        writer.flush()
        assert list(reader.keys()) == list("abc")


def test_a_record_does_not_pass_for_the_key() -> None:
    hit = Hit("a", 0.5, 3, {"key": "b", "id": "mine", "size": 1})
    assert hit.to_dict() == {
        "key": "a",
        "score": 0.5,
        "id": 3,
        "record.key": "b",
        "record.id": "mine",
        "size": 1,
    }


@pytest.mark.parametrize(
    ("vectors", "items", "message"),
    [
        (VECTORS[:1], [None], r"items\[0\]: expected a key, a record or an Item, got None"),
        (
            VECTORS[:1],
            [Item(["a"])],
            r"items\[0\]: expected a key, a record or an Item, got Item\(key=\['a'\]",
        ),  # type: ignore[arg-type]
        (
            [["x"] * DIM],
            ["a"],
            r"vectors: expected \(1, 16\) numbers, a row for each item \(could not convert",
        ),
        ([[1.0], [1.0, 2.0]], ["a", "b"], r"vectors: expected \(2, 16\) numbers, a row for each item"),
    ],
    ids=range(4),
)
def test_what_is_no_item_and_no_vector(tmp_path: Path, vectors: Any, items: Any, message: str) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        with pytest.raises(InputError, match=message):
            writer.add(vectors, items)
        assert len(writer) == 0
        for k in ("3", 2.5):
            with pytest.raises(InputError, match="k: expected 1 or more, got"):
                writer.search(VECTORS[0], k)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_a_closed_index_lets_go_of_its_files(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", ORIGIN) as writer:
        writer.add(VECTORS[:3], list("abc"))
        writer.flush()
    index = Index.open(tmp_path / "i")
    found = index.search(VECTORS[0])
    index.close()
    mine = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [name for name in mine if str(tmp_path) in name]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert len(found) == 3
    with pytest.raises(InputError, match="is closed"):
        index.search(VECTORS[0])
