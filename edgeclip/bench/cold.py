"""Cold start: from starting a program to its first result, in fresh processes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, Literal

from edgeclip.bench.fresh import in_fresh_process, task_of
from edgeclip.bench.opening import open_model
from edgeclip.bench.report import ColdStart
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import TASKS, takes_labels
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.runtime import stages
from edgeclip.runtime.labels import LabelPack

Kind = Literal["empty caches", "label pack"]

DROPPED = 0.02  # of the bundle's pages may still be in memory: what another program holds in use


def measure_cold(bundle: Bundle, settings: Settings, inputs: Inputs) -> tuple[ColdStart, ...]:
    """Start `settings.cold_starts` processes of each kind, in turn.

    "empty caches": the bundle's files are read from the disk, and labels are embedded. "label pack", for tasks with labels: the files lie
    in memory and the labels' vectors come with them, so that no text tower is opened.

    Raises:
        EdgeClipError: what a process met.
    """
    kinds: tuple[Kind, ...] = (
        ("empty caches", "label pack") if takes_labels(settings.task) else ("empty caches",)
    )
    runs: dict[Kind, list[dict[str, float]]] = {kind: [] for kind in kinds}
    notes: dict[Kind, list[str]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        pack = label_pack(bundle, settings, Path(folder, "labels")) if len(kinds) > 1 else None
        if len(kinds) > 1 and pack is None:
            notes["label pack"].append("the labels are baked into the bundle: no pack is read")
        for _ in range(settings.cold_starts):
            for kind in kinds:
                if kind == "empty caches":
                    notes[kind] = (
                        drop_from_memory(bundle) or notes[kind]
                    )  # the last: they differ by a percent
                given = pack if kind == "label pack" else None
                runs[kind].append(_parts(in_fresh_process("cold", bundle, settings, inputs, given)))
    return tuple(_put_together(kind, runs[kind], notes[kind]) for kind in kinds)


def in_child(bundle: str, settings: Settings, inputs: Inputs, pack: Path | None) -> dict[str, Any]:
    """In the fresh process: open the bundle and get one result."""
    with stages.listen() as spans:
        begun = perf_counter_ns()
        model = open_model(open_bundle(bundle), settings)
        loaded = perf_counter_ns()
        task = task_of(model, settings, inputs, pack)
        # a program that wants labels embeds or reads them first; an index of vectors is only the benchmark's
        ready = loaded if takes_labels(settings.task) else perf_counter_ns()
        task.query([0])
        ended = perf_counter_ns()
    opening = sum(end - begin for begin, end, name in spans if name == "open")
    model.close()
    return {"load_ns": loaded - begun + opening, "first_ns": ended - ready - opening}


def drop_from_memory(bundle: Bundle) -> list[str]:
    """Let the system forget the bundle's files, so that they are read from the disk again. Notes on what it did not forget."""
    if not hasattr(os, "posix_fadvise"):
        return ["this system cannot be told to forget files: they were read before"]
    paths = [bundle.root / name for name in ("bundle.json", *bundle.manifest.files)]
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems that are only read have nothing to flush
                os.fsync(file)  # pages that are not written yet are not forgotten
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    left, pages = (sum(column) for column in zip(*map(_resident, paths), strict=True))
    if left > DROPPED * pages:
        return [
            f"{100 * left / pages:.0f} % of the bundle may have stayed in memory: the system did not forget it, or does not tell"
        ]
    return []


def _resident(path: Path) -> tuple[int, int]:
    """Pages of a file that lie in memory, and all of its pages. Source: mincore(2)."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    if not pages:
        return 0, 0
    found = (ctypes.c_ubyte * pages)()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        start = ctypes.c_char.from_buffer(mapped)
        done = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found
        )
        del start  # else the map could not be closed
    if done:  # not known counts as there
        return pages, pages
    return sum(page & 1 for page in found), pages


def label_pack(bundle: Bundle, settings: Settings, path: Path) -> Path | None:
    """Vectors of the labels in a file; None: the bundle has its labels baked in."""
    with open_model(bundle, settings) as model:
        pack: LabelPack | None = import_module(TASKS[settings.task]).labels_of(model, settings)
    if pack is None:
        return None
    pack.save(path)
    return path


def _parts(found: Mapping[str, int]) -> dict[str, float]:
    """ms of each part of one start. What the child did for measuring alone lies between them and is left out."""
    python, imported = found["begun_ns"] - found["started_ns"], found["imported_ns"] - found["begun_ns"]
    times = {"python": python, "import": imported, "load": found["load_ns"], "first": found["first_ns"]}
    return {name: ns / 1e6 for name, ns in {**times, "total": sum(times.values())}.items()}


def _put_together(kind: Kind, runs: Sequence[Mapping[str, float]], notes: Sequence[str]) -> ColdStart:
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    totals = [run["total"] for run in runs]
    return ColdStart(
        kind=kind,
        runs=len(runs),
        import_ms=middle["import"],
        load_ms=middle["load"],
        first_ms=middle["first"],
        total_ms=middle["total"],
        low_ms=min(totals),
        high_ms=max(totals),
        notes=(f"{middle['python']:.0f} ms of the total are Python's own start", *notes),
    )
