"""The power may go at any moment: every prefix of what a writer did to its disk, with what was not synced lost in many ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index.store import Store
from tests.index.power import Bench, Event, Killed, Platter, Recorder, cuts
from tests.index.shop import ORIGIN, SETTINGS, Living, Loose, Shop, living

STEPS = "add full add kill-append flush remove flush_some kill-commit replace close measured merge add remove flush"
SYNCS = ("sync", "sync_folder")


@dataclass(frozen=True)
class Act:
    """Something that was acknowledged when it ended."""

    start: int  # events before it
    end: int
    after: Living
    during: tuple[Living, ...]  # what may be found while it is not yet acknowledged


@dataclass(frozen=True)
class History:
    """What was done, and what was promised."""

    events: list[Event]
    acts: list[Act]

    def allowed(self, count: int) -> list[Living | None]:
        """What may be found after the first `count` events; None: no index."""
        done = [act.after for act in self.acts if act.end <= count]
        return [
            done[-1] if done else None,
            *(each for act in self.acts if act.start < count < act.end for each in act.during),
        ]


def record(folder: Path, rounds: int = 1) -> History:
    """Changes of all kinds, with writers that are killed, a disk that is full, and one that is closed."""
    path, disk, acts = folder / "pets.index", Recorder(folder), list[Act]()

    def act(start: int, store: Store, during: Living | None = None) -> None:
        after = living(store)
        acts.append(Act(start, len(disk.events), after, (after if during is None else during,)))

    store = Store.create(path, ORIGIN, SETTINGS, disk=disk)
    act(0, store)
    shop = Shop(store, seed=3, clock=0)
    for part in range(rounds):
        for name in STEPS.split():
            start = len(disk.events)
            if name.startswith("kill"):
                _kill(disk, shop, name)
                store = Store.open(path, write=True, disk=disk)
                shop = Shop(store, seed=start, clock=1000 * (part + 1) + start)
            elif name == "full":
                wanted = _fill(disk, shop)
                act(start, store, wanted)
                continue
            elif name == "close":
                store.close()
                store = Store.open(path, write=True, disk=disk)
                shop = Shop(store, seed=start, clock=1000 * (part + 1) + start)
            else:
                shop.do(shop.plan(name.replace("_", " ")))
            act(start, store)
    store.close()
    return History(disk.events, acts)


def _kill(disk: Recorder, shop: Shop, name: str) -> None:
    """End the writer between its change and the sync that would make it last."""
    renamed = []

    def die(event: Event) -> None:
        renamed.extend([1] if event.name == "rename" else [])
        if event.name in SYNCS and (name == "kill-append" or renamed):
            disk.fail = lambda _: (_ for _ in ()).throw(Killed())  # it does not clean up either
            raise Killed

    disk.fail = die
    with pytest.raises(Killed):
        shop.do(shop.plan("add" if name == "kill-append" else "flush"))
    disk.fail = lambda _: None
    shop.store.after_fork()  # lets go of the lock, as the system does


def _fill(disk: Recorder, shop: Shop) -> Living:
    """The disk is full when an append is synced, which is then undone. Returns what would be there if it were not."""
    failed = []

    def full(event: Event) -> None:
        if event.name == "sync" and not failed:
            failed.append(event)
            raise OSError(28, "No space left on device")

    before, step = living(shop.store), shop.plan("add")
    disk.fail = full
    with pytest.raises(InputError, match="No space left on device"):
        shop.do(step)
    disk.fail = lambda _: None
    assert living(shop.store) == before
    return step.after(before)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return record(tmp_path_factory.mktemp("history"))


def problems(events: list[Event], history: History, folder: Path, *, random: int = 2) -> Iterator[str]:
    """What is wrong after a power cut behind each of the events, in several ways and `random` more."""
    platter, bench, seen = Platter(), Bench(folder / "cuts"), set[int]()
    for count, event in enumerate(events, 1):
        if event.name != "ignored":
            platter.play(event)
        # between a rename and its sync everything is at stake, and each of its names may be lost by itself
        for kind, names, share in cuts(count, random * (8 if event.name == "rename" else 1)):
            files, allowed = platter.cut(names, share), history.allowed(count)
            state = hash((repr(allowed), frozenset(files.items())))
            if state in seen:
                continue
            seen.add(state)
            if problem := _problem(bench, files, allowed, write=len(seen) % 3 == 0):
                yield f"after {count} events ({event.name} {event.path}), {kind}: {problem}"


def _problem(
    bench: Bench, files: dict[str, bytes | None], allowed: list[Living | None], *, write: bool
) -> str:
    bench.lay(files)
    path = bench.folder / "pets.index"
    if None in allowed and not (path / "index.json").exists():
        return ""
    try:
        with closing(Store.open(path)) as store:
            found = living(store)
        if write:  # the next writer cleans up, and goes on
            with closing(Store.open(path, write=True, disk=Loose())) as store:
                again = living(store)
                store.new_segment()
                assert store.verify() == []
            bench.clear()
            assert again == found
    except (InputError, OSError, AssertionError) as error:
        bench.clear()
        return repr(error)
    return "" if found in allowed else f"found {found}, expected one of {allowed}"


def test_nothing_acknowledged_is_lost(history: History, tmp_path: Path) -> None:
    assert list(problems(history.events, history, tmp_path)) == []


@pytest.mark.parity
def test_nothing_acknowledged_is_lost_in_a_long_history(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    history = record(tmp_path / "history", rounds=4)
    assert list(problems(history.events, history, tmp_path, random=8)) == []


def test_each_sync_is_needed(history: History, tmp_path: Path) -> None:
    """Leave out the syncs of one line of the code, of each in turn: something is lost."""
    sites = sorted({event.site for event in history.events if event.name in SYNCS})
    assert len(sites) >= 15
    for i, site in enumerate(sites):
        left = [Event("ignored", e.path) if e.name in SYNCS and e.site == site else e for e in history.events]
        assert next(problems(left, history, tmp_path / str(i)), None), f"nobody misses {site}"
