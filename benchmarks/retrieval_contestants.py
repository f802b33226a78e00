"""What benchmarks/retrieval.py compares: each builds a file once, opens it, and searches with more or less effort."""

from __future__ import annotations

import dataclasses
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LINKS, EXPANSION = 16, 400  # of every graph: HNSW's M, and its ef while it is built

THREADS = len(os.sched_getaffinity(0))


class Contestant(ABC):
    """A library and its settings. `effort` is HNSW's ef; 0 where nothing is to choose."""

    name: str
    efforts: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768)

    @abstractmethod
    def build(self, vectors: Array, path: Path) -> None:
        """Write what `open` reads."""

    @abstractmethod
    def open(self, path: Path) -> None:
        """As a program would that starts."""

    @abstractmethod
    def search(self, queries: Array, k: int, threads: int) -> Array:
        """(Q, k) rows."""

    def set_effort(self, effort: int) -> None:
        """For the searches that follow; flat ones have none."""
        return


class EdgeClip(Contestant):
    """A whole index: ids as the others give them, or hits with their keys and records."""

    def __init__(self, precision: Any, *, exact: bool = False, records: bool = False) -> None:
        self.name = (
            f"edgeclip {precision}"
            + (", exact" if exact else "")
            + (", with keys and records" if records else "")
        )
        self.precision, self.exact, self.records = precision, exact, records
        if exact:
            self.efforts = (0,)

    def build(self, vectors: Array, path: Path) -> None:
        """All vectors through `Index.add`, then one segment of them all."""
        import edgeclip

        settings = edgeclip.IndexSettings(
            precision=self.precision, exact_below=len(vectors) if self.exact else 0, flush_at=len(vectors)
        )
        origin = edgeclip.Origin("0" * 64, "benchmark", vectors.shape[1])
        with edgeclip.Index.create(path, origin, settings=settings, overwrite=True) as index:
            for start in range(0, len(vectors), 4096):
                some = vectors[start : start + 4096]
                index.add(some, [f"{start + i:08}.jpg" for i in range(len(some))])
            index.optimize()

    def open(self, path: Path) -> None:
        """Index.open."""
        import edgeclip

        self.index = edgeclip.Index.open(path)

    def set_effort(self, effort: int) -> None:
        """`expansion_search` of the settings; of bits, `oversample`, which says how many candidates there are."""
        for part in self.index._now().parts if effort else ():
            assert part.segment is not None
            changed = {"expansion_search": effort, "oversample": max(1, effort // 10)}
            if self.precision != "bits":
                del changed["oversample"]
            part.segment._settings = dataclasses.replace(part.segment._settings, **changed)  # type: ignore[arg-type]

    def search(self, queries: Array, k: int, threads: int) -> Array:
        """`Index.search_ids`, or `Index.search_many`."""
        if not self.records:
            return self.index.search_ids(queries, k)[0]
        found = [[hit.id for hit in hits] for hits in self.index.search_many(queries, k)]
        return np.array([row + [-1] * (k - len(row)) for row in found])


class USearch(Contestant):
    """usearch as its documentation has it, halves; `view` maps the file."""

    name = "usearch f16"

    def _empty(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="ip", dtype="f16", connectivity=LINKS, expansion_add=EXPANSION)

    def build(self, vectors: Array, path: Path) -> None:
        """All cores."""
        index = self._empty(vectors.shape[1])
        index.add(np.arange(len(vectors)), vectors)
        index.save(str(path))

    def open(self, path: Path) -> None:
        """Mapped."""
        from usearch.index import Index

        self.index = Index.restore(str(path), view=True)

    def set_effort(self, effort: int) -> None:
        """expansion_search."""
        self.index.expansion_search = effort

    def search(self, queries: Array, k: int, threads: int) -> Array:
        """Index.search."""
        found: Array = np.atleast_2d(self.index.search(queries, k, threads=threads).keys)
        return found


class HnswLib(Contestant):
    """hnswlib, float32: it has no other."""

    name = "hnswlib f32"

    def build(self, vectors: Array, path: Path) -> None:
        """All cores."""
        import hnswlib

        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), ef_construction=EXPANSION, M=LINKS)
        index.add_items(vectors, np.arange(len(vectors)), num_threads=THREADS)
        index.save_index(str(path))
        path.with_suffix(".dim").write_text(str(vectors.shape[1]))

    def open(self, path: Path) -> None:
        """Read whole: it maps nothing."""
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=int(path.with_suffix(".dim").read_text()))
        self.index.load_index(str(path))

    def set_effort(self, effort: int) -> None:
        """ef."""
        self.index.set_ef(effort)

    def search(self, queries: Array, k: int, threads: int) -> Array:
        """knn_query."""
        found: Array = self.index.knn_query(queries, k, num_threads=threads)[0]
        return found


class Faiss(Contestant):
    """faiss: a flat index, or HNSW over float32 rows."""

    def __init__(self, kind: str) -> None:
        self.name, self.kind = f"faiss {kind}", kind
        if kind == "flat":
            self.efforts = (0,)

    def build(self, vectors: Array, path: Path) -> None:
        """All cores."""
        import faiss

        faiss.omp_set_num_threads(THREADS)
        if self.kind == "flat":
            index = faiss.IndexFlatIP(vectors.shape[1])
        else:
            index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = EXPANSION
        index.add(vectors)
        faiss.write_index(index, str(path))

    def open(self, path: Path) -> None:
        """Mapped where faiss can: the rows of a flat index; it reads a graph whole."""
        import faiss

        self.index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if self.kind == "flat" else 0)

    def set_effort(self, effort: int) -> None:
        """efSearch."""
        if effort:
            self.index.hnsw.efSearch = effort

    def search(self, queries: Array, k: int, threads: int) -> Array:
        """Index.search."""
        import faiss

        if faiss.omp_get_max_threads() != threads:
            faiss.omp_set_num_threads(threads)
        found: Array = self.index.search(queries, k)[1]
        return found


CONTESTANTS: dict[str, Callable[[], Contestant]] = {
    "edgeclip-fp16": lambda: EdgeClip("fp16"),
    "edgeclip-fp16+records": lambda: EdgeClip("fp16", records=True),
    "edgeclip-int8": lambda: EdgeClip("int8"),
    "edgeclip-bits": lambda: EdgeClip("bits"),
    "edgeclip-exact": lambda: EdgeClip("fp16", exact=True),
    "usearch": USearch,
    "hnswlib": HnswLib,
    "faiss-hnsw": lambda: Faiss("HNSW f32"),
    "faiss-flat": lambda: Faiss("flat"),
}


def place(name: str, folder: Path) -> Path:
    """The file or folder of a contestant; one index is asked in two ways."""
    return folder / name.partition("+")[0]


def built(name: str, vectors: Array, folder: Path, *, again: bool) -> tuple[Contestant, Path, float]:
    """A contestant, its file, and the seconds that it took to write: kept from an earlier run unless `again`."""
    contestant, path = CONTESTANTS[name](), place(name, folder)
    kept = path.with_name(f"{path.name}.seconds")
    if again or not kept.exists():
        kept.unlink(missing_ok=True)
        start = time.perf_counter()
        contestant.build(vectors, path)
        kept.write_text(f"{time.perf_counter() - start:.2f}")
    return contestant, path, float(kept.read_text())
