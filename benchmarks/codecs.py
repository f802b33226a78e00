"""Embeddings in fewer bytes: recall, size and search time of edgeclip's codecs beside faiss and usearch, on the same vectors.

    pip install --target .cache/peers --no-deps -r benchmarks/requirements.txt
    PYTHONPATH=.cache/peers python -m benchmarks.codecs --nano DATA

100,000 vectors of width 512 with a CLIP model's traits (tests/vectors.py), fitted to 20,000 others. All search exhaustively, so that what
is compared is the code and not an index. DATA is what examples/nano/prepare.py writes: then a table of real pictures and texts, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from edgeclip.runtime.codecs import Codecs
from edgeclip.runtime.codecs.fit import fit_codecs, measure
from tests.vectors import clip_like

ROOT = Path(__file__).parents[1]
Array = NDArray[Any]
K = 10
Search = Callable[[Array], Array]  # (Q, D) queries -> (Q, K) rows
REST_S = 0.1  # threads of the one before go on spinning for a while


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nano", type=Path, help="folder with training.npy, unseen.npy and their .json")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/codecs")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": describe(), "count": options.count, "dim": options.dim}
    found["rows"], found["left_out"] = _made_up(options.count, options.dim, options.rounds)
    if options.nano:
        found["nano"] = _nano(options.nano)
    _write(options.output, found)


def _made_up(count: int, dim: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    documents, queries = clip_like(count, dim), clip_like(200, dim, seed=1)
    start = time.perf_counter()
    codecs = fit_codecs({"image": clip_like(20_000, dim, seed=2)}, "")
    print(f"fitted in {time.perf_counter() - start:.1f} s: {codecs.cut}", file=sys.stderr)
    ways, sizes = _edgeclip(codecs, documents)
    left_out = {}
    for peer in (_faiss, _usearch):
        try:
            for name, (search, size) in peer(documents).items():
                ways[name], sizes[name] = search, size
        except Exception as error:  # a peer that is not installed, or fails, is said to be left out
            left_out[peer.__name__.strip("_")] = str(error).splitlines()[0]
    exact = ways["float32, numpy"](queries)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, search in ways.items():
            time.sleep(REST_S)
            begin = time.perf_counter()
            search(queries[:1])
            times[name] += [1e3 * (time.perf_counter() - begin)] if number else []
    rows = []
    for name, search in ways.items():
        hits = [len(set(a) & set(b)) for a, b in zip(exact, search(queries), strict=True)]
        rows.append(
            {
                "codec": name,
                "bytes": sizes[name],
                "recall": round(float(np.mean(hits)) / K, 4),
                "ms": round(float(np.median(times[name])), 2),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows, left_out


def _edgeclip(codecs: Codecs, documents: Array) -> tuple[dict[str, Search], dict[str, int]]:
    ways: dict[str, Search] = {"float32, numpy": lambda queries: _top(queries @ documents.T)}
    sizes = {"float32, numpy": 4 * documents.shape[1]}
    codes = {name: codecs[name].encode(documents) for name in codecs.names}
    for name in codecs.names:
        ways[f"edgeclip {name}"] = lambda queries, name=name: codecs[name].search(queries, K, codes[name])[0]
        sizes[f"edgeclip {name}"] = codecs[name].nbytes
    for finer in ("int8", "fp16"):
        rescore = codecs[finer], codes[finer]
        ways[f"edgeclip bits, then {finer}"] = lambda queries, rescore=rescore: codecs["bits"].search(
            queries, K, codes["bits"], rescore=rescore
        )[0]
        sizes[f"edgeclip bits, then {finer}"] = codecs["bits"].nbytes + codecs[finer].nbytes
    return ways, sizes


def _faiss(documents: Array) -> dict[str, tuple[Search, int]]:
    import faiss

    dim = documents.shape[1]
    found: dict[str, tuple[Search, int]] = {}
    kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "8 bits": faiss.ScalarQuantizer.QT_8bit}
    for name, kind in kinds.items():
        index = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(documents[:20_000])
        index.add(documents)
        found[f"faiss {name}"] = (
            (lambda queries, index=index: index.search(queries, K)[1]),
            index.sa_code_size(),
        )
    binary = faiss.IndexBinaryFlat(dim)
    binary.add(np.packbits(documents > 0, axis=1))
    found["faiss bits, signs as they are"] = (
        lambda queries: binary.search(np.packbits(queries > 0, axis=1), K)[1],
        dim // 8,
    )
    return found


def _usearch(documents: Array) -> dict[str, tuple[Search, int]]:
    from usearch.index import MetricKind, search

    codes = np.rint(documents * 127).astype(np.int8)  # as usearch makes i8 of unit vectors

    def i8(queries: Array) -> Array:
        asked = np.rint(queries * 127).astype(np.int8)
        keys: Array = search(codes, asked, K, MetricKind.IP, exact=True).keys
        return np.atleast_2d(keys)

    return {"usearch i8, one scale for all": (i8, documents.shape[1])}


def _top(scores: Array) -> Array:
    part = np.argpartition(-scores, K, axis=1)[:, :K]
    found: Array = np.take_along_axis(
        part, np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1), axis=1
    )
    return found


def _nano(data: Path) -> dict[str, Any]:
    """The embedded model on pictures of a style that it never saw; codecs fitted to the styles of its training."""
    from PIL import Image

    import edgeclip

    vectors, names = {}, {}
    with edgeclip.load("nano") as model:
        for part in ("training", "unseen"):
            stored = np.load(data / f"{part}.npy", mmap_mode="r")
            step = max(1, len(stored) // 4000)
            vectors[part] = model.embed_images(
                [Image.fromarray(each) for each in stored[::step]], batch_size=64
            )
            names[part] = sorted({item["name"] for item in json.loads((data / f"{part}.json").read_text())})
        texts = model.embed_texts(names["unseen"])
    codecs = fit_codecs({"image": vectors["training"], "text": texts[::2]}, model.manifest.model_id)
    found = measure(codecs, {"image": vectors["unseen"], "text": texts[1::2]})
    return {"fitted_to": codecs.measured["fitted_to"], **found}


def _write(output: Path, found: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Embeddings in fewer bytes", "",
        f"{found['count']:,} vectors of width {found['dim']} with a CLIP model's traits; recall@10 of an exact float32 search, "
        "200 queries; milliseconds of one query, median, exhaustive search. Made by `python -m benchmarks.codecs`.",
        "", "| | bytes a vector | recall@10 | one query |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['codec']} | {row['bytes']} | {row['recall']:.3f} | {row['ms']} ms |" for row in found["rows"]
    ]
    lines += ["", *(f"Left out: {name} ({reason})." for name, reason in found["left_out"].items())]
    if nano := found.get("nano"):
        fitted = nano["fitted_to"]
        lines += [
            "", "## nano on real pictures", "",
            f"Codecs fitted to {fitted['image']:,} pictures of its training styles and {fitted['text']:,} names; searched are "
            f"{nano['documents']:,} pictures of a style that it never saw, by other pictures of it and by other names.",
            "", "| | bytes a vector | pictures asking | texts asking |", "|---|---|---|---|",
        ]  # fmt: skip
        for row in nano["rows"]:
            name = row["codec"] + (f", then {row['rescore']}" if row["rescore"] else "")
            lines.append(
                f"| {name} | {row['bytes']} | {row['recall']['image']:.3f} | {row['recall']['text']:.3f} |"
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
