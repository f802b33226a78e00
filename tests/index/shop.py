"""An index that changes all the time, on the store alone: what it should hold is known after each step, and every vector tells its key."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.store import Store
from edgeclip.runtime.index.types import IndexSettings, Item, Origin

DIM = 8
ORIGIN = Origin("1" * 64, "toy", DIM)
SETTINGS = IndexSettings(flush_at=9, exact_below=12)  # of an index: segments often, and graphs
Living = dict[str, int]  # key -> version


class Loose(Disk):
    """Nothing is synced: for tests that cut no power."""

    @staticmethod
    def _sync(path: Path) -> None:
        assert path.exists()

    def sync(self, target: object) -> None:
        pass


@cache
def vector_of(key: str, version: int) -> NDArray[np.float32]:
    """(D,) unit float32 that no other key or version has."""
    row = np.random.default_rng(zlib.crc32(f"{key} {version}".encode())).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def item(key: str, version: int) -> Item:
    return Item(key, {"version": version, "caption": f"{key} again" * (version % 3)})


def write_segment(
    folder: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], items: list[Item]
) -> None:
    """Three plain files; those of the product are none of the store's business."""
    (folder / "ids.bin").write_bytes(ids.astype("<i8").tobytes())
    (folder / "vectors.bin").write_bytes(vectors.astype("<f4").tobytes())
    (folder / "items.json").write_text(json.dumps([[each.key, each.record] for each in items]))


def everything(store: Store) -> tuple[NDArray[np.int64], NDArray[np.float32], list[Item]]:
    """All items that live, segments first."""
    tail = store.tail
    ids, vectors, items = [tail.ids], [tail.vectors], list(tail.items)
    for entry in reversed(store.manifest.segments):
        folder = store.path / "segments" / entry.name
        ids.insert(0, np.frombuffer((folder / "ids.bin").read_bytes(), "<i8"))
        vectors.insert(0, np.frombuffer((folder / "vectors.bin").read_bytes(), "<f4").reshape(-1, DIM))
        items = [Item(*each) for each in json.loads((folder / "items.json").read_bytes())] + items
    all_ids, rows = np.concatenate(ids), np.concatenate(vectors)
    alive = np.flatnonzero(~np.isin(all_ids, store.removed))
    return all_ids[alive], rows[alive], [items[i] for i in alive]


def living(store: Store) -> Living:
    """Key -> version; each vector, id and record is compared with what belongs to it."""
    ids, vectors, items = everything(store)
    found: Living = {}
    assert len(set(ids.tolist())) == len(ids), "an id twice"
    for row, each in zip(vectors, items, strict=True):
        version = each.record["version"]
        assert each.key not in found, f"{each.key} twice"
        assert each == item(each.key, version)
        assert (row == vector_of(each.key, version)).all()
        found[each.key] = version
    return found


@dataclass
class Step:
    """What one step will do."""

    name: str
    puts: Living = field(default_factory=dict)
    drops: list[str] = field(default_factory=list)

    def after(self, before: Living) -> Living:
        """What lives when it is done."""
        return {key: version for key, version in {**before, **self.puts}.items() if key not in self.drops}


class Shop:
    """Steps on a store.

    Args:
        clock: larger than every version so far.
    """

    def __init__(self, store: Store, seed: int, clock: int) -> None:
        self.store, self._random, self._clock = store, np.random.default_rng(seed), clock

    def living(self) -> Living:
        """As `living`, of what it works on."""
        return living(self.store)

    def plan(self, name: str | None = None) -> Step:
        """The next step, which changes nothing yet."""
        names = ["add", "replace", "remove", "flush", "flush some", "merge", "measured"]
        name = name or str(self._random.choice(names, p=[0.32, 0.2, 0.16, 0.1, 0.1, 0.06, 0.06]))
        here = sorted(self.living())
        some = [here[i] for i in self._random.permutation(len(here))[: self._random.integers(1, 4)]]
        if name in ("add", "replace"):
            self._clock += 1
            fresh = [
                f"new{self._clock}-{i}"
                for i in range(self._random.integers(0 if name == "replace" else 1, 4))
            ]
            return Step(name, dict.fromkeys((*fresh, *(some if name == "replace" else ())), self._clock))
        return Step(name, drops=some if name == "remove" else [])

    def do(self, step: Step) -> None:
        """Returns when it is acknowledged."""
        ids, _, items = everything(self.store)
        old = {each.key: int(number) for number, each in zip(ids, items, strict=True)}
        if step.name in ("add", "replace"):
            vectors = [vector_of(*pair) for pair in step.puts.items()]
            news = [item(*pair) for pair in step.puts.items()]
            replaced = [old[key] for key in step.puts if key in old]
            if news:
                given = self.store.append(np.stack(vectors), news, replaced)
                assert not set(given.tolist()) & set(old.values())
        elif step.name == "remove":
            self.store.remove([old[key] for key in step.drops])
        elif step.name == "measured":
            self.store.measured({"recall": float(self._random.random())})
        else:
            self._flush(merge=step.name == "merge", partly=step.name == "flush some")

    def _flush(self, *, merge: bool, partly: bool) -> None:
        store = self.store
        kept = [] if merge else [entry.name for entry in store.manifest.segments]
        taken = len(store.tail.ids) // 2 if partly else len(store.tail.ids)
        ids, vectors, items = everything(store)
        from_tail = np.isin(ids, store.tail.ids[:taken])
        old = np.isin(ids, store.tail.ids, invert=True)
        rows = np.flatnonzero(from_tail | old if merge else from_tail)
        folder = store.new_segment()
        write_segment(folder, ids[rows], vectors[rows], [items[i] for i in rows])
        scales = bytes(self._random.bytes(20)) if self._random.random() < 0.3 else None
        store.commit([folder], kept, taken=taken, scales=scales)


class IndexShop(Shop):
    """The same steps on a whole index, with the segments, graphs and records of the product."""

    def __init__(self, index: Index, seed: int, clock: int) -> None:
        super().__init__(index._store, seed, clock)
        self._index = index

    def living(self) -> Living:
        return living_in(self._index)

    def do(self, step: Step) -> None:
        index = self._index
        if step.name in ("add", "replace"):
            if step.puts:
                pairs = step.puts.items()
                index.add(np.stack([vector_of(*pair) for pair in pairs]), [item(*pair) for pair in pairs])
        elif step.name == "remove":
            index.remove(step.drops)
        elif step.name == "merge":
            index.optimize()
        elif step.name == "measured":
            index.measure_recall(k=1) if len(index) > 1 else None
        else:
            index.flush()


def living_in(index: Index) -> Living:
    """As `living`, of one state of an index. Vectors are stored in fp16: cosine 0.9999."""
    found: Living = {}
    for _, vectors, items in index.batches():
        for row, each in zip(vectors, items, strict=True):
            version = each.record["version"]
            assert each.key not in found, f"{each.key} twice"
            assert each == item(each.key, version)
            assert row @ vector_of(each.key, version) > 0.9999, f"{each.key} has another's vector"
            found[each.key] = version
    return found
