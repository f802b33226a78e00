"""Several processes in one store, and processes that are killed there."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bundle import Bundle
from edgeclip.runtime.tensorrt.record import Record
from edgeclip.runtime.tensorrt.sealed import sealed
from edgeclip.runtime.tensorrt.store import Store
from tests.runtime.tensorrt.kept import CARD, PLAN, RTX, files, record_of

FORK = multiprocessing.get_context("fork")
WRITERS, ROUNDS = 4, 6

pytestmark = pytest.mark.usefixtures("forks")


def _write(store: Store, record: Record, writer: int, barrier: Any) -> None:
    barrier.wait()
    for each in range(ROUNDS):
        store.put(record, b"%d %d " % (writer, each) + PLAN)


def test_builders_and_readers_at_once(store: Store, toy: Bundle) -> None:
    """A reader always gets one whole engine, and in the end there is one."""
    record = record_of(toy)
    store.put(record, b"0 0 " + PLAN)
    barrier = FORK.Barrier(WRITERS + 1)
    writers = [FORK.Process(target=_write, args=(store, record, i, barrier)) for i in range(WRITERS)]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen, running = set(), True
    while running:
        running = any(writer.is_alive() for writer in writers)
        found, plan = store.take(record.variant, RTX, CARD)
        assert plan.endswith(PLAN)
        assert found.size == len(plan)
        seen.add(plan[:3])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(seen) > 1, "they wrote while it read"
    assert len(files(store)) == 2
    assert store.problems() == []


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that kills itself at the step-th file operation. False: it had fewer."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count > step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **named)

            return call

        os.fsync = deadly(os.fsync)
        for name in ("replace", "unlink", "chmod"):
            setattr(Path, name, deadly(getattr(Path, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_builder_that_is_killed_leaves_the_old_engine_or_the_new_one(store: Store, toy: Bundle) -> None:
    record, step, seen = record_of(toy), 0, []
    old, new = PLAN, PLAN[::-1]
    store.put(record, old)
    while killed_at(step, lambda: store.put(record, new)):
        plan = store.take(record.variant, RTX, CARD)[1]
        assert plan in (old, new)
        assert store.problems() == []
        seen.append(plan == new)
        store.put(record, old)  # which also sweeps up what the dead one left
        assert len(files(store)) == 2
        step += 1
    assert 6 <= step == len(seen)
    assert seen == sorted(seen), "one step makes the new one the current one"
    assert {False, True} == set(seen)
    assert store.take(record.variant, RTX, CARD)[1] == new


def test_a_first_key_and_store_whose_maker_was_killed(store: Store, toy: Bundle) -> None:
    step = 0
    while killed_at(step, lambda: store.put(record_of(toy), PLAN)):
        assert store.records() in ([], store.find())
        step += 1
    assert step > 6
    assert store.take(record_of(toy).variant, RTX, CARD)[1] == PLAN
    assert len(files(store)) == 2


def _hold(folder: Path, log: Path, number: int) -> None:
    for _ in range(5):
        with sealed(folder), log.open("a") as stream:
            stream.write(f"in {number}\n")
            stream.flush()
            (folder / f"{number}.engine").write_bytes(os.urandom(64))
            stream.write(f"out {number}\n")


@pytest.mark.usefixtures("cache")
def test_a_sealed_folder_is_one_processes_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [FORK.Process(target=_hold, args=(tmp_path / "engines", log, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = log.read_text().splitlines()
    assert len(lines) == 30
    assert all(a.replace("in", "out") == b for a, b in zip(lines[::2], lines[1::2], strict=True))
    with sealed(tmp_path / "engines") as folder:
        assert len(list(folder.glob("*.engine"))) == 3, "each found the others' sealed"
