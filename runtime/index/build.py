"""Building an index: what is new or changed is embedded, what is not is left alone, and what was added survives an interruption.

with edgeclip.load("nano") as model:
    report = build_index("photos/", "photos.index", model)
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.index.binding import origin_of
from edgeclip.runtime.index.build_words import BuildReport, BuildSettings, Progress
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.manifest import NAME
from edgeclip.runtime.index.region_way import RegionsOf
from edgeclip.runtime.index.sources import Entry, Source, Unreadable, open_source
from edgeclip.runtime.index.types import IndexSettings, Item, Origin
from edgeclip.runtime.index.ways import Captions, Made, ReadyMade, Way, WholePictures
from edgeclip.runtime.model import Model

AT_ONCE = 64  # entries that are looked up together; pictures of a shard are in memory so long
WRITE_ROWS, WRITE_SECONDS = 256, 5.0  # added durably so often: what a crash may cost to embed again


def build_index(
    source: Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    model: Model | None,
    *,
    settings: IndexSettings | Mapping[str, Any] | None = None,
    how: BuildSettings | None = None,
    overwrite: bool = False,
    tell: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Make an index of a source, or bring one that is there up to date; one that was interrupted goes on.

    Args:
        source: what `sources.open_source` opens, or one that is open.
        model: embeds; None: the source holds vectors and says whose.
        settings: of a new index, all or some by name; an index that is there keeps its own.
        overwrite: begin anew where an index is there.
        tell: called after each entry.
    Raises:
        InputError: a source or place that cannot be used, another model's index, or settings that the index there does not have.
    """
    opened = source if isinstance(source, Source) else open_source(source)
    how = how or BuildSettings()
    with _index(Path(path), _origin(opened, model, how.trust), settings, overwrite) as index:
        return fill(index, opened, model, how=how, tell=tell)


def fill(
    index: Index,
    source: Source,
    model: Model | None,
    *,
    how: BuildSettings | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Add what is new in a source to an index that is open for writing, and replace what has changed.

    A picture with the size and time that its record has is not embedded again, nor one with the same hash, where it lies in a shard or table.

    Raises:
        InputError: vectors of another model or width, or a way that the source does not allow.
    """
    how = how or BuildSettings()
    origin = _origin(source, model, how.trust)
    if (origin.model_id, origin.dim) != (index.origin.model_id, index.origin.dim):
        raise InputError(
            f"{index.path}: holds vectors of {index.origin.name} (width {index.origin.dim}), the source's are of {origin.name} "
            f"(width {origin.dim}). Pass {index.origin.name}'s bundle, or build another index."
        )
    way = _way(source, model, how, origin.dim)
    if how.elsewhere and not source.has_vectors:
        way = how.elsewhere(way)
    build = _Build(index, way, how, Progress(source.count() if tell else None), tell)
    begun = time.perf_counter()
    build.run(source)
    if how.prune:
        build.prune(source)
    seconds = time.perf_counter() - begun
    index.settle()
    made = build.progress
    changed = made.added or made.updated or made.removed
    return BuildReport(
        made.added, made.updated, made.unchanged, made.removed, made.failures, made.embedded, seconds,
        made.embedded / seconds, index.measure_recall() if changed and len(index) > 1 else None,
    )  # fmt: skip


class _Build:
    """One pass over a source."""

    def __init__(
        self,
        index: Index,
        way: Way,
        how: BuildSettings,
        progress: Progress,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        self._index, self._way, self._how, self._tell = index, way, how, tell
        self.progress = progress
        self._seen: set[str] = set()  # keys of the source's entries
        self._partly = False  # the source could not be read to its end
        self._waiting: deque[tuple[Entry, list[Item]]] = deque()  # at the model; with what it will replace
        self._made: list[tuple[Made, list[Item]]] = []
        self._written = time.monotonic()

    def run(self, source: Iterable[Entry | Unreadable]) -> None:
        """Work the source through. What was embedded before an interruption is written."""
        try:
            for made in self._way.make(self._wanted(self._way.entries(source))):
                self._take(*self._waiting.popleft(), made)
            self._write()
        except (KeyboardInterrupt, SystemExit):
            self._write()
            raise

    def prune(self, source: Source) -> None:
        """Remove what came from the source in the same way and is not there any more."""
        if self._partly:
            self._fail("--prune", "nothing was removed, since the source could not be read to its end.")
            return
        came = (
            (item.key, self._way.entry_of(item))
            for _, item in self._index.items()
            if source.covers(item.record)
        )
        gone = [name for name, key in came if key is not None and key not in self._seen]
        if gone and not self._seen:  # a disk that is not mounted looks like that
            self._fail(
                "--prune",
                f"nothing was removed, since the source is empty and all {len(gone)} of its items would go. "
                "If that is meant, use `edgeclip index remove INDEX --where`.",
            )
            return
        self.progress.removed += self._index.remove(gone)

    def _wanted(self, entries: Iterator[Entry | Unreadable]) -> Iterator[Entry]:
        """The entries that have to be embedded; the others are dealt with here."""
        while chunk := list(islice(entries, AT_ONCE)):
            held = self._way.held(self._index, [entry for entry in chunk if isinstance(entry, Entry)])
            for entry in chunk:
                if isinstance(entry, Unreadable):
                    self._partly |= entry.partly
                    self._seen.add(entry.key)
                    self._fail(entry.key, entry.reason)
                elif entry.key in self._seen:
                    self._fail(entry.key, f"{entry.key}: there twice in the source; the first is used.")
                else:
                    self._seen.add(entry.key)
                    if self._is_new(entry, old := held.get(entry.key, [])):
                        self._waiting.append((entry, old))
                        yield entry

    def _is_new(self, entry: Entry, old: list[Item]) -> bool:
        if not old:
            return True
        if not self._how.update:
            self._keep([], len(old))
        elif self._way.same(self._index, entry, old):
            now = self._way.again(entry, old)
            changed = [item for was, item in zip(old, now, strict=True) if dict(was.record) != item.record]
            self._keep(changed, len(old) - len(changed))
        elif other := _elsewhere(entry, old):
            self._fail(
                entry.key, f"{entry.key}: the index holds another of this name, from {other}. Pass --root with a folder above both."
            )  # fmt: skip
        else:
            return True
        return False

    def _keep(self, changed: Sequence[Item], unchanged: int) -> None:
        """Other records beside the same vectors; the rest stays as it is."""
        if changed:
            self._index.add(self._index.vectors([item.key for item in changed]), changed)
        self.progress.updated += len(changed)
        self.progress.unchanged += unchanged
        self._done()

    def _take(self, entry: Entry, old: list[Item], made: Made | EdgeClipError) -> None:
        if isinstance(made, EdgeClipError):
            # a picture in memory has no other name than its number
            self._fail(entry.key, re.sub(r"^images\[\d+\]", lambda _: entry.key, str(made)))
            return
        known = {item.key for item in old}
        fresh = sum(item.key not in known for item in made[0])
        self.progress.embedded += 1
        self.progress.added += fresh
        self.progress.updated += len(made[0]) - fresh
        self._made.append((made, old))
        rows = sum(len(items) for (items, _), _ in self._made)
        if rows >= WRITE_ROWS or time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()
        self._done()

    def _write(self) -> None:
        """Durable when this returns."""
        held, self._made = self._made, []
        items = [item for (some, _), _ in held for item in some]
        if items:
            self._index.add(np.concatenate([vectors for (_, vectors), _ in held]), items)
        gone = {item.key for _, old in held for item in old} - {item.key for item in items}
        if gone:
            self.progress.removed += self._index.remove(sorted(gone))
        self._written = time.monotonic()

    def _fail(self, key: str, reason: str) -> None:
        self.progress.failures.append((key, reason))
        self._done()

    def _done(self) -> None:
        self.progress.done += 1
        if self._tell:
            self._tell(self.progress)


def _elsewhere(entry: Entry, old: Sequence[Item]) -> str | None:
    """Another source that these items came from and that still has them."""
    for item in old:
        source = item.record.get("source")
        if isinstance(source, str) and source != entry.record.get("source"):
            place = Path(source)
            if (place / str(item.record.get("path", "")) if place.is_dir() else place).exists():
                return source
    return None


def _way(source: Source, model: Model | None, how: BuildSettings, dim: int) -> Way:
    if source.has_vectors:
        if how.captions or how.boxes is not None or how.proposals is not None:
            raise InputError(
                f"{source.names[0]}: holds vectors; captions and regions are embedded where there are none."
            )
        return ReadyMade(dim)
    assert model is not None  # `_origin` saw to it
    if how.captions:
        return Captions(model)
    if how.boxes is not None or how.proposals is not None:
        return RegionsOf(model, how.boxes, how.proposals, how.batch_size)
    return WholePictures(model, how.batch_size)


def _origin(source: Source, model: Model | None, trust: bool) -> Origin:
    """Whose vectors the source gives, or has. Raises InputError where nobody says, or where file and model disagree."""
    given = origin_of(model) if model is not None else None
    where = source.names[0]
    if not source.has_vectors:
        if given is None:
            raise InputError(f"{where}: holds no vectors. Pass a model to embed it with.")
        return given
    if trust and given is not None:
        return given
    if source.origin is None:
        raise InputError(
            f"{where}: does not say which model made its vectors, and those of another would make every answer nonsense. "
            "If you know, name it with -b BUNDLE --trust (or in the file: edgeclip.model_id among its metadata)."
        )
    if given is not None and source.origin.model_id != given.model_id:
        raise InputError(
            f"{where}: vectors of {source.origin.name or 'a model'} ({source.origin.model_id[:12]}), the bundle is {given.name} "
            f"({given.model_id[:12]}). Pass the bundle that made them."
        )
    return source.origin


def _index(
    path: Path, origin: Origin, settings: IndexSettings | Mapping[str, Any] | None, overwrite: bool
) -> Index:
    chosen = asdict(settings) if isinstance(settings, IndexSettings) else dict(settings or {})
    if overwrite or not (path / NAME).exists():
        return Index.create(path, origin, settings=IndexSettings(**chosen), overwrite=overwrite)
    index = Index.open(path, write=True)
    for name, value in chosen.items():
        if value != (was := getattr(index.settings, name)):
            index.close()
            raise InputError(
                f"{path}: was made with {name} {was}, got {value}. Leave it out, or pass --overwrite to build anew."
            )
    return index
