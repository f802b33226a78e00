"""The store: what goes in comes out the same, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bundle import Bundle, open_bundle, pack_zip
from edgeclip.errors import EngineError, InputError
from edgeclip.files import write_file
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.tensorrt import records
from edgeclip.runtime.tensorrt.caches import read_cache, write_cache
from edgeclip.runtime.tensorrt.key import machine_key, write_sealed
from edgeclip.runtime.tensorrt.record import Record
from edgeclip.runtime.tensorrt.records import name_of
from edgeclip.runtime.tensorrt.store import Store, default_folder, store_of
from tests.runtime.tensorrt.kept import CARD, OPTIONS, PLAN, RTX, files, library, paths, proper, record_of
from tests.runtime.toy import make_bundle

Json = Any


@pytest.fixture
def kept(store: Store, toy: Bundle) -> Record:
    """One engine of the store."""
    return store.put(record_of(toy), PLAN)


def refused(store: Store, record: Record, said: str) -> None:
    """One line that says why and how to build it again; nothing is found either."""
    with pytest.raises(EngineError, match=said) as caught:
        store.plan(record, RTX, CARD)
    message = str(caught.value)
    assert "\n" not in message
    assert f"Run: edgeclip build {shlex.quote(str(store.bundle.root))} --target tensorrt-rtx" in message  # type: ignore[union-attr]


def test_what_goes_in_comes_out(store: Store, toy: Bundle) -> None:
    record = store.put(record_of(toy), PLAN)
    assert (record.size, record.sha256) == (len(PLAN), hashlib.sha256(PLAN).hexdigest())
    assert record.platform
    assert record.created
    assert replace(record, size=0, sha256="", platform="", created="") == record_of(toy)
    assert store.records() == store.find() == [record]
    assert store.plan(record) == store.plan(record, RTX, CARD) == PLAN
    assert store.take(record.variant, RTX, CARD) == (record, PLAN)
    assert store.local_variants(name="tensorrt-rtx") == [record.variant]
    assert store.local_variants(name="tensorrt") == []
    assert store.problems() == []


def test_the_folder_and_its_files_are_this_users(store: Store, kept: Record) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}
    record, plan = paths(store, kept)
    assert files(store) == sorted([record.name, plan.name])
    assert json.loads(record.read_text())["record"]["sha256"] == kept.sha256


def test_nothing_is_made_by_looking(store: Store, toy: Bundle) -> None:
    assert store.records() == store.problems() == store.local_variants() == []
    with pytest.raises(
        EngineError, match=r"no engine of image-fp32 for tensorrt-rtx 1\.7\.1\.116 on NVIDIA RTX A4000"
    ):
        store.take(toy.manifest.variants[0], RTX, CARD)
    assert store.clear() == 0
    assert not store.folder.exists()


def test_the_same_facts_replace_and_others_lie_beside(store: Store, toy: Bundle) -> None:
    old = store.put(record_of(toy), PLAN)
    new = store.put(record_of(toy, seconds=1.0, notes=()), PLAN + b"2")
    assert store.records() == [new]
    assert len(files(store)) == 2
    with pytest.raises(EngineError, match="another engine took its place"):
        store.plan(old)
    beside = [
        store.put(record_of(toy, options=replace(OPTIONS, tf32=True)), b"3"),
        store.put(record_of(toy, tower=1), b"4"),
        store.put(record_of(toy, version="1.7.2.1"), b"5"),
        store.put(record_of(toy, options=replace(OPTIONS, archs=("sm89",))), b"6"),
        store.put(record_of(toy, options=replace(OPTIONS, profiles=({"N": (1, 8, 33)},))), b"7"),
        store.put(proper(toy), b"8"),
        store.put(proper(toy, device=replace(CARD, name="NVIDIA L4", capability=(8, 9))), b"9"),
    ]
    assert store.records() == [*reversed(beside), new], "newest first"
    assert [store.plan(record) for record in beside] == [b"%d" % i for i in range(3, 10)]
    assert len(files(store)) == 16


def test_find_asks_for_what_is_asked(store: Store, toy: Bundle) -> None:
    image, text = store.put(record_of(toy), b"1"), store.put(record_of(toy, tower=1), b"2")
    old, own = store.put(record_of(toy, version="1.6.0.1"), b"3"), store.put(proper(toy), b"4")
    assert store.find() == [own, old, text, image]
    assert store.find(name="tensorrt") == store.find(library=library("10.3.0.30")) == [own]
    assert store.find(library=RTX) == [text, image]
    assert (
        store.find(library=RTX, variant="image-fp32")
        == store.find(library=RTX, variant=image.variant)
        == [image]
    )
    assert store.find(options=own.options) == [own]
    assert store.find(graphs=text.graphs) == [text]
    assert store.find(device=replace(CARD, capability=(7, 5))) == []
    assert store.local_variants(name="tensorrt-rtx") == [image.variant, text.variant], "newest engine first"
    paths(store, text)[1].unlink()
    with pytest.raises(EngineError, match="missing"):
        store.take(text.variant, RTX, CARD)
    assert store.problems() == [
        f"{store.plan_path(text)}: missing, or not of the 1 bytes that its record says."
    ]


def test_a_plan_is_written_without_a_copy(store: Store, toy: Bundle) -> None:
    plan = memoryview(bytearray(32 << 20))
    tracemalloc.start()
    try:
        record = store.put(record_of(toy), plan)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.reset_peak()
        assert len(store.plan(record)) == 32 << 20
        assert tracemalloc.get_traced_memory()[1] < 34 << 20
    finally:
        tracemalloc.stop()


def test_what_a_dead_builder_left_makes_room_first(
    store: Store, kept: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = store.folder / f".{store.plan_path(kept).name}.x1y2z3"
    half.write_bytes(PLAN)
    written = []

    def write(path: Path, data: bytes | memoryview, *, private: bool) -> None:
        written.append(half.exists())
        write_file(path, data, private=private)

    monkeypatch.setattr("edgeclip.runtime.tensorrt.store.write_file", write)
    store.put(kept, PLAN)
    assert written == [False]


def test_names_tell_apart_what_is_apart(store: Store, toy: Bundle) -> None:
    record = record_of(toy)
    named = [record_of(toy, variant=replace(record.variant, id=each)) for each in ("a/b", "a_b", "a.b")]
    graphs = [record_of(toy, graphs={"graphs/image-fp32.onnx": each * 64}) for each in "ab"]
    bundles = [replace(record, bundle=each * 64) for each in "ab"]
    assert len({name_of(each) for each in [record, *named, *graphs, *bundles]}) == 8
    proofs = replace(record, fidelity=None, engine=None, notes=(), seconds=9.0, created="now", sha256="0")
    assert name_of(proofs) == name_of(record)


# --- tampering


def leaves(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    """Every value of the record that is no container, and every empty one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner or not value:
        yield path, value
    for key, each in inner:
        yield from leaves(each, (*path, key))


def other(value: Json) -> Json:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else 1 if value is None else ["x"]


def test_no_field_of_a_record_can_be_changed(store: Store, toy: Bundle) -> None:
    record = store.put(record_of(toy, device=CARD), PLAN)
    path = paths(store, record)[0]
    raw = path.read_bytes()
    mac = raw.rpartition(b"mac")[2]
    every = list(leaves(json.loads(raw)["record"]))
    assert len(every) > 60
    for where, value in every:
        data = json.loads(raw)
        target = data["record"]
        for key in where[:-1]:
            target = target[key]
        target[where[-1]] = other(value)
        text = json.dumps({key: data[key] for key in ("format", "version", "record")}, indent=1)
        path.write_bytes(text.removesuffix("\n}").encode() + b',\n "mac' + mac)
        assert json.loads(path.read_bytes()) == data, "the rest is as it was"
        assert store.records() == [], where
        refused(store, record, "not sealed with the key of this machine")
    path.write_bytes(raw)
    assert store.plan(record) == PLAN


def test_damaged_records_are_passed_over_whatever_the_damage(store: Store, kept: Record) -> None:
    """Nothing but a refusal ever comes out."""
    path = paths(store, kept)[0]
    raw, dice = path.read_bytes(), random.Random(5)
    for _ in range(400):
        damaged = bytearray(raw)
        for _ in range(dice.choice((1, 1, 1, 2, 8))):
            damaged[dice.randrange(len(raw))] ^= dice.randrange(1, 256)
        if dice.random() < 0.3:
            damaged = damaged[: dice.randrange(len(raw))]
        path.write_bytes(damaged)
        assert store.records() == []
        assert len(store.problems()) == 1
        with pytest.raises(EngineError):
            store.plan(kept, RTX, CARD)


def test_what_is_passed_over_is_said_once(
    store: Store, kept: Record, caplog: pytest.LogCaptureFixture
) -> None:
    paths(store, kept)[0].write_bytes(b"{}")
    assert store.find() == store.find() == store.local_variants() == []
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert f"{paths(store, kept)[0]}: not sealed with the key of this machine" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"format": "edgeclip.engine", "version": 1, "record": {}, "record": {}}',
        b'{"format": "edgeclip.engine", "version": 1, "record": {"size": NaN}}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"mac": ""}',
        b',\n "mac": "',
        b"\xff\xfe\x00",
        b" " * ((1 << 20) + 1),
    ],
    ids=range(11),
)
def test_other_json_is_passed_over(store: Store, kept: Record, content: bytes) -> None:
    path = paths(store, kept)[0]
    path.write_bytes(content)
    assert store.records() == []
    (problem,) = store.problems()
    assert problem.startswith(f"{path}: ")
    assert len(problem) < 500
    refused(store, kept, "not sealed|expected at most")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{\n "version": 2, "record": {}', "version 2 of edgeclip.engine, this edgeclip reads 1. Build the"),
        (b'{\n "record": {}', "version None of edgeclip.engine"),
        (b'{\n "version": 1, "record": {"future": 1}', "unknown field 'future'. Build the engine again."),
        (b'{\n "version": 1, "record": {"size": "3"}', "Build the engine again."),
        (b'{\n "version": 1, "record": null', "expected an object, got None. Build the engine again."),
    ],
)
def test_records_of_another_edgeclip_on_this_machine(
    store: Store, kept: Record, body: bytes, said: str
) -> None:
    write_sealed(paths(store, kept)[0], body, "edgeclip.engine")
    assert store.records() == []
    assert said in store.problems()[0]
    refused(store, kept, re.escape(said))


@pytest.mark.parametrize("at", [0, 1, 2047, len(PLAN) - 1])
def test_no_byte_of_a_plan_can_be_changed(store: Store, kept: Record, at: int) -> None:
    path = paths(store, kept)[1]
    path.write_bytes(PLAN[:at] + bytes([PLAN[at] ^ 1]) + PLAN[at + 1 :])
    refused(store, kept, "not the 4096 bytes that were built: changed or cut short")


def _link(path: Path, how: Callable[[Path, Path], None]) -> None:
    path.rename(path.with_name("aside"))
    how(path.with_name("aside"), path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(PLAN[:-1]), "cut short"),
        (lambda path: path.write_bytes(b""), "cut short"),
        (lambda path: path.write_bytes(PLAN + b"\0"), "4097 bytes, expected at most 4096"),
        (lambda path: path.write_bytes(PLAN[::-1]), "changed or cut short"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.chmod(0o620), "other users may write to it"),
        (lambda path: path.chmod(0o602), "other users may write to it"),
        (lambda path: _link(path, lambda a, b: b.symlink_to(a)), "is a symbolic link"),
        (lambda path: _link(path, lambda a, b: b.hardlink_to(a)), "is a link or a special file"),
        (lambda path: _link(path, lambda a, b: b.mkdir()), "is a link or a special file"),
        (lambda path: _link(path, lambda a, b: os.mkfifo(b)), "is a link or a special file"),
    ],
)
def test_a_plan_is_a_plain_file_of_this_user(
    store: Store, kept: Record, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(paths(store, kept)[1])
    refused(store, kept, said)


def test_a_folder_in_which_others_may_write_is_refused(store: Store, kept: Record) -> None:
    store.folder.chmod(0o770)
    assert store.records() == []
    (problem,) = store.problems()
    assert "other users may write in it (mode 0770), and engines are code. Run: chmod go-w" in problem
    with pytest.raises(EngineError, match="other users may write in it"):
        store.put(kept, PLAN)
    subprocess.run(shlex.split(problem.rpartition("Run: ")[2]), check=True)
    assert store.records() == [kept]


def test_another_users_folder_is_refused(store: Store, kept: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_key()
    if os.geteuid() == 0:  # root's are everybody's, so give it away
        os.chown(store.folder, 12345, -1)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert store.records() == []
    assert "belongs to user" in store.problems()[0]
    with pytest.raises(EngineError, match="belongs to user"):
        store.prepare()


def test_swapped_plans_are_refused(store: Store, toy: Bundle) -> None:
    image, text = store.put(record_of(toy), PLAN), store.put(record_of(toy, tower=1), PLAN[::-1])
    one, two = paths(store, image)[1], paths(store, text)[1]
    aside = one.with_name("aside")
    one.rename(aside), two.rename(one), aside.rename(two)
    refused(store, image, "changed or cut short")
    refused(store, text, "changed or cut short")


def test_swapped_and_renamed_records_are_refused(store: Store, toy: Bundle) -> None:
    image, text = store.put(record_of(toy), PLAN), store.put(record_of(toy, tower=1), PLAN[::-1])
    shutil.copy(paths(store, image)[0], paths(store, text)[0])
    assert store.records() == [image]
    assert "does not follow from its content" in store.problems()[0]
    refused(store, text, "does not follow from its content")


def test_an_engine_of_another_bundle_is_not_this_ones(store: Store, toy: Bundle, tmp_path: Path) -> None:
    other_bundle = make_bundle(tmp_path / "other", name="other")
    assert other_bundle.digest != toy.digest
    theirs = Store(store.folder, other_bundle)
    record = theirs.put(record_of(other_bundle), PLAN)
    assert theirs.find() == Store(store.folder).find() == [record]
    assert store.records() == store.find() == store.local_variants() == []
    with pytest.raises(EngineError, match=f"built for bundle {other_bundle.digest[:12]}, this one is"):
        store.plan(record)


def test_an_engine_of_another_machine_is_refused(
    store: Store, kept: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store.folder, tmp_path / "carried")
    (tmp_path / "carried").chmod(0o700)
    key = machine_key()
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "device"))
    device = store_of(store.bundle, EngineOptions(engines=tmp_path / "carried"))  # type: ignore[arg-type]
    assert device.records() == []
    assert "no engine key" in device.problems()[0]
    machine_key(create=True)
    assert "not sealed with the key of this machine" in device.problems()[0]
    with pytest.raises(EngineError, match=r"not sealed .* -o .*carried"):
        device.plan(kept)
    with pytest.raises(EngineError, match=r"no engine of image-fp32 .* not sealed with the key"):
        device.take(kept.variant, RTX, CARD)
    carried = tmp_path / "engine.key"  # the key travels too
    carried.write_bytes(key)
    carried.chmod(0o600)
    monkeypatch.setenv("EDGECLIP_ENGINE_KEY", str(carried))
    assert device.take(kept.variant, RTX, CARD) == (kept, PLAN)


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ((library("1.7.1.115", "tensorrt-rtx"), CARD), "built by tensorrt-rtx 1.7.1.116, this is 1.7.1.115"),
        ((library("10.3.0.30"), CARD), "built by tensorrt-rtx, opened by tensorrt"),
        ((RTX, replace(CARD, capability=(7, 5))), "built for sm86, sm89, this is NVIDIA RTX A4000"),
    ],
)
def test_what_does_not_fit_is_neither_found_nor_given_out(
    store: Store, kept: Record, here: tuple[Any, Any], said: str
) -> None:
    assert store.find(library=here[0], device=here[1]) == []
    with pytest.raises(EngineError, match=re.escape(said)):
        store.plan(kept, *here)
    with pytest.raises(EngineError, match=re.escape(f"One was {said}")):
        store.take(kept.variant, *here)


def test_another_platform(store: Store, kept: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    refused(store, kept, r"built on \S+, this is \S+-riscv64")


# --- graphs


def test_a_stripped_plan_needs_its_graph(cache: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    store = store_of(bundle, EngineOptions())
    stripped = store.put(record_of(bundle, options=replace(OPTIONS, strip_weights=True)), PLAN)
    whole = store.put(record_of(bundle), PLAN)
    graph = bundle.path(bundle.manifest.variants[0].files[0])
    assert store.graph(stripped) == graph
    raw = graph.read_bytes()
    graph.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused(store, stripped, "not what the engine was built from")
    assert store.plan(whole) == PLAN, "which holds its own weights"
    graph.unlink()
    refused(store, stripped, r"onnx: cannot be read \(No such file or directory\)")


def test_a_graph_that_was_made_beside_its_engine(store: Store, toy: Bundle) -> None:
    store.prepare()
    graph = store.folder / "graphs" / "image-fp16.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"graph")
    name = "graphs/image-fp16.onnx"
    variant = replace(toy.manifest.variants[0], id="image-fp16", files=(name,))
    graphs = {name: hashlib.sha256(b"graph").hexdigest()}
    record = store.put(record_of(toy, variant=variant, graphs=graphs, made_from="image-fp32"), PLAN)
    assert store.take(variant, RTX, CARD) == (record, PLAN)
    assert store.graph(record) == graph
    graph.write_bytes(b"grapf")
    with pytest.raises(EngineError, match="not what the engine was built from"):
        store.graph(record)
    graph.write_bytes(b"graph")
    graph.rename(graph.with_name("aside"))
    graph.symlink_to("aside")
    with pytest.raises(EngineError, match="not what the engine was built from"):
        store.graph(record)
    assert store.clear() > len(PLAN)
    assert files(store) == []


# --- places


def test_a_folder_of_the_users_choice(cache: Path, toy: Bundle, tmp_path: Path) -> None:
    store = store_of(toy, EngineOptions(engines=tmp_path / "deep" / "engines"))
    record = store.put(record_of(toy), PLAN)
    assert store.plan(record) == PLAN
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    paths(store, record)[1].unlink()
    refused(store, record, f"missing. Run: .* --precision fp32 --arch sm86,sm89 -o {store.folder}$")


def test_a_folder_that_the_environment_names(
    cache: Path, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_ENGINES", str(tmp_path / "named"))
    store_of(toy, EngineOptions()).put(record_of(toy), PLAN)
    assert len(store_of(toy, EngineOptions(engines=tmp_path / "named")).records()) == 1
    assert store_of(toy, EngineOptions(engines=tmp_path / "other")).records() == []
    assert not (cache / toy.digest).exists()


def test_a_zipped_bundle_has_the_same_engines(
    cache: Path, store: Store, kept: Record, tmp_path: Path
) -> None:
    pack_zip(store.bundle, tmp_path / "toy.zip")  # type: ignore[arg-type]
    zipped = store_of(open_bundle(tmp_path / "toy.zip"), EngineOptions())
    assert zipped.folder == store.folder
    assert zipped.take(kept.variant, RTX, CARD) == (kept, PLAN)


@pytest.mark.parametrize("inside", ["", "engines", "a/b"])
def test_a_bundle_is_no_place_for_engines(cache: Path, toy: Bundle, inside: str) -> None:
    with pytest.raises(EngineError, match="inside a bundle, which never changes"):
        Store(toy.root / inside, toy).prepare()


def test_a_place_that_cannot_be_written(store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk: what is there is loaded, nothing is written down."""
    kept = store.put(record_of(toy, fidelity=None), PLAN)
    write_cache(store.folder, "runtime", b"kernels", "a")
    opened = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    assert store.take(kept.variant, RTX, CARD) == (kept, PLAN)
    assert read_cache(store.folder, "runtime", "a") == b"kernels"
    assert store.update(replace(kept, fidelity=record_of(toy).fidelity)) is False
    assert store.records() == [kept]
    for write in (store.prepare, lambda: store.put(kept, PLAN), store.clear, lambda: store.remove(kept)):
        with pytest.raises(EngineError, match=r"cannot be written \(Read-only file system\)"):
            write()
    with pytest.raises(InputError, match="Read-only file system"):
        write_cache(store.folder, "runtime", b"more", "a")


def test_a_place_that_cannot_be_made(cache: Path, toy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "engines"):
        with pytest.raises(EngineError, match=r"cannot be made \(Not a directory\)|expected a folder"):
            Store(folder, toy).put(record_of(toy), PLAN)
        assert Store(folder, toy).records() == []


@pytest.mark.parametrize("variant", ["../../escaped", "a/b", ".hidden", "x" * 300, "größe", "a\nb"])
def test_no_id_of_a_bundle_leaves_the_folder(store: Store, toy: Bundle, variant: str) -> None:
    named = replace(toy.manifest.variants[0], id=variant)
    free = Store(store.folder)
    record = free.put(record_of(toy, variant=named), PLAN)
    assert free.records() == [record]
    assert free.plan(record) == PLAN
    assert len(files(free)) == 2


# --- later


def test_what_is_learnt_of_an_engine_is_written_down(store: Store, toy: Bundle) -> None:
    kept = store.put(record_of(toy, fidelity=None, engine=None), PLAN)
    proved = replace(kept, fidelity=record_of(toy).fidelity, engine=record_of(toy).engine, notes=("slow",))
    assert store.update(proved) is True
    assert store.records() == [proved]
    assert store.plan(proved) == store.plan(kept) == PLAN
    with pytest.raises(EngineError, match="another engine took its place"):
        store.update(replace(proved, sha256="0" * 64))
    with pytest.raises(EngineError, match="missing"):
        store.update(replace(proved, version="2.0.0.0"))
    store.remove(proved)
    with pytest.raises(EngineError, match="missing"):
        store.update(proved)
    assert files(store) == []


def test_clearing_leaves_what_is_anothers(cache: Path, toy: Bundle, tmp_path: Path) -> None:
    shared = tmp_path / "engines"
    bundle = make_bundle(tmp_path / "other", name="other")
    mine, theirs = Store(shared, toy), Store(shared, bundle)
    mine.put(record_of(toy), PLAN)
    record = theirs.put(record_of(bundle), PLAN)
    (shared / "notes.json").write_text("a user's own")
    (shared / "graphs").mkdir()
    for name in ("one", "both"):
        (shared / "graphs" / name).write_bytes(b"graph")
    digest = hashlib.sha256(b"graph").hexdigest()
    for each, bundle_, names in ((mine, toy, ("one", "both")), (theirs, bundle, ("both",))):
        graphs = {f"graphs/{name}": digest for name in names}
        made = replace(bundle_.manifest.variants[0], id="image-bf16", files=tuple(graphs))
        each.put(record_of(bundle_, variant=made, graphs=graphs, made_from="image-fp32"), PLAN)
    assert mine.clear() > 2 * len(PLAN)
    assert len(theirs.records()) == 2
    assert [path.name for path in (shared / "graphs").iterdir()] == ["both"]
    assert (shared / "notes.json").exists()
    assert theirs.plan(record) == PLAN


def test_a_bundles_own_folder_is_cleared_of_everything(store: Store, kept: Record) -> None:
    assert store.folder == default_folder(store.bundle)  # type: ignore[arg-type]
    write_cache(store.folder, "timing", b"x", "a")
    (store.folder / "onnxruntime" / "a").mkdir(parents=True)
    (store.folder / "onnxruntime" / "a" / ".lock").write_bytes(b"")
    paths(store, kept)[0].write_bytes(b"forged")
    assert store.clear() > len(PLAN)
    assert files(store) == []


def test_a_full_disk_leaves_the_old_engine(
    store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.put(record_of(toy), PLAN)
    before = files(store)
    real = os.fsync
    for failing in range(4):  # the plan, its folder; the record, its folder
        calls = iter(range(99))

        def fsync(descriptor: int, failing: int = failing, calls: Iterator[int] = calls) -> None:
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            store.put(record_of(toy), PLAN[::-1])
        monkeypatch.setattr(os, "fsync", real)
        if failing < 3:
            assert files(store) == before
            assert store.take(old.variant, RTX, CARD) == (old, PLAN)
    assert store.take(old.variant, RTX, CARD)[1] == PLAN[::-1], (
        "it was moved in, though its folder was not flushed"
    )


def test_caches_are_sealed_for_what_they_are_valid_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.prepare()
    facts = ("tensorrt", "10.3.0.30", "NVIDIA RTX A4000")
    assert read_cache(store.folder, "timing", *facts) is None
    write_cache(store.folder, "timing", b"\0timings\xff", *facts)
    assert read_cache(store.folder, "timing", *facts) == b"\0timings\xff"
    for others in (facts[:2], (*facts, ""), ("tensorrt10.3.0.30", "", facts[2])):
        assert read_cache(store.folder, "timing", *others) is None
    assert read_cache(store.folder, "runtime", *facts) is None
    (path,) = (store.folder / "timing").iterdir()
    write_cache(store.folder, "timing", b"others", "x")
    (theirs,) = set((store.folder / "timing").iterdir()) - {path}
    raw = path.read_bytes()
    for content in (b"", raw[:-1], raw.replace(b"timings", b"timingt"), theirs.read_bytes()):
        path.write_bytes(content)
        assert read_cache(store.folder, "timing", *facts) is None
    path.unlink()
    path.symlink_to(theirs)
    assert read_cache(store.folder, "timing", *facts) is None


def test_the_format_is_what_is_documented() -> None:
    assert (records.FORMAT, records.VERSION) == ("edgeclip.engine", 1)
