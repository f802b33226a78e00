"""Segments are written, merged and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.records import write_records
from edgeclip.runtime.index.scales import Scales, fit_scales
from edgeclip.runtime.index.segment import Segment
from edgeclip.runtime.index.segment_files import write_segment
from edgeclip.runtime.index.store import Store
from edgeclip.runtime.index.types import IndexSettings, Item
from edgeclip.runtime.index.view import Part, View

Vectors = NDArray[np.float32]
SAMPLE = 200  # vectors that are looked for when recall is measured


def flush(store: Store, view: View) -> None:
    """The log's living items become a segment, with what stands before it and is no larger: a vector is rewritten log2 N times."""
    if not len(store.tail.ids):
        return
    parts = list(view.parts)
    merged = [parts.pop()]
    total = merged[0].living_count
    while parts and parts[-1].living_count <= total:
        merged.insert(0, parts.pop())
        total += merged[0].living_count
    _write(store, parts, merged)


def untidy(view: View, settings: IndexSettings) -> bool:
    """Whether one segment is worth its work: a tenth lies outside the largest graph, of more than are compared, or a quarter is gone."""
    counts = [part.living_count for part in view.parts]
    graphs = [part.living_count for part in view.parts if part.segment and part.segment.kind == "graph"]
    total = sum(counts)
    gone = sum(len(part.ids) for part in view.parts) - total
    return 4 * gone > total or (
        total > settings.exact_below and 10 * (total - max(graphs, default=0)) > total
    )


def optimize(store: Store, view: View) -> None:
    """One segment of all."""
    if len(view.parts) > 1 or any(part.living is not None for part in view.parts) or len(store.tail.ids):
        _write(store, [], list(view.parts))


def _write(store: Store, kept: Sequence[Part], merged: Sequence[Part]) -> None:
    rows = [part.living_rows() for part in merged]
    ids = np.concatenate([part.ids[some] for part, some in zip(merged, rows, strict=True)])
    new, scales, measured = [], None, None
    if len(ids):
        vectors = np.concatenate([part.vectors(some) for part, some in zip(merged, rows, strict=True)])
        items: list[Item] = []
        for part, some in zip(merged, rows, strict=True):
            items += part.records.items(some.tolist())
        settings, fitted = (
            store.manifest.settings,
            None if store.scales is None else Scales.from_bytes(store.scales),
        )
        if fitted is None and settings.precision != "fp16":
            fitted = fit_scales(vectors, settings.precision)
            scales = fitted.to_bytes()
        folder = store.new_segment()
        first = merged[0]
        grow = (
            first.segment
            if first.living is None and first.segment and first.segment.kind == "graph"
            else None
        )
        write_segment(folder, ids, vectors, settings, fitted, grow_from=grow)
        write_records(folder, ids, items)
        new.append(folder)
        if merged[-1].segment is None:  # float32 rows, as the model gave them
            measured = _stored_recall(
                Segment.open(folder, vectors.shape[1], settings, fitted), ids, merged[-1]
            )
    store.commit(
        new, [part.name for part in kept], taken=len(store.tail.ids), scales=scales,
        measured=None if measured is None else {"stored": measured},
    )  # fmt: skip


def _stored_recall(
    segment: Segment, ids: NDArray[np.int64], tail: Part, k: int = 10
) -> dict[str, Any] | None:
    """What the stored precision keeps of the k nearest by float32, among the vectors that came from the log."""
    rows = tail.living_rows()
    if len(rows) <= k + 1:
        return None
    vectors = tail.vectors(rows)
    asked = np.random.default_rng(0).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
    cosines = vectors[asked] @ vectors.T
    cosines[np.arange(len(asked)), asked] = -np.inf
    truth = np.argpartition(-cosines, k, axis=1)[:, :k]
    among = np.isin(ids, tail.ids[rows])  # the tail's rows stand in the same order in the segment
    number = np.cumsum(among) - 1
    allowed = None if among.all() else among
    found, _ = segment.search(
        vectors[asked], k + 1, allowed=allowed, exact=True
    )  # what a walk misses is `recall`
    hits = [
        len(set(number[row[row >= 0]].tolist()) - {own} & set(want.tolist()))
        for row, want, own in zip(found, truth, asked.tolist(), strict=True)
    ]
    return {"recall": round(float(np.mean(hits)) / k, 4), "k": k, "queries": len(asked), "vectors": len(rows)}


def measure_recall(store: Store, view: View, queries: NDArray[Any] | None, k: int) -> dict[str, Any]:
    """See Index.measure_recall."""
    count = sum(part.living_count for part in view.parts)
    if count < 2:
        raise InputError(f"{store.path}: recall needs two items at least, it holds {count}.")
    selves, asked = _sample(view, count) if queries is None else (None, np.asarray(queries, np.float32))
    extra = selves is not None  # a stored vector is its own nearest, which proves nothing
    most = min(k, count - extra)
    sets: list[list[set[int]]] = []
    for exact in (False, True):
        part, row, _ = view.search(asked, most + extra, exact=exact)
        found = [set(one[one >= 0].tolist()) for one in view.ids(part, row)]
        sets.append(
            found
            if selves is None
            else [ids - {own} for ids, own in zip(found, selves.tolist(), strict=True)]
        )
    hits = [
        min(len(found & want), most) for found, want in zip(*sets, strict=True)
    ]  # where duplicates push one out, most + 1 are left
    return {
        "recall": round(float(np.mean(hits)) / most, 4), "k": most, "queries": len(asked), "vectors": count,
        "stored": store.manifest.measured.get("stored", {}).get("recall"),
    }  # fmt: skip


def _sample(view: View, count: int) -> tuple[NDArray[np.int64], Vectors]:
    """Ids and vectors of some of the living, the same each time."""
    wanted = np.sort(np.random.default_rng(0).choice(count, min(SAMPLE, count), replace=False))
    ids, rows, start = [], [], 0
    for part in view.parts:
        living = part.living_rows()
        here = living[wanted[(wanted >= start) & (wanted < start + len(living))] - start]
        ids.append(part.ids[here])
        rows.append(part.vectors(here))
        start += len(living)
    return np.concatenate(ids), np.concatenate(rows)


def info(store: Store, view: View) -> dict[str, Any]:
    """See Index.info."""
    manifest = store.manifest
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    count = sum(part.living_count for part in view.parts)
    return {
        "path": str(store.path),
        "items": count,
        "bytes": size,
        "bytes_per_item": round(size / count, 1) if count else None,
        "model": {
            "name": manifest.origin.name, "model_id": manifest.origin.model_id, "dim": manifest.origin.dim,
            "variants": list(manifest.origin.variants),
        },
        "precision": manifest.settings.precision,
        "segments": [
            {"name": part.name, "items": part.living_count, "removed": len(part.ids) - part.living_count, "kind": part.segment.kind}
            for part in view.parts
            if part.segment
        ],
        "in_log": sum(part.living_count for part in view.parts if part.segment is None),
        "measured": dict(manifest.measured),
    }  # fmt: skip
