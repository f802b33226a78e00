"""An index of edgeclip beside faiss, hnswlib and plain usearch, at equal recall.

    pip install --target .cache/peers --no-deps -r benchmarks/requirements.txt
    PYTHONPATH=.cache/peers python -m benchmarks.retrieval
    PYTHONPATH=.cache/peers python -m benchmarks.retrieval --count 1000000

Vectors of width 512 with a CLIP model's traits (tests/vectors.py) and 1,000 queries that are not among them, half pictures and half texts, k = 10.
Every graph's effort is raised until recall@10 is 0.99 or more; then single queries are timed in one process, all contestants in
turns, one thread each. edgeclip is timed through `Index.search_ids`, and through `Index.search_many`, which also fetches keys and records. Opening and memory are
measured in a process of its own for each. Graphs are kept in .cache/retrieval; --again builds them anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.retrieval_contestants import (
    CONTESTANTS,
    EXPANSION,
    LINKS,
    THREADS,
    Array,
    Contestant,
    built,
    place,
)
from edgeclip.runtime.index.segment import recall
from tests.vectors import clip_like

ROOT = Path(__file__).parents[1]
K, DIM, QUERIES = 10, 512, 1000
LEAST, CLOSE = 0.99, 0.001
ROUNDS = 3
TURN = 100  # queries in a row: a program that asks has its caches
FLAT = 50  # queries that the exhaustive ones are timed with


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--again", action="store_true", help="build every graph anew")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--probe", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/retrieval")
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(_probe(options.probe[0], Path(options.probe[1]))))
        return
    folder = ROOT / ".cache/retrieval" / str(options.count)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": describe(), "count": options.count, "dim": DIM, "k": K, "links": LINKS, "expansion": EXPANSION,
        "rows": _measure(options.count, options.only, folder, options.again),
    }  # fmt: skip
    _write(options.output, found)


def _measure(count: int, names: list[str], folder: Path, again: bool) -> list[dict[str, Any]]:
    vectors, queries, truth = _data(count, folder)
    rows, opened = [], {}
    for name in names:
        contestant, path, seconds = built(name, vectors, folder, again=again and "+" not in name)
        row = {
            "name": contestant.name,
            "build_s": seconds,
            "rate": round(count / seconds),
            "file_bytes": _size(path) / count,
        }
        command = [sys.executable, "-m", "benchmarks.retrieval", "--probe", name, str(folder)]
        row |= json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        )
        row["resident_bytes"] = row.pop("grown") / count
        contestant.open(path)
        row |= _effort(contestant, queries, truth)
        print(row, file=sys.stderr)
        rows.append(row)
        opened[name] = contestant
    times = _in_turns([(one, row["effort"]) for one, row in zip(opened.values(), rows, strict=True)], queries)
    for row, taken, contestant in zip(rows, times, opened.values(), strict=True):
        row |= {f"p{part}_ms": round(float(np.percentile(taken, part)), 3) for part in (50, 99)}
        start = time.perf_counter()
        contestant.search(queries, K, THREADS)
        row["batch_qps"] = round(len(queries) / (time.perf_counter() - start))
    return rows


def _data(count: int, folder: Path) -> tuple[Array, Array, Array]:
    """Vectors, queries, and of each query the K nearest by float32 inner products."""
    vectors = clip_like(count, DIM)
    queries = np.concatenate([clip_like(QUERIES // 2, DIM, kind, seed=1) for kind in ("image", "text")])
    np.save(folder / "queries.npy", queries)
    kept = folder / "truth.npy"
    if not kept.exists():
        tops = []
        for start in range(0, len(queries), 50):
            scores = queries[start : start + 50] @ vectors.T
            tops.append(np.argpartition(-scores, K, axis=1)[:, :K])
        np.save(kept, np.concatenate(tops))
    return vectors, queries, np.load(kept)


def _effort(contestant: Contestant, queries: Array, truth: Array) -> dict[str, Any]:
    """The least effort that finds enough; of one whose codes are too coarse for it, the least that finds nearly all that it can."""
    tried: list[dict[str, Any]] = []
    half = len(queries) // 2
    for effort in contestant.efforts:
        contestant.set_effort(effort)
        got = contestant.search(queries, K, THREADS)
        by = {"pictures": recall(got[:half], truth[:half]), "texts": recall(got[half:], truth[half:])}
        tried.append({"effort": effort, "recall": recall(got, truth), "recall_of": by})
        if tried[-1]["recall"] >= LEAST:
            return tried[-1]
    most = max(one["recall"] for one in tried)
    return next(one for one in tried if one["recall"] >= most - CLOSE)


def _in_turns(contestants: list[tuple[Contestant, int]], queries: Array) -> list[list[float]]:
    """Milliseconds of each query; nobody has the quiet minute for itself."""
    times: list[list[float]] = [[] for _ in contestants]
    order = np.random.default_rng(0).permutation(len(queries))
    for one, effort in contestants:
        one.set_effort(effort)
        one.search(queries[:20], K, 1)
    for part in np.array_split(np.tile(order, ROUNDS), ROUNDS * len(order) // TURN):
        for taken, (one, effort) in zip(times, contestants, strict=True):
            for i in part if effort else part[: FLAT * TURN // len(order)]:
                start = time.perf_counter()
                one.search(queries[i : i + 1], K, 1)
                taken.append(1e3 * (time.perf_counter() - start))
    return times


def _probe(name: str, folder: Path) -> dict[str, Any]:
    """In a process of its own: ms to open and to answer the first query, and bytes that it grew by after all queries."""
    contestant, queries = CONTESTANTS[name](), np.load(folder / "queries.npy")
    queries[:8] @ queries[:8].T
    __import__(
        {"edgeclip": "edgeclip.runtime.index.index", "faiss": "faiss", "hnswlib": "hnswlib"}.get(
            name.split("-")[0], "usearch.index"
        )
    )
    __import__("usearch.index")
    before, start = _resident(), time.perf_counter()
    contestant.open(place(name, folder))
    opened = time.perf_counter()
    contestant.search(queries[:1], K, 1)
    first = time.perf_counter()
    for i in range(len(queries) if contestant.efforts != (0,) else FLAT):
        contestant.search(queries[i : i + 1], K, 1)
    return {
        "open_ms": round(1e3 * (opened - start), 2),
        "first_ms": round(1e3 * (first - opened), 2),
        "grown": _resident() - before,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _size(path: Path) -> int:
    return sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


def _write(output: Path, found: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Searching an index", "",
        f"{found['count']:,} vectors of width {found['dim']} with a CLIP model's traits; {QUERIES:,} queries, half pictures and half texts; recall@{K} "
        f"of an exact float32 search, raised to {LEAST} by the effort of the walk, or as far as codes allow. Graphs: M {found['links']}, ef {found['expansion']} while built, "
        f"{THREADS} threads. One query at a time on one thread, all contestants in turns of 100. "
        "Memory: what the process grew by, mapped pages that were touched included. Made by `python -m benchmarks.retrieval`.", "",
        "| | recall@10 (pictures, texts) | ef | p50 | p99 | batch, queries/s | built, vectors/s | bytes a vector: file, memory | open | first query |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        of = row["recall_of"]
        lines.append(
            f"| {row['name']} | {row['recall']:.3f} ({of['pictures']:.3f}, {of['texts']:.3f}) | {row['effort'] or '-'} | {row['p50_ms']} ms "
            f"| {row['p99_ms']} ms | {row['batch_qps']:,} | {row['rate']:,} | {row['file_bytes']:,.0f}, {row['resident_bytes']:,.0f} "
            f"| {row['open_ms']} ms | {row['first_ms']} ms |"
        )
    lines += [
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in found["machine"].items()) + ".",
        "",
    ]
    text = "\n".join(lines)
    output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
