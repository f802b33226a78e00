"""A disk that notes what is done to it, and the disks that a power cut could leave of that."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np

from edgeclip.runtime.index import disk
from edgeclip.runtime.index.disk import Disk


class Killed(BaseException):
    """The process ends here; nothing of it runs any more."""


@dataclass(frozen=True)
class Event:
    """One change, or a sync."""

    name: str
    path: Path  # relative
    data: bytes = b""
    target: Path | None = None  # of a rename
    size: int = 0  # of a truncate
    site: str = ""  # of a sync: the line that asks for it


class Recorder(Disk):
    """Does it, without the wait for the disk, and notes it.

    Args:
        root: what the paths are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root, self.events = root, list[Event]()
        self.fail: Callable[[Event], None] = lambda _event: None  # may raise before an event happens

    def _note(self, name: str, path: Path, **more: object) -> None:
        frame = sys._getframe(2)
        while frame.f_code.co_filename in (__file__, disk.__file__):
            frame = frame.f_back  # type: ignore[assignment]
        site = f"{frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name}:{frame.f_lineno}"
        event = Event(name, path.relative_to(self._root), site=site, **more)  # type: ignore[arg-type]
        self.fail(event)
        self.events.append(event)

    def mkdir(self, path: Path) -> None:
        self._note("mkdir", path)
        super().mkdir(path)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        self._note("write", path, data=bytes(data))
        super().write(path, data)

    def append(self, handle: FileIO, data: bytes) -> None:
        self._note("append", Path(str(handle.name)), data=data)
        super().append(handle, data)

    def truncate(self, handle: FileIO, size: int) -> None:
        self._note("truncate", Path(str(handle.name)), size=size)
        super().truncate(handle, size)

    def sync(self, target: FileIO | Path) -> None:
        self._note("sync", target if isinstance(target, Path) else Path(str(target.name)))

    def adopt(self, path: Path) -> None:
        self._note("write", path, data=path.read_bytes())
        self._note("sync", path)

    def sync_folder(self, path: Path) -> None:
        self._note("sync_folder", path)

    def rename(self, path: Path, target: Path) -> None:
        self._note("rename", path, target=target.relative_to(self._root))
        super().rename(path, target)

    def unlink(self, path: Path) -> None:
        self._note("unlink", path)
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._note("rmdir", path)
        super().rmdir(path)


@dataclass(eq=False)
class Content:
    """A file's bytes: those that are on the disk, and what was done to them since."""

    synced: bytes = b""
    pending: list[Event] = field(default_factory=list)


@dataclass(eq=False)
class Names:
    """A folder: what lies in it for sure, and the changes since, each of one or two names."""

    synced: dict[str, Content | Names] = field(default_factory=dict)
    pending: list[dict[str, Content | Names | None]] = field(default_factory=list)
    now: dict[str, Content | Names] = field(default_factory=dict)  # as processes see it

    def change(self, names: dict[str, Content | Names | None]) -> None:
        self.pending.append(names)
        _apply(self.now, names)

    def sync(self) -> None:
        self.synced, self.pending = dict(self.now), []


def _apply(names: dict[str, Content | Names], change: dict[str, Content | Names | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Platter:
    """What is on the disk, and what is only in memory."""

    def __init__(self) -> None:
        self.root = Names()

    def play(self, event: Event) -> None:
        """Let one event happen."""
        folder, name = self._folder(event.path.parent), event.path.name
        node = folder.now.get(name)
        if event.name == "mkdir":
            folder.change({name: Names()})
        elif event.name == "write":
            if node is None:
                folder.change({name: Content()})
            self._content(event.path).pending.append(event)
        elif event.name in ("append", "truncate"):
            self._content(event.path).pending.append(event)
        elif event.name == "sync":
            content = self._content(event.path)
            content.synced, content.pending = _done(content, lambda _: 1.0), []
        elif event.name == "sync_folder":
            self._folder(event.path).sync()
        elif event.name == "rename":
            assert event.target is not None
            assert event.target.parent == event.path.parent
            folder.change({name: None, event.target.name: node})
        else:
            folder.change({name: None})

    def _folder(self, path: Path) -> Names:
        found = self.root
        for part in path.parts:
            node = found.now[part]
            assert isinstance(node, Names)
            found = node
        return found

    def _content(self, path: Path) -> Content:
        node = self._folder(path.parent).now[path.name]
        assert isinstance(node, Content)
        return node

    def cut(self, names: Callable[[], bool], share: Callable[[Event], float]) -> dict[str, bytes | None]:
        """The power goes off.

        Args:
            names: whether a change of names that was not synced made it to the disk; asked for each.
            share: of a change of content: how much of it made it, 0-1; below 0: its length did, zeros in place of its bytes.
        Returns:
            path -> content, None for a folder.
        """
        return dict(_left(self.root, "", names, share))


def _left(
    folder: Names, prefix: str, names: Callable[[], bool], share: Callable[[Event], float]
) -> Iterator[tuple[str, bytes | None]]:
    here = dict(folder.synced)
    for change in folder.pending:
        if names():
            _apply(here, change)
    for name, node in here.items():
        if isinstance(node, Names):
            yield prefix + name, None
            yield from _left(node, f"{prefix}{name}/", names, share)
        else:
            yield prefix + name, _done(node, share)


def _done(content: Content, share: Callable[[Event], float]) -> bytes:
    data = content.synced
    for event in content.pending:
        part = share(event)
        if event.name == "truncate":
            data = data[: event.size] if part >= 0.5 else data
        else:
            new = bytes(len(event.data)) if part < 0 else event.data[: round(part * len(event.data))]
            data = new if event.name == "write" else data + new
    return data


Cut = tuple[str, Callable[[], bool], Callable[[Event], float]]


def cuts(seed: int, count: int) -> Iterator[Cut]:
    """Ways in which the power may go: what was not synced is kept, lost, kept by half, torn."""
    random = np.random.default_rng(seed)
    whole: Callable[[Event], float] = lambda _: 1.0  # noqa: E731
    nothing: Callable[[Event], float] = lambda _: 0.0  # noqa: E731
    yield "all kept", lambda: True, whole
    yield "all lost", lambda: False, nothing
    yield "names kept", lambda: True, nothing
    yield "contents kept", lambda: False, whole
    for i in range(count):
        yield (
            f"at random {i}",
            lambda: bool(random.random() < 0.5),
            lambda _: float(random.choice([0.0, 1.0, -1.0, random.random()])),
        )


class Bench:
    """A folder that is made to hold what is left; what it holds already is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._laid = folder, dict[str, bytes | None]()
        folder.mkdir(parents=True)

    def lay(self, files: dict[str, bytes | None]) -> None:
        for name in sorted(set(self._laid) - set(files), reverse=True):
            (self.folder / name).unlink() if self._laid[name] is not None else (self.folder / name).rmdir()
        for name, content in files.items():
            if content is None and name not in self._laid:
                (self.folder / name).mkdir()
            elif content is not None and self._laid.get(name) != content:
                (self.folder / name).write_bytes(content)
        self._laid = dict(files)

    def clear(self) -> None:
        """After somebody else has changed it."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._laid = {}
