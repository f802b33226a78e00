"""The graph that an engine is built from: the bundle's own, or one made beside it, which is kept only with its engine."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclip.bundle import Bundle, Variant, check_hashes
from edgeclip.bundle.store import check_again
from edgeclip.errors import EngineError, InputError
from edgeclip.files import sha256_file
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.plan import Candidate
from edgeclip.runtime.tensorrt.record import Record
from edgeclip.runtime.tensorrt.settings import Converter, Made
from edgeclip.runtime.tensorrt.store import Store

log = logging.getLogger(__name__)

FOLDER = "graphs"  # of the store
DRAFT = ".graph."  # how a folder of drafts begins
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Graph:
    """A graph at hand."""

    variant: Variant
    path: Path
    digests: Mapping[str, str]  # SHA-256 of its files, by name
    notes: tuple[str, ...] = ()
    made: bool = False  # just now, in a folder that goes away

    def keep(self, store: Store) -> Graph:
        """The same at its place in the store, under names of its content; its weights first, so that no graph there lacks its own."""
        if not self.made:
            return self
        graph, *weights = self.variant.files
        names = {
            graph: f"{self.variant.id}-{self.digests[graph][:12]}.onnx",
            **{name: name for name in weights},
        }
        folder = store.folder / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in (*weights, graph):
            (self.path.parent / name).replace(folder / names[name])
        files = tuple(f"{FOLDER}/{names[name]}" for name in self.variant.files)
        digests = dict(zip(files, (self.digests[name] for name in self.variant.files), strict=True))
        return Graph(replace(self.variant, files=files), store.folder / files[0], digests, self.notes)


@contextmanager
def graph_of(
    candidate: Candidate, bundle: Bundle, store: Store, library: Library, archs: Sequence[str], converter: Converter | None,
    tell: Callable[[str], None],
) -> Iterator[Graph]:  # fmt: skip
    """A candidate's graph, while the block lasts; `Graph.keep` keeps what was made for it.

    Args:
        archs: GPUs that it is for.
        converter: makes it, where the store has none.
        tell: called with what is being done.
    Raises:
        BundleError: a file that changed since the bundle was opened. CheckFailed: one that is not what the manifest says.
            As Converter.convert.
    """
    variant, base = candidate.variant, candidate.base
    if base is not None and (known := _known(candidate, store)) is not None:
        yield known
        return
    source = base or variant
    check_again(bundle, source)
    check_hashes(bundle, source.files)  # what the record will say that the engine was built from
    if base is None:
        digests = {name: bundle.manifest.files[name].sha256 for name in variant.files}
        yield Graph(variant, bundle.path(variant.files[0]), digests)
    else:
        _drop_drafts(store.folder)
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=DRAFT) as scratch:
            folder = Path(scratch)
            with _room(store.folder):
                if candidate.facts:
                    assert converter is not None, "without one, plan.py names no such candidate"
                    made = converter.convert(
                        bundle, base, variant.axes.precision, library, archs, folder, tell
                    )
                else:
                    made = _copied(candidate, bundle, base, folder)
            digests = {name: sha256_file(folder / name) for name in made.variant.files}
            yield Graph(made.variant, folder / made.variant.files[0], digests, made.notes, made=True)


def same_graph(record: Record, candidate: Candidate) -> bool:
    """Whether an engine is of this very graph: another conversion of the same name is another."""
    base = candidate.base.id if candidate.base else ""
    return (record.variant.id, record.made_from, dict(record.provenance)) == (
        candidate.variant.id, base, dict(candidate.facts),
    )  # fmt: skip


def _drop_drafts(folder: Path) -> None:
    """Remove what builders that were killed left, hundreds of megabytes each. None that lives works on one for a day."""
    for path in folder.glob(f"{DRAFT}*"):
        with suppress(OSError):  # another builder was faster, or it is not ours to remove
            if time.time() - path.lstat().st_mtime > DAY:
                shutil.rmtree(path)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """What the system says of a full disk names any file, or none."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: the graph could not be made there, with drafts in {tempfile.gettempdir()} ({error.strerror or error}). "
            "Make room, or choose another folder."
        ) from error


def _known(candidate: Candidate, store: Store) -> Graph | None:
    """That another engine in the store was built from."""
    for record in store.records():
        if same_graph(record, candidate):
            try:
                return Graph(record.variant, store.graph(record), dict(record.graphs))
            except EngineError as error:
                log.info("%s is made again: %s", candidate.variant.id, error)
    return None


def _copied(candidate: Candidate, bundle: Bundle, base: Variant, folder: Path) -> Made:
    """The bundle's files under another variant's name."""
    names = tuple(Path(name).name for name in base.files)
    for name, short in zip(base.files, names, strict=True):
        shutil.copyfile(bundle.path(name), folder / short)
    return Made(replace(candidate.variant, files=names))
