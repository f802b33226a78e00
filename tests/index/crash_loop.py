"""Writers that are killed at random moments, one after the other, on one index; a reader looks on all the while.

    python -m tests.index.crash_loop store|index FOLDER KILLS SEED [FAULT]     prints one JSON object

This process has no threads, so it may fork; a test could not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.store import Store
from tests.index.shop import ORIGIN, SETTINGS, IndexShop, Living, Shop, Step, living, living_in, vector_of

Report = Callable[[object], None]


def child(work: Callable[[Report], None]) -> tuple[int, BinaryIO]:
    """Fork; the child's reports are lines of JSON. Returns its process id and where to read them."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        return pid, os.fdopen(read, "rb")
    os.close(read)

    def report(fact: object) -> None:
        os.write(write, json.dumps(fact).encode() + b"\n")

    try:
        work(report)
    except BaseException:
        report({"failed": traceback.format_exc()[-2000:]})
    finally:
        os._exit(0)


def write_for_ever(kind: str, path: Path, seed: int, clock: int, report: Report) -> None:
    """Say what will be done, do it, say that it is done."""
    if kind == "index":
        shop: Shop = IndexShop(Index.open(path, write=True), seed, clock)
    else:
        shop = Shop(Store.open(path, write=True), seed, clock)
    report({"opened": shop.living()})
    while True:
        step = shop.plan()
        report({"step": asdict(step)})
        shop.do(step)
        report({"done": shop.living()})


def read_for_ever(kind: str, path: Path, report: Report) -> None:
    """Read all, again and again. What lives is never an older version than before."""
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    newest: Living = {}
    states, last = 0, newest
    with closing(Index.open(path) if kind == "index" else Store.open(path)) as held:
        while not stop:
            found = searched(held) if isinstance(held, Index) else whole(held)
            states, last = states + (found != last), found
            for key, version in found.items():
                assert newest.get(key, 0) <= version, f"{key}: {version} after {newest[key]}"
            newest.update(found)
    report({"states": states})


def whole(store: Store) -> Living:
    """One state. A segment may go while it is read: then there is a newer state."""
    store.refresh()
    try:
        return living(store)
    except FileNotFoundError:
        assert store.refresh()
        return whole(store)


def searched(index: Index) -> Living:
    """One state, and answers to questions, which may see a newer one."""
    found = living_in(index)
    for key, version in list(found.items())[:5]:
        for hit in index.search(vector_of(key, version), 3):
            cosine = vector_of(key, version) @ vector_of(hit.key, hit.record["version"])
            assert abs(hit.score - cosine) < 2e-3, f"{hit}: its own vector has {cosine}"
    return found


def facts(pipe: BinaryIO, most: int | None = None) -> Iterator[dict[str, Any]]:
    """What a child says: all of it until it ends, or its next lines. Half a line was never said."""
    for line in islice(pipe, most):
        if line.endswith(b"\n"):
            yield json.loads(line)


def main(kind: str, path: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill so many writers. Returns what was seen; raises AssertionError where something was lost."""
    Store.create(path, ORIGIN, SETTINGS).close()
    reader, answers = child(lambda report: read_for_ever(kind, path, report))
    try:
        seen = kill_writers(kind, path, kills, seed)
        os.kill(reader, signal.SIGTERM)
        read = list(facts(answers))
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
    assert "states" in read[-1], read
    with closing(Store.open(path)) as store:
        assert store.verify() == []
        return {**seen, **read[-1], "segments": len(store.manifest.segments)}


def kill_writers(kind: str, path: Path, kills: int, seed: int) -> dict[str, object]:
    """One after the other, and compare what each leaves with what it said."""
    random = np.random.default_rng(seed)
    expected, done, unfinished = [Living()], 0, 0
    for i in range(kills):
        pid, pipe = child(lambda report, i=i: write_for_ever(kind, path, seed + i, 10_000 * i, report))  # type: ignore[misc]
        said = list(facts(pipe, int(random.integers(0, 12))))
        time.sleep(float(random.uniform(0, 0.004)))
        os.kill(pid, signal.SIGKILL)
        said += facts(pipe)
        pipe.close()
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), said
        for fact in said:
            assert "failed" not in fact, fact["failed"]
            if "step" in fact:
                step = Step(**fact["step"])
                expected.append(step.after(expected[0]))
            else:
                found = fact.get("done", fact.get("opened"))
                assert found in expected, f"kill {i}: {found}, expected one of {expected}"
                expected, done = [found], done + ("done" in fact)
        with closing(Index.open(path) if kind == "index" else Store.open(path)) as held:
            found = living_in(held) if isinstance(held, Index) else living(held)
        assert found in expected, f"kill {i}: {found}, expected one of {expected}"
        unfinished += len(expected) > 1
        expected = [found]
    return {"kills": kills, "done": done, "unfinished": unfinished, "living": len(found)}


def plant(fault: str) -> None:
    """Break the product, to see that this loop notices."""
    if fault == "forgets":  # keeps every third record in memory
        whole_append, count = Disk.append, iter(range(10**9))
        Disk.append = lambda *args: None if next(count) % 3 == 1 else whole_append(*args)  # type: ignore[method-assign]
    elif fault == "in place":  # writes the manifest where it counts

        def rename(_: Disk, path: Path, target: Path) -> None:
            data = path.read_bytes()
            target.write_bytes(data[: len(data) // 2])
            if len(data) > 2000:  # with segments: sooner or later one is killed here
                os.kill(os.getpid(), signal.SIGKILL)
            target.write_bytes(data)

        Disk.rename = rename  # type: ignore[method-assign]


if __name__ == "__main__":
    what, folder, number, first, *faults = sys.argv[1:]
    for each in faults:
        plant(each)
    print(json.dumps(main(what, Path(folder), int(number), int(first))))
