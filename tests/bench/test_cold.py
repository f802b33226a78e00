"""Cold starts: what is counted and what is not, in which order, and in a real fresh process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.bench import cold, fresh
from edgeclip.bench.child import program
from edgeclip.bench.cold import drop_from_memory, measure_cold
from edgeclip.bench.settings import Settings, preset
from edgeclip.bundle import Bundle
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.towers import Tower
from tests.bench.test_stages import SHORT, jpegs
from tests.mutants import broken
from tests.runtime.toy import make_bundle

TWICE = preset("quick", cold_starts=2, labels=SHORT.labels)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


# --- in order


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order; each start takes longer than the one before."""
    done: list[str] = []

    def start(child: str, bundle: Bundle, settings: Settings, inputs: Any, pack: Path | None = None) -> Any:
        done.append("no pack" if pack is None else f"pack of {len(LabelPack.open(pack).labels)}")
        k, ms = sum(name != "dropped" for name in done), 1_000_000
        return {
            "started_ns": 0,
            "begun_ns": 20 * ms,
            "imported_ns": 120 * ms,
            "load_ns": 40 * ms,
            "first_ns": k * ms,
        }

    monkeypatch.setattr(cold, "in_fresh_process", start)
    monkeypatch.setattr(
        cold, "drop_from_memory", lambda bundle: [done.append("dropped") or f"{len(done)} stayed"]
    )
    return done


def test_kinds_take_turns(bundle: Bundle, started: list[str]) -> None:
    empty, packed = measure_cold(bundle, TWICE, jpegs(1))
    assert started == ["dropped", "no pack", "pack of 2"] * 2
    assert (empty.kind, packed.kind, empty.runs) == ("empty caches", "label pack", 2)
    assert (empty.import_ms, empty.load_ms, empty.first_ms) == (100, 40, 2)
    assert (empty.total_ms, empty.low_ms, empty.high_ms) == (162, 161, 163), "Python's own start counts"
    assert (packed.total_ms, packed.low_ms, packed.high_ms) == (163, 162, 164)
    assert empty.notes == ("20 ms of the total are Python's own start", "4 stayed")
    assert packed.notes == empty.notes[:1]


def test_a_start_that_left_python_out_would_be_seen(
    bundle: Bundle, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold, "_parts", broken(cold._parts, 'found["begun_ns"] - found["started_ns"]', "0"))
    assert measure_cold(bundle, TWICE, jpegs(1))[0].total_ms != 162


def test_tasks_without_labels_have_one_kind(bundle: Bundle, started: list[str]) -> None:
    (only,) = measure_cold(bundle, preset("quick", task="embed", cold_starts=3), jpegs(1))
    assert only.kind == "empty caches"
    assert started == ["dropped", "no pack"] * 3


def test_there_has_to_be_such_a_task(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="task 'segment': no such task"):
        measure_cold(bundle, preset("quick", task="segment"), jpegs(1))


# --- the system forgets files


def in_memory(path: Path) -> int:
    """Pages, as `fincore` of util-linux counts them."""
    done = subprocess.run(["fincore", "-nbo", "PAGES", path], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="posix_fadvise as Linux takes it")
def test_files_are_forgotten(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [bundle.path(name) for name in bundle.manifest.files]

    def read() -> int:
        return sum(cold._resident(path)[0] for path in paths if path.read_bytes())

    pages = sum(cold._resident(path)[1] for path in paths)
    assert pages == sum(-(-path.stat().st_size // 4096) for path in paths)
    assert read() == pages
    if subprocess.run(["which", "fincore"], capture_output=True, check=False).returncode == 0:
        assert sum(map(in_memory, paths)) == pages
    if notes := drop_from_memory(bundle):
        pytest.skip(f"this file system keeps its files in memory: {notes}")
    assert sum(cold._resident(path)[0] for path in paths) == 0
    read()
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)
    assert "of the bundle may have stayed in memory" in drop_from_memory(bundle)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="posix_fadvise as Linux takes it")
def test_a_file_system_without_flushing_is_no_failure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> None:
        raise OSError(errno.EINVAL, "squashfs, as fsync(2) has it")

    monkeypatch.setattr(os, "fsync", refused)
    drop_from_memory(bundle)


def test_a_system_that_cannot_forget_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    assert "cannot be told to forget" in drop_from_memory(bundle)[0]


# --- the child


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Towers that are opened, in order; each takes 30 ms more."""
    kinds: list[str] = []
    original = Tower._open

    def slowly(tower: Tower) -> Any:
        kinds.append(tower.kind)
        time.sleep(0.03)
        return original(tower)

    monkeypatch.setattr(Tower, "_open", slowly)
    return kinds


def test_a_pack_saves_the_text_tower(bundle: Bundle, opened: list[str], tmp_path: Path) -> None:
    without = cold.in_child(bundle.spec, TWICE, jpegs(1), None)
    assert opened == ["text", "image"]
    assert without["load_ns"] >= 60e6, "towers that open with the first result are loading"
    opened.clear()
    path = cold.label_pack(bundle, TWICE, tmp_path / "labels")
    opened.clear()
    with_pack = cold.in_child(bundle.spec, TWICE, jpegs(1), path)
    assert opened == ["image"]
    assert with_pack["load_ns"] >= 30e6
    assert with_pack["first_ns"] > 0


def test_an_index_of_the_benchmark_is_not_counted(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cold.task_of

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return original(*arguments)

    monkeypatch.setattr(cold, "task_of", slowly)
    search = cold.in_child(bundle.spec, preset("quick", task="search", index_size=10), jpegs(1), None)
    assert search["first_ns"] < 0.5e9
    assert cold.in_child(bundle.spec, TWICE, jpegs(1), None)["first_ns"] >= 0.5e9, "embedding labels is"


def test_a_real_process(bundle: Bundle) -> None:
    begun = time.perf_counter()
    (only,) = measure_cold(bundle, preset("quick", task="embed", cold_starts=1), jpegs(1))
    outside = 1e3 * (time.perf_counter() - begun)
    parts = (only.import_ms, only.load_ms, only.first_ms)
    assert all(part > 0 for part in parts)
    assert sum(parts) < only.total_ms <= outside, "another watch, around it all"
    assert only.low_ms == only.total_ms == only.high_ms


def test_what_the_child_met_arrives_here(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(command: Any, *, input: str, **_: Any) -> Any:
        assert command == program(fresh.PROGRAM)
        return SimpleNamespace(
            returncode=0, stdout=json.dumps(fresh.answer(json.loads(input), 5, 7)), stderr=""
        )

    monkeypatch.setattr(subprocess, "run", in_this_process)
    settings = preset("quick", task="embed")
    found = fresh.in_fresh_process("cold", bundle, settings, jpegs(1))
    assert (found["begun_ns"], found["imported_ns"]) == (5, 7)
    (bundle.root / "graphs/image-fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"image-fp32\.onnx"):
        fresh.in_fresh_process("cold", bundle, settings, jpegs(1))


def ended(code: int, out: str = "", err: str = "") -> Callable[..., Any]:
    return lambda *a, **k: SimpleNamespace(returncode=code, stdout=out, stderr=err)


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (ended(-signal.SIGKILL), EngineError, "killed by signal 9; 9 is mostly a lack of memory"),
        (ended(0, '{"error": "InputError", "message": "no such task."}'), InputError, "no such task"),
        (ended(1, err="Traceback: a bug"), RuntimeError, "a bug"),
    ],
)
def test_ends_of_a_process(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, end: Any, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", end)
    with pytest.raises(error, match=message):
        fresh.in_fresh_process("cold", bundle, TWICE, jpegs(1))
