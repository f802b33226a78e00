"""`--json`: only objects on stdout, one for each input, with the values that the library gives.

The other verbs: `export` in tests/export/test_api.py, `train` in tests/training/test_cli.py, the rest in this folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import edgeclip as library
from tests.cli.conftest import Edgeclip

ROOT = Path(__file__).parents[2]
NANO = ROOT / "edgeclip/assets/nano/bundle.json"


def test_classify(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    said = edgeclip("classify", photos, "-b", toy, "--labels", "a cat,a dog", "--json")
    assert (said.code, said.err) == (0, "")
    with library.load(toy) as model:
        for record in said.records:
            wanted = model.classify(record["path"], ["a cat", "a dog"]).to_dict()
            assert record == {"path": record["path"], **wanted}
    assert len(said.records) == 3


def test_classify_table_agrees(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    asked = ["classify", photos / "a.png", "-b", toy, "--labels", "a cat,a dog"]
    table, record = edgeclip(*asked).out, edgeclip(*asked, "--json").record
    (row,) = [line for line in table.splitlines() if "a.png" in line]
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        record["label"],
        f"{record['score']:.2f}",
        f"{record['labels'][1]} {record['scores'][1]:.2f}",
    ]
    assert re.search(r"^toy \(image: image-fp32 on onnxruntime-cpu, .* threads\)$", table, re.MULTILINE)


def test_embed_pictures_and_texts(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    pictures = edgeclip("embed", photos, "-b", toy, "--batch-size", 2, "--json").records
    texts = edgeclip("embed", "--text", "a cat", "--text", "", "-b", toy, "--json").records
    with library.load(toy) as model:
        rows = model.embed_images([record["path"] for record in pictures])
        np.testing.assert_allclose([record["embedding"] for record in pictures], rows, rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            [record["embedding"] for record in texts], model.embed_texts(["a cat", ""]), rtol=0, atol=1e-6
        )
    assert [record["text"] for record in texts] == ["a cat", ""]


def test_embed_files(photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    lines = edgeclip("embed", photos, "-b", toy, "--json", "-o", tmp_path / "new/x.npz")
    assert lines.err == f"{tmp_path}/new/x.npz: 3 vectors of width 8\n"
    with np.load(tmp_path / "new/x.npz") as file:  # no pickle in it
        assert file["items"].tolist() == [record["path"] for record in lines.records]
        assert file["embeddings"].tolist() == [record["embedding"] for record in lines.records]
        vectors = file["embeddings"]
    said = edgeclip("embed", photos, "-b", toy, "-o", tmp_path / "x.npy")
    assert (said.code, said.out) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), vectors)


def test_search_ranks_by_cosine(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    (photos / "bad.png").write_bytes(b"bad")
    said = edgeclip("search", photos, "a cat", "-b", toy, "--json")
    error, *ranked = said.records
    assert error.keys() == {"path", "error"}
    with library.load(toy) as model:
        names = [f"{photos}/{name}" for name in ("a.png", "b.JPG", "below/c.bmp")]
        cosines = dict(zip(names, model.embed_images(names) @ model.embed_texts("a cat"), strict=True))
    assert [record["path"] for record in ranked] == sorted(cosines, key=lambda name: -cosines[name])
    assert [record["rank"] for record in ranked] == [1, 2, 3]
    assert [record["score"] for record in ranked] == pytest.approx(
        sorted(cosines.values(), reverse=True), abs=1e-6
    )
    (best,) = edgeclip("search", photos, "a cat", "-b", toy, "-k", 1, "--json").records[1:]
    assert best == ranked[0]


def test_inspect(toy: Path, edgeclip: Edgeclip) -> None:
    bundle = library.open_bundle(toy)
    record = edgeclip("inspect", toy, "--memory", "--json").record
    assert record["digest"] == bundle.digest
    assert record["size_bytes"] == sum(entry.size for entry in bundle.manifest.files.values())
    assert record["variants"] == json.loads(json.dumps([asdict(v) for v in bundle.manifest.variants]))
    assert record["memory_bytes"].keys() == {"image-fp32", "text-fp32"}
    assert "memory_bytes" not in edgeclip("inspect", toy, "--json").record
    table = edgeclip("inspect", toy, "--memory").out
    assert all(word in table for word in ("image-fp32", "32 x 32 pixels", "up to 12 tokens", "MIT"))


def test_verify(toy: Path, edgeclip: Edgeclip) -> None:
    whole = edgeclip("verify", toy, "--json")
    assert (whole.code, whole.err, whole.record["passed"]) == (0, "", True)
    graph = toy / "graphs/image-fp32.onnx"
    raw = bytearray(graph.read_bytes())
    raw[-100] ^= 1
    graph.write_bytes(raw)
    said = edgeclip("verify", toy, "--json")
    assert (said.code, said.record["passed"]) == (1, False)
    assert said.err.startswith(f"edgeclip: {toy}: hashes: {graph}: SHA-256 is ")
    assert said.err.count("\n") == 1
    table = edgeclip("verify", toy)
    assert (table.code, table.err) == (1, said.err)
    assert "FAILED" in table.out


@pytest.mark.skipif(not NANO.exists(), reason="the embedded model, nano, is not in this tree")
def test_nano_is_what_runs_without_a_bundle(photos: Path, edgeclip: Edgeclip) -> None:
    assert edgeclip("verify", "nano").code == 0
    said = edgeclip("classify", photos / "a.png", "--labels", "a cat,a dog", "--json")
    assert said.code == 0
    with library.load("nano") as model:
        assert said.record["scores"] == list(model.classify(photos / "a.png", ["a cat", "a dog"]).scores)
