"""`edgeclip index export` and `edgeclip index import`, and a search away from home."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclip.runtime.index.index import Index
from tests.cli.conftest import Edgeclip

pytest.importorskip("pyarrow")
pytest.importorskip("qdrant_client")


@pytest.fixture
def index(edgeclip: Edgeclip, photos: Path, sealed: Path, tmp_path: Path) -> Path:
    """Three pictures, embedded by the toy bundle."""
    assert edgeclip("index", "build", photos, "-o", tmp_path / "pets.index", "-b", sealed).code == 0
    return tmp_path / "pets.index"


def same(one: Path, other: Path, atol: float) -> None:
    """Both hold the same items, in the same order."""
    with Index.open(one) as a, Index.open(other) as b:
        assert [item for _, item in a.items()] == [item for _, item in b.items()]
        assert (a.origin, len(a)) == (b.origin, 3)
        np.testing.assert_allclose(a.vectors(list(a.keys())), b.vectors(list(b.keys())), rtol=0, atol=atol)


# What comes back is stored in fp16 again: of equal float32 rows equal; of codes with a rounding of their own.
BACK = {"p.parquet": 1e-7, "p.fbin": 1e-7, "p.f16bin": 1e-3, "p.i8bin": 8e-3}


def test_there_and_back(edgeclip: Edgeclip, index: Path, tmp_path: Path) -> None:
    for name, atol in BACK.items():
        file, back = tmp_path / name, tmp_path / f"{name}.index"
        out = edgeclip("index", "export", index, "-o", file)
        assert (out.code, out.line) == (0, f"{file}: 3 items")
        assert edgeclip("index", "import", file, "-o", back, "--json").record == {
            "output": str(back),
            "items": 3,
        }
        same(index, back, atol)
        again = edgeclip("index", "import", file, "-o", back)
        assert (again.code, "already exists" in again.line) == (2, True)
        assert edgeclip("index", "verify", back).code == 0


def test_qdrant_there_and_back(edgeclip: Edgeclip, index: Path, photos: Path, tmp_path: Path) -> None:
    place = f"qdrant:{tmp_path / 'pets.qdrant'}"
    assert edgeclip("index", "export", index, "-o", place, "--json").record == {
        "output": place, "sent": 3, "present": 0, "removed": 0,
    }  # fmt: skip
    refused = edgeclip("index", "export", index, "-o", place)
    assert (refused.code, "--allow-pickle" in refused.line) == (2, True)
    edgeclip("index", "remove", index, "a.png")
    again = edgeclip("index", "export", index, "-o", place, "--allow-pickle", "--prune")
    assert again.line == f"{place}: 0 sent, 2 present, 1 removed"
    back = edgeclip(
        "index", "import", place, "-o", tmp_path / "back.index", "--allow-pickle", "--precision", "int8"
    )
    assert back.line == f"{tmp_path / 'back.index'}: 2 items"
    with Index.open(tmp_path / "back.index") as found:
        assert (sorted(found.keys()), found.settings.precision) == (["b.JPG", "below/c.bmp"], "int8")


def test_whose_vectors(edgeclip: Edgeclip, index: Path, sealed: Path, tmp_path: Path) -> None:
    edgeclip("index", "export", index, "-o", tmp_path / "p.fbin")
    (tmp_path / "p.model.json").unlink()
    back = ("index", "import", tmp_path / "p.fbin", "-o", tmp_path / "back.index")
    assert "does not say which model made its vectors" in edgeclip(*back).line
    assert not (tmp_path / "back.index").exists()
    assert "vectors of width 8, those of nano are 192 wide" in edgeclip(*back, "-b", "nano").line
    assert edgeclip(*back, "-b", sealed).code == 0
    edgeclip("index", "export", index, "-o", tmp_path / "p.parquet")
    other = edgeclip("index", "import", tmp_path / "p.parquet", "-o", tmp_path / "x.index", "-b", "nano")
    assert (other.code, "vectors of toy (111111111111), expected nano" in other.line) == (2, True)


WRONG = [
    (("export", "INDEX", "-o", "x.csv"), "x.csv: expected a name that ends in .parquet"),
    (
        ("export", "INDEX", "-o", "x.fbin", "--vectors", "fp16"),
        "Name the file .fbin for fp32, .f16bin for fp16.",
    ),
    (("export", "INDEX", "-o", "x.parquet", "--prune"), "are of qdrant: places"),
    (("export", "INDEX", "-o", "qdrant:http://host:6333"), "expected an address and a collection"),
    (("export", "nowhere", "-o", "x.parquet"), "nowhere"),
    (("import", "nowhere.parquet", "-o", "x.index"), "nowhere.parquet: no such file."),
    (("import", "qdrant:nowhere", "-o", "x.index"), "no Qdrant folder"),
]


def test_refused_in_one_line(
    edgeclip: Edgeclip, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in WRONG:
        said = edgeclip("index", *(index if one == "INDEX" else one for one in arguments))
        assert (said.code, message in said.line) == (2, True), said.line
        assert not list(tmp_path.glob("x.*"))


def test_search_on_qdrant_as_at_home(edgeclip: Edgeclip, index: Path, sealed: Path, tmp_path: Path) -> None:
    place = f"qdrant:{tmp_path / 'pets.qdrant'}"
    edgeclip("index", "export", index, "-o", place)
    asked = ("a cat", "--not", "dog", "-k", 2, "--where", "size > 1 and key ~ 'b'", "-b", sealed, "--json")
    home, away = edgeclip("search", index, *asked), edgeclip("search", place, *asked, "--allow-pickle")
    assert {line["key"] for line in away.records} == {"b.JPG", "below/c.bmp"}
    for one, other in zip(home.records, away.records, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert {**one, "score": 0} == {**other, "score": 0}
    likes = ("--like", "a.png", "-k", 1, "--json")
    assert (
        edgeclip("search", place, *likes, "--allow-pickle").record["key"]
        == edgeclip("search", index, *likes).record["key"]
    )
    refused = edgeclip("search", place, "a cat", "-b", "nano", "--allow-pickle")
    assert (refused.code, "holds vectors of toy" in refused.line) == (2, True)
    assert "--allow-pickle" in edgeclip("search", place, "a cat", "-b", sealed).line
