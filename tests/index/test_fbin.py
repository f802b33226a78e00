"""The big-ann format: its bytes, faiss's answers on them, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index.away import fbin
from edgeclip.runtime.index.away.files import export_file, open_file
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Item, Origin
from tests.index.away import ORIGIN, InMemory, small
from tests.mutants import broken
from tests.vectors import clip_like

PEERS = (
    Path(__file__).parents[2] / ".cache" / "peers"
)  # pip install --target .cache/peers --no-deps faiss-cpu


def read_all(path: Path) -> tuple[Any, Any, list[Item]]:
    ids, vectors, items = zip(*open_file(path).batches(7), strict=True)
    return np.concatenate(ids), np.concatenate(vectors), [item for part in items for item in part]


# A component of int8 codes is off by half a step of 1 / 127 of the largest at most; fp16 by 2 ** -11 of its own size.
@pytest.mark.parametrize(("suffix", "atol"), [(".fbin", 0), (".f16bin", 5e-4), (".i8bin", 6e-3)])
def test_comes_back(tmp_path: Path, suffix: str, atol: float) -> None:
    index, path = small(), tmp_path / f"pets{suffix}"
    assert export_file(index, path) == 50
    source = open_file(path)
    assert (len(source), source.origin) == (50, ORIGIN)
    ids, rows, items = read_all(path)
    np.testing.assert_array_equal(ids, index.ids)
    np.testing.assert_allclose(rows, index.vectors_, rtol=0, atol=atol)
    assert items == index.items_
    names = {f"pets{end}" for end in (suffix, ".ids.i64bin", ".items.jsonl", ".model.json")}
    assert {child.name for child in tmp_path.iterdir()} == names


def test_bytes_as_the_format_has_them(tmp_path: Path) -> None:
    index, path = small(3), tmp_path / "pets.fbin"
    export_file(index, path)
    raw, ids = path.read_bytes(), (tmp_path / "pets.ids.i64bin").read_bytes()
    assert raw == struct.pack("<II", 3, 16) + b"".join(struct.pack("<16f", *row) for row in index.vectors_)
    assert ids == struct.pack("<II3q", 3, 1, 5, 8, 11)
    export_file(index, tmp_path / "pets.i8bin")
    codes = np.frombuffer((tmp_path / "pets.i8bin").read_bytes(), np.int8, offset=8)
    largest = np.abs(index.vectors_).max()
    np.testing.assert_array_equal(codes, np.rint(index.vectors_.ravel() * (127 / largest)))
    assert json.loads((tmp_path / "pets.model.json").read_text())["scale"] == pytest.approx(127 / largest)
    lines = [json.loads(line) for line in (tmp_path / "pets.items.jsonl").read_text().splitlines()]
    assert [(line["row"], line["id"]) for line in lines] == [(0, 5), (1, 8), (2, 11)]


def test_faiss_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (PEERS / "faiss").is_dir():
        pytest.skip("faiss is not in .cache/peers")
    monkeypatch.setattr(sys, "path", [*sys.path, str(PEERS)])
    import faiss

    rows, path = clip_like(500, 32), tmp_path / "pets.fbin"
    with Index.create(tmp_path / "pets.index", Origin("cd" * 32, "toy", 32)) as index:
        index.add(rows, [f"p/{i}.jpg" for i in range(500)])
        index.flush()
        index.add(clip_like(30, 32, seed=1), [f"later {i}" for i in range(30)])  # these are in the log
        index.remove(["p/7.jpg", "later 3"])
        assert export_file(index, path) == 528
        queries = clip_like(20, 32, "text")
        wanted = index.search_many(queries, 5, exact=True)
    read = np.memmap(path, np.float32, "r", 8).reshape(-1, 32)  # as the docstring says
    found = faiss.IndexIDMap(faiss.IndexFlatIP(32))
    found.add_with_ids(read, np.fromfile(tmp_path / "pets.ids.i64bin", np.int64, offset=8))
    scores, ids = found.search(queries, 5)
    assert ids.tolist() == [[hit.id for hit in hits] for hits in wanted]
    np.testing.assert_allclose(scores, [[hit.score for hit in hits] for hits in wanted], atol=1e-5)


def test_vectors_alone(tmp_path: Path) -> None:
    path = tmp_path / "others.fbin"
    rows = clip_like(3, 4)
    path.write_bytes(struct.pack("<II", 3, 4) + rows.tobytes())
    source = open_file(path)
    assert source.origin is None
    _, vectors, items = read_all(path)
    np.testing.assert_array_equal(vectors, rows)
    assert items == [Item("0"), Item("1"), Item("2")]


def damage(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


REFUSED: dict[str, tuple[str, Any, str]] = {
    "cut": (
        "pets.fbin",
        lambda raw: raw[:-1],
        r"pets\.fbin: says 3 rows of 16, which are 200 bytes, got 199",
    ),
    "header": ("pets.fbin", lambda raw: raw[:5], r"pets\.fbin: expected a header of 8 bytes, got 5"),
    "ids": (
        "pets.ids.i64bin",
        lambda raw: raw[:-8],
        r"ids\.i64bin: expected 3 ids of 8 bytes, got 3 x 1 in 24 bytes",
    ),
    "fewer": (
        "pets.items.jsonl",
        lambda raw: raw[: raw.index(b"\n") + 1],
        r"items\.jsonl: 1 lines for the 3 rows of pets\.fbin",
    ),
    "more": (
        "pets.items.jsonl",
        lambda raw: raw + b'{"key": "x"}\n',
        r"items\.jsonl: more lines than the 3 rows of pets\.fbin",
    ),
    "no JSON": (
        "pets.items.jsonl",
        lambda raw: b"?" + raw,
        r'items\.jsonl:1: expected \{"row", "id", "key", "record"\}',
    ),
    "swapped": (
        "pets.items.jsonl",
        lambda raw: raw.split(b"\n", 1)[1],
        r"items\.jsonl:1: expected row 0, got 1",
    ),
    "other ids": (
        "pets.ids.i64bin",
        lambda raw: raw[:8] + struct.pack("<3q", 5, 8, 12),
        r"items\.jsonl:3: expected id 12, got 11",
    ),
    "note": ("pets.model.json", lambda raw: b"[", r"model\.json: cannot be read"),
    "width": (
        "pets.model.json",
        lambda raw: raw.replace(b'"16"', b'"8"'),
        r"model\.json: says vectors of width 8 and holds width 16",
    ),
    "zeros": (
        "pets.fbin",
        lambda raw: raw[:8] + bytes(192),
        r"row 0: expected a vector of length 1, got length 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    export_file(small(3), tmp_path / "pets.fbin")
    name, change, message = REFUSED[case]
    damage(tmp_path, name, change)
    with pytest.raises(InputError, match=message):
        read_all(tmp_path / "pets.fbin")


def test_an_empty_index(tmp_path: Path) -> None:
    empty = InMemory(np.empty((0, 16), np.float32), [])
    for suffix in (".fbin", ".i8bin", ".parquet"):
        assert export_file(empty, tmp_path / f"none{suffix}") == 0
        source = open_file(tmp_path / f"none{suffix}")
        assert (len(source), list(source.batches(5)), source.origin) == (0, [], ORIGIN)


def test_the_comparison_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, old, new in [
        ("_lines", "items, strict=True), first)", "items, strict=True), 0)"),
        ("_scale", "127 / largest", "100 / largest"),
        ("export_fbin", "np.rint(vectors * scale), -127", "(vectors * scale), -127"),
        ("export_fbin", "[rows, width]", "[width, rows]"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(fbin, name, broken(getattr(fbin, name), old, new))
            patch.setattr(fbin, "AT_ONCE", 2)
            with pytest.raises((AssertionError, InputError)):
                _compare(tmp_path)


def _compare(folder: Path) -> None:
    test_comes_back(folder, ".fbin", 0)
    test_bytes_as_the_format_has_them(folder)


def test_vectors_come_last(tmp_path: Path) -> None:
    export_file(small(), tmp_path / "pets.fbin")
    (tmp_path / "pets.items.jsonl").unlink()
    (tmp_path / "pets.items.jsonl" / "in the way").mkdir(parents=True)
    with pytest.raises(InputError, match=r"pets\.fbin: cannot be written \(Is a directory\)"):
        export_file(small(), tmp_path / "pets.fbin")
    assert not (tmp_path / "pets.fbin").exists()  # an old one beside new ids would be read as theirs
    assert not list(tmp_path.glob(".*"))
