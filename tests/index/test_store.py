"""The store by itself: what it refuses, what a reader sees, what is left when something fails."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import snapshot
from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.store import Store
from edgeclip.runtime.index.types import Item, Origin
from edgeclip.runtime.index.verify import find_problems
from tests.index.power import Event, Recorder
from tests.index.shop import DIM, ORIGIN, SETTINGS, Loose, Shop, item, living, vector_of
from tests.mutants import broken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An index with a segment, removed ids, scales and a log, closed."""
    store = Store.create(tmp_path / "pets.index", ORIGIN, SETTINGS, disk=Loose())
    shop = Shop(store, seed=0, clock=0)
    for name in ["add", "flush", "add", "add", "remove", "replace", "flush some", "add", "measured"]:
        shop.do(shop.plan(name))
    store.remove([0])  # of the first segment
    store.commit([], [entry.name for entry in store.manifest.segments], taken=0, scales=b"fitted")
    shop.do(shop.plan("add"))
    store.close()
    return store.path


@pytest.fixture
def writer(path: Path) -> Iterator[Store]:
    store = Store.open(path, write=True, disk=Loose())
    yield store
    store.close()


def put(store: Store, key: str, version: int = 1) -> None:
    store.append(vector_of(key, version)[None], [item(key, version)])


def test_a_reader_sees_what_was_acknowledged(path: Path, writer: Store) -> None:
    class Forbidden(Disk):
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"a reader calls {name}")

    reader = Store.open(path, disk=Forbidden())
    before = living(reader)
    assert before == living(writer)
    assert not reader.refresh()
    put(writer, "a")
    assert reader.refresh()
    assert living(reader) == {**before, "a": 1}
    shop = Shop(writer, seed=1, clock=100)
    for name in ["flush", "merge", "replace", "flush some", "remove", "measured", "merge"]:
        shop.do(shop.plan(name))
        old = living(reader) if name in ("replace", "measured") else None  # its files are there still
        assert reader.refresh(), name
        assert living(reader) == living(writer)
        assert old is None or name != "measured" or old == living(reader)
    assert (reader.generation, reader.scales, reader.manifest) == (
        writer.generation,
        writer.scales,
        writer.manifest,
    )
    assert not reader.refresh()
    assert reader.verify() == []
    with pytest.raises(InputError, match=r"is open for reading\. Open it with write=True"):
        reader.remove([0])
    reader.close()
    with pytest.raises(InputError, match="is closed"):
        reader.refresh()


def test_a_tail_that_was_given_out_does_not_change(writer: Store) -> None:
    put(writer, "a")
    tail = writer.tail
    copy = tail.ids.copy(), tail.vectors.copy(), list(tail.items)
    for i in range(40):
        put(writer, f"b{i}")
    np.testing.assert_array_equal(tail.ids, copy[0])
    np.testing.assert_array_equal(tail.vectors, copy[1])
    assert tail.items == copy[2]
    assert len(writer.tail.ids) == len(copy[0]) + 40
    assert (np.diff(writer.tail.ids) > 0).all()


def test_ids_are_never_given_twice(path: Path) -> None:
    given: list[int] = []
    for i in range(4):
        with_all = Store.open(path, write=True, disk=Loose())
        given += with_all.append(vector_of(f"k{i}", 1)[None], [item(f"k{i}", 1)]).tolist()
        with_all.remove(given)
        with_all.commit([], [], taken=len(with_all.tail.ids))  # nothing is left that could tell
        with_all.close()
    assert given == list(range(given[0], given[0] + 4))
    assert len(Store.open(path).removed) == 0


def test_half_a_record_is_nobodys(path: Path, writer: Store) -> None:
    reader, log = Store.open(path), writer._now.log_path
    before, size = living(reader), log.stat().st_size
    put(writer, "a")
    record = log.read_bytes()[size:]
    for cut in range(0, len(record), 7):
        os.truncate(log, size)
        with log.open("ab") as stream:
            stream.write(record[:cut])
        reader.refresh()
        assert living(reader) == living(Store.open(path)) == before
    with log.open("ab") as stream:
        stream.write(record[cut:])
    assert reader.refresh()
    assert living(reader) == {**before, "a": 1}


def test_a_record_that_was_cut_off_goes_from_readers_too(path: Path) -> None:
    disk = Recorder(path.parent)
    writer, reader = Store.open(path, write=True, disk=disk), Store.open(path)

    def look_and_fail(event: Event) -> None:
        if event.name == "sync":
            reader.refresh()  # it sees the whole record
            disk.fail = lambda _: None
            raise OSError(5, "Input/output error")

    before = living(writer)
    for key in ("a", "bb", "c"):  # of other lengths, and of the same
        disk.fail = look_and_fail
        with pytest.raises(InputError, match=r"cannot be written .Input/output error"):
            put(writer, key, 1)
        assert living(reader) == {**before, key: 1}
        assert living(writer) == before
        put(writer, "b" if key == "a" else "d" * len(key), 2)
        assert reader.refresh()
        before = living(writer)
        assert living(reader) == before
    writer.close()


@pytest.mark.parametrize(
    ("vectors", "items", "removes", "said"),
    [
        (np.ones((1, DIM + 1)), [Item("a")], [], r"expected \(1, 8\), a row for each item, got \(1, 9\)"),
        (np.eye(DIM)[:2], [Item("a")], [], r"got \(2, 8\)"),
        (np.full((1, DIM), np.nan), [Item("a")], [], r"vectors\[0\]: expected length 1, got nan"),
        (np.eye(DIM)[:2] * [[1], [1.01]], [Item("a"), Item("b")], [], r"vectors\[1\]: expected length 1, got 1.01"),
        (np.eye(DIM)[:2], [Item("a"), Item("a")], [], "key 'a' is there twice"),
        (np.eye(DIM)[:1], [Item("")], [], "expected a key"),
        (np.eye(DIM)[:1], [Item("a", {"when": Path()})], [], "record.when"),
        (np.eye(DIM)[:1], [Item("a", {"x": float("nan")})], [], "record.x: nan"),
        (np.empty((0, DIM)), [], [10**6], "removes: expected ids from 0 to"),
        (np.empty((0, DIM)), [], [-1], "removes: expected ids from 0 to"),
    ],
)  # fmt: skip
def test_what_cannot_be_added(
    writer: Store, vectors: np.ndarray, items: list[Item], removes: list[int], said: str
) -> None:
    before = writer._now.log_path.read_bytes()
    with pytest.raises(InputError, match=said):
        writer.append(vectors, items, removes)
    assert writer._now.log_path.read_bytes() == before
    put(writer, "a")


def test_a_full_disk_leaves_the_index_as_it_was(path: Path) -> None:
    class Full(Loose):
        full = True

        def append(self, handle: FileIO, data: bytes) -> None:
            super().append(handle, data[: len(data) // 2] if self.full else data)
            if self.full:
                raise OSError(28, "No space left on device")

    disk = Full()
    writer, reader = Store.open(path, write=True, disk=disk), Store.open(path)
    before, size = living(writer), writer._now.log_path.stat().st_size
    with pytest.raises(InputError, match="No space left on device"):
        put(writer, "a")
    assert writer._now.log_path.stat().st_size == size
    reader.refresh()
    assert living(writer) == living(reader) == before
    disk.full = False
    put(writer, "a")
    writer.close()
    assert living(Store.open(path)) == {**before, "a": 1}


@pytest.mark.parametrize("name", ["flush", "merge", "measured"])
def test_a_commit_that_fails_anywhere_changes_nothing(path: Path, name: str) -> None:
    for number in range(100):
        disk = Recorder(path.parent)
        writer = Store.open(path, write=True, disk=disk)
        shop, before, events = Shop(writer, seed=0, clock=500), living(writer), len(disk.events)

        def fail(event: Event, last: int = events + number, disk: Recorder = disk) -> None:
            if len(disk.events) == last and event.name not in ("unlink", "rmdir"):
                disk.events.append(event)
                raise OSError(28, "No space left on device")

        disk.fail = fail
        try:
            shop.do(shop.plan(name))
            break
        except InputError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
        finally:
            assert living(writer) == living(Store.open(path)) == before
            disk.fail = lambda _: None
            if writer.writable:
                put(writer, "goes on")
                shop.do(
                    shop.plan("measured" if name == "measured" else "merge")
                )  # one segment: the disk here is slow
                writer.remove([writer._now.next_id - 1])
            else:  # its rename was not synced: nobody knows
                assert disk.events[-1].name == "sync_folder"
            writer.close()
            assert find_problems(path) == []
    assert number > (3 if name == "measured" else 10)


def test_only_one_writes(path: Path, writer: Store) -> None:
    for opening in (
        lambda: Store.open(path, write=True),
        lambda: Store.create(path, ORIGIN, SETTINGS, overwrite=True),
    ):
        with pytest.raises(InputError, match=f"process {os.getpid()} writes to this index, and only one may"):
            opening()
    writer.close()
    Store.open(path, write=True, disk=Loose()).close()


def test_threads_take_turns(writer: Store) -> None:
    before, given = living(writer), list[int]()

    def work(name: str) -> None:
        for i in range(15):
            given.extend(writer.append(vector_of(f"{name}{i}", 1)[None], [item(f"{name}{i}", 1)]))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 45
    assert living(writer) == {**before, **{f"{name}{i}": 1 for name in "abc" for i in range(15)}}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_does_not_write(path: Path, writer: Store) -> None:
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            put(writer, "a")
        except InputError as error:
            os.write(write, f"{error} {len(living(writer))}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    said = os.read(read, 1000).decode()
    os.close(read)
    assert "belongs to the process that this one was forked from" in said
    assert said.endswith(f" {len(living(writer))}")
    with pytest.raises(InputError, match="only one may"):  # the child took no lock along
        Store.open(path, write=True)
    put(writer, "a")


def test_a_writer_clears_what_nobody_names(path: Path) -> None:
    kept = {p for p in path.rglob("*") if p.is_file()}
    for name in (
        "logs/99.log",
        "removed-99.bin",
        "scales-99.safetensors",
        "index.json.tmp",
        "segments/99-x/deep/a",
        "segments/file",
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    (path / "segments/link").symlink_to(path.parent)
    (path / "notes.txt").write_text("the user's")
    Store.open(path).close()
    assert (path / "logs/99.log").exists()  # a reader does not
    Store.open(path, write=True, disk=Loose()).close()
    assert {p for p in path.rglob("*") if p.is_file()} == kept | {path / "notes.txt"}
    assert path.parent.exists()


def test_where_an_index_can_be_made(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already an index\. Add to it"):
        Store.create(path, ORIGIN, SETTINGS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    for place in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(InputError, match="already exists and is no index"):
            Store.create(place, ORIGIN, SETTINGS, overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()
    (path / "index.json").unlink()  # as a crash leaves it that came too early
    Store.create(path, ORIGIN, SETTINGS, disk=Loose()).close()
    assert living(Store.open(path)) == {}
    Store.create(tmp_path / "new" / "folders" / "a.index", ORIGIN, SETTINGS, disk=Loose()).close()


def test_readers_see_the_old_index_until_the_new_one_is_there(path: Path) -> None:
    reader, other = Store.open(path), Store.open(path)
    before = living(reader)
    disk = Recorder(path.parent)
    disk.fail = lambda event: full() if event.name == "rename" else None
    with pytest.raises(InputError, match="No space left on device"):
        Store.create(path, ORIGIN, SETTINGS, overwrite=True, disk=disk)
    assert not reader.refresh()
    assert living(reader) == before
    Store.create(path, ORIGIN, SETTINGS, overwrite=True, disk=Loose()).close()
    assert reader.refresh()
    assert living(reader) == {}
    Store.create(path, Origin("2" * 64, "other", DIM), SETTINGS, overwrite=True, disk=Loose()).close()
    with pytest.raises(InputError, match=r"was replaced by an index of model other\. Open it again"):
        other.refresh()


def full() -> None:
    raise OSError(28, "No space left on device")


def test_a_commit_between_two_looks_of_a_reader(
    path: Path, writer: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that a manifest names go while they are looked at: then there is a newer one."""
    shop, commits, look = Shop(writer, seed=0, clock=500), iter(range(3)), snapshot._check_files

    def check(*args: object) -> None:
        if next(commits, None) is not None:
            monkeypatch.setattr(snapshot, "_check_files", look)
            shop.do(shop.plan("add"))
            shop.do(shop.plan("merge"))
            monkeypatch.setattr(snapshot, "_check_files", check)
        look(*args)  # type: ignore[arg-type]

    reader = Store.open(path)
    shop.do(shop.plan("flush"))
    monkeypatch.setattr(snapshot, "_check_files", check)
    assert reader.refresh()
    assert living(reader) == living(writer)


def damage(path: Path, how: str) -> Path:
    """Of the segment's vectors."""
    file = max(path.glob("segments/*/vectors.bin"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    if how == "short":
        file.write_bytes(data[:-1])
    elif how == "zeros":
        file.write_bytes(data[:-8] + bytes(8))
    elif how == "other beginning":
        file.write_bytes(b"other" + data[5:])
    elif how == "link":
        file.rename(file.with_name("real"))
        file.symlink_to("real")
    else:
        file.unlink()
    return file


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("short", r"expected \d+ bytes, got \d+"),
        ("zeros", "its first or last bytes are not those that were written"),
        ("other beginning", "its first or last bytes are not those that were written"),
        ("link", "expected a file, got a link"),
        ("gone", "missing"),
    ],
)
def test_opening_finds_a_damaged_file(path: Path, how: str, said: str) -> None:
    file = damage(path, how)
    for write in (False, True):
        with pytest.raises(InputError, match=f"{file.name}: {said}.*edgeclip index verify"):
            Store.open(path, write=write)
    problems = find_problems(path)
    assert len(problems) == 1
    assert str(file) in problems[0]


def test_verify_reads_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.runtime.index.manifest.ENDS", 1)
    store = Store.create(tmp_path / "pets.index", ORIGIN, SETTINGS, disk=Loose())
    shop, path = Shop(store, seed=0, clock=0), store.path
    for name in ["add", "add", "add", "merge"]:
        shop.do(shop.plan(name))
    store.remove([0])
    store.commit([], [entry.name for entry in store.manifest.segments], taken=0)
    store.close()
    for file in sorted(
        p for p in path.rglob("*") if p.suffix in (".bin", ".json") and p.name != "index.json"
    ):
        data = file.read_bytes()
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        reader = Store.open(path) if file.parent != path else None  # a large file's middle is not looked at
        problems = find_problems(path)
        assert [file.name in problem for problem in problems] == [True]
        assert reader is None or reader.verify() == problems
        file.write_bytes(data)
    assert find_problems(path) == []


def test_verify_compares_ids(path: Path, writer: Store) -> None:
    folder = writer.new_segment()
    number = int(writer.tail.ids[0])
    (folder / "ids.bin").write_bytes(np.array([number], "<i8").tobytes())
    writer.commit([folder], [entry.name for entry in writer.manifest.segments], taken=0)
    assert "an id stands in two places" in find_problems(path)[0]
    (late := writer.new_segment()).joinpath("ids.bin").write_bytes(np.array([5, 4], "<i8").tobytes())
    writer.commit([late], [], taken=len(writer.tail.ids))
    assert "its ids do not ascend" in find_problems(path)[0]
    (late := writer.new_segment()).joinpath("ids.bin").write_bytes(np.array([10**6], "<i8").tobytes())
    writer.commit([late], [], taken=0)
    assert "an id that was never given" in find_problems(path)[0]


def test_segments_that_cannot_be_published(writer: Store) -> None:
    before = living(writer)
    with pytest.raises(InputError, match=r"a segment without ids\.bin"):
        writer.commit([writer.new_segment()], [], taken=0)
    with pytest.raises(InputError, match="holds no segment 'x'"):
        writer.commit([], ["x"], taken=0)
    assert living(writer) == before


def flips(data: bytes, every: int) -> Iterator[tuple[int, bytes]]:
    for i in range(0, len(data), every):
        yield i, data[:i] + bytes([data[i] ^ (1 << (i % 8))]) + data[i + 1 :]


def test_no_flipped_bit_of_a_log_goes_unseen(path: Path) -> None:
    """Of a writer that has closed: its seal stands behind the last change."""
    reader = Store.open(path)
    log, before = reader._now.log_path, living(reader)
    data, lost = log.read_bytes(), 0
    for _, changed in flips(data, 5):
        log.write_bytes(changed)
        try:
            found = Store.open(path)
            lost += (found.tail.ids.tolist(), found.removed.tolist()) != (
                reader.tail.ids.tolist(),
                reader.removed.tolist(),
            )
        except InputError as error:
            assert str(log) in str(error)  # noqa: PT017
    assert lost == 0
    log.write_bytes(data[: data.rfind(b"\xabECrec")])
    assert living(Store.open(path)) == before  # the seal itself may go


def test_without_a_seal_damage_to_the_last_record_looks_like_a_crash(path: Path) -> None:
    """What the seal is for."""
    log, before = Store.open(path)._now.log_path, living(Store.open(path))
    data = log.read_bytes()
    data = data[: data.rfind(b"\xabECrec")]
    log.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert len(living(Store.open(path))) < len(before)


def edited(**changes: object) -> Callable[[dict[str, object]], None]:
    return lambda data: data.update(changes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited(format="edgeclip.bundle"), 'expected "format": "edgeclip.index"'),
        (edited(version=2), "index version 2, this edgeclip reads 1. Install a newer edgeclip"),
        (edited(version="1"), "index version '1'"),
        (edited(next_id=10**6), "does not match its own digest"),
        (lambda data: data.pop("digest"), "does not match its own digest"),
    ],
)
def test_a_manifest_that_is_none(path: Path, edit: Callable[[dict[str, object]], None], said: str) -> None:
    data = json.loads((path / "index.json").read_text())
    edit(data)
    (path / "index.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"index.json: .*{said}"):
        Store.open(path)
    assert len(find_problems(path)) == 1


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited(log="1"), "log: expected int, got '1'"),
        (edited(more=1), "unknown field 'more'"),
        (lambda data: data.pop("next_id"), "a field is missing"),
        (edited(settings={"precision": "fp8"}), "precision: expected one of"),
        (edited(settings={"connectivity": 0}), "connectivity: expected 1 or more, got 0"),
        (edited(removed="other.bin"), "'other.bin' cannot be"),
        (lambda data: data["segments"][0].update(name="../../x"), "'../../x' cannot be"),
        (lambda data: data["segments"][0].update(count=7_000), "cannot be"),
        (lambda data: data["segments"].append(data["segments"][0]), "its fields contradict each other"),
        (
            lambda data: data["files"].update({"/etc/passwd": data["files"][data["removed"]]}),
            "'/etc/passwd' cannot be",
        ),
    ],
)
def test_a_manifest_with_a_wrong_field(
    path: Path, edit: Callable[[dict[str, object]], None], said: str
) -> None:
    from edgeclip.runtime.index.manifest import _digest

    data = json.loads((path / "index.json").read_text())
    del data["digest"]
    edit(data)
    (path / "index.json").write_text(json.dumps({**data, "digest": _digest(data)}))
    with pytest.raises(InputError, match=f"index.json: .*{said}.*edgeclip index verify"):
        Store.open(path)


def test_no_flipped_bit_of_a_manifest_goes_unseen(path: Path) -> None:
    before = Store.open(path).manifest
    for _, changed in flips((path / "index.json").read_bytes(), 17):
        (path / "index.json").write_bytes(changed)
        try:
            assert Store.open(path).manifest == before  # a space became a tab
        except InputError as error:
            assert "index.json" in str(error)  # noqa: PT017


def test_no_index(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    for write in (False, True):
        with pytest.raises(InputError, match=r"is no index: it holds no index\.json\. Make one with"):
            Store.open(tmp_path / "photos", write=write)
        for name in ("nowhere", "a.jpg"):
            with pytest.raises(InputError, match="no such index"):
                Store.open(tmp_path / name, write=write)
    assert list((tmp_path / "photos").iterdir()) == []


def test_another_log_in_its_place(path: Path) -> None:
    log = Store.open(path)._now.log_path
    other = Store.create(path.parent / "b.index", ORIGIN, SETTINGS, disk=Loose())
    log.write_bytes(other._now.log_path.read_bytes())
    with pytest.raises(InputError, match="does not begin as this index's log does"):
        Store.open(path)


def test_the_checks_have_teeth(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that forgets what it read last takes half of one record and half of another."""
    monkeypatch.setattr(
        snapshot.log,
        "read",
        broken(snapshot.log.read, "if data[: len(start.mark)] != start.mark:", "if False:"),
    )
    with pytest.raises((AssertionError, InputError)):
        test_a_record_that_was_cut_off_goes_from_readers_too(path)


def test_an_interrupted_append_leaves_no_doubt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the record's sync and what the writer remembers of it: the next id must not be given twice."""
    writer = Store.open(path, write=True, disk=Loose())
    before = living(writer)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer._now, "take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            put(writer, "a")
    with pytest.raises(InputError, match=r"was interrupted while it wrote\. Open it again"):
        put(writer, "b")
    writer.close()
    again = Store.open(path, write=True, disk=Loose())
    put(again, "b")
    again.close()
    assert living(Store.open(path)) == {**before, "b": 1}
