"""Parquet out and in, read by pyarrow and pandas as anybody would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index.away import columns, parquet
from edgeclip.runtime.index.away.files import open_file
from edgeclip.runtime.index.types import Item
from tests.index.away import ORIGIN, InMemory, small
from tests.mutants import broken
from tests.vectors import clip_like

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read_all(path: Path) -> tuple[Any, Any, list[Item]]:
    ids, vectors, items = zip(*open_file(path).batches(7), strict=True)
    return np.concatenate(ids), np.concatenate(vectors), [item for part in items for item in part]


@pytest.mark.parametrize(("vectors", "atol"), [("fp32", 0), ("fp16", 5e-4)])
def test_comes_back_equal(tmp_path: Path, vectors: Any, atol: float) -> None:
    index, path = small(), tmp_path / "pets.parquet"
    assert parquet.export_parquet(index, path, vectors=vectors, rows_per_group=8) == 50
    ids, rows, items = read_all(path)
    np.testing.assert_array_equal(ids, index.ids)
    np.testing.assert_allclose(rows, index.vectors_, rtol=0, atol=atol)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-5)
    assert items == index.items_
    assert open_file(path).origin == ORIGIN
    assert [child.name for child in tmp_path.iterdir()] == ["pets.parquet"]


def test_what_pyarrow_and_pandas_see(tmp_path: Path) -> None:
    index, path = small(), tmp_path / "pets.parquet"
    parquet.export_parquet(index, path, rows_per_group=20)
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32()), 16)
    kinds = {
        "size": pa.int64(),
        "mtime": pa.float64(),
        "sharp": pa.bool_(),
        "caption": pa.string(),
        "path": pa.string(),
    }
    assert {name: table.schema.field(name).type for name in kinds} == kinds
    assert not {"tags", "exif", "none"} & set(table.schema.names)
    assert table.schema.metadata[b"edgeclip.model_id"] == b"ab" * 32
    assert table.schema.metadata[b"edgeclip.precision"] == b"fp16"
    frame = table.to_pandas()
    np.testing.assert_array_equal(np.stack(frame.embedding), index.vectors_)
    assert frame[frame["size"] == 1009].key.tolist() == ["p/9.jpg"]
    flat = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 16)  # as the docstring says
    np.testing.assert_array_equal(flat, index.vectors_)


def test_a_field_has_the_kind_of_most_values() -> None:
    items = [
        Item("a", {"x": 1, "y": "s"}),
        Item("b", {"x": 0.5, "y": 2}),
        Item("c", {"x": 2**60, "y": True, "z": None}),
    ]
    found = columns.find_columns([*items, Item("d", {"y": "t"})])
    assert found == {"x": "float", "y": "str"}
    assert columns.split(items[2].record, found) == (
        {},
        {"x": 2**60, "y": True, "z": None},
    )  # float64 has no 2**60 + 1
    weights = [Item("a", {"w": value}) for value in (0.5, 0.25, 1, "s", "t", "u")]
    assert columns.find_columns(weights) == {"w": "float"}
    many = columns.find_columns(Item(str(i), {f"f{i}": i, "all": i}) for i in range(1000))
    assert len(many) == columns.MOST
    assert "all" in many


def test_a_table_of_others(tmp_path: Path) -> None:
    rows, path = clip_like(3, 4), tmp_path / "others.parquet"
    dates = pa.array([0, 1, None], pa.timestamp("s"))
    lists = pa.array(rows.astype(np.float64).tolist())
    pq.write_table(
        pa.table({"path": ["a", "b", "c"], "vector": lists, "image": [b"1", b"2", b"3"], "taken": dates}),
        path,
    )
    source = open_file(path)
    assert (source.origin, len(source)) == (None, 3)
    _, vectors, items = read_all(path)
    np.testing.assert_array_equal(vectors, rows)
    assert [item.key for item in items] == ["a", "b", "c"]
    assert items[1].record == {"path": "b", "taken": "1970-01-01T00:00:01"}
    assert items[2].record == {"path": "c"}


REFUSED = {
    "no vectors": ({"x": [1, 2]}, "expected a column embedding or vector of lists of floats, got x."),
    "ints": (
        {"embedding": [[1], [2]]},
        "expected a column embedding or vector of lists of floats, got embedding.",
    ),
    "null": ({"embedding": [[1.0], None]}, "rows 0 to 1: expected 1 numbers in each, got 1 in 2 rows."),
    "ragged": (
        {"embedding": [[1.0], [0.6, 0.8]]},
        "rows 0 to 1: expected 1 numbers in each, got 3 in 2 rows.",
    ),
    "long": ({"embedding": [[1.0], [7.0]]}, "row 1: expected a vector of length 1, got length 7."),
    "nan": ({"embedding": [[1.0], [float("nan")]]}, "row 1: expected a vector of length 1, got length nan."),
    "record": (
        {"embedding": [[1.0], [1.0]], "record": ["[1]", None]},
        r"row 0: record: expected a JSON object, got '\[1\]'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    data, message = REFUSED[case]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(data), path)
    with pytest.raises(InputError, match=message) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def test_damaged_files_and_wrong_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"x\.parquet: no such file\."):
        open_file(path)
    path.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(InputError, match=r"x\.parquet: cannot be read as Parquet"):
        open_file(path)
    with pytest.raises(InputError, match="vectors 'int8': expected fp32 or fp16"):
        parquet.export_parquet(small(), path, vectors="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"x\.csv: expected a name that ends in \.parquet, \.fbin"):
        open_file(tmp_path / "x.csv")


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    class Breaks(InMemory):
        def batches(self, size: int = 4096) -> Any:
            yield from list(super().batches(10))[:2]
            raise InputError("damaged")

    whole, path = small(), tmp_path / "pets.parquet"
    parquet.export_parquet(whole, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="damaged"):
        parquet.export_parquet(Breaks(whole.vectors_, whole.items_), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


FAULTS = [
    (columns, "_common", 'kinds["float"] + ', ""),
    (columns, "_fits", "<= 2**53)", "<= 2**63)"),
    (columns, "find_columns", "and to_utf8(name) == name", ""),
    (parquet, "_arrays", "to_utf8(item.key)", "item.key.encode(errors='replace').decode()"),
    (parquet, "_arrays", "json.dumps(rest) if rest else None", "None"),
]


@pytest.mark.parametrize(("module", "name", "old", "new"), FAULTS)
def test_the_comparison_sees(
    module: Any, name: str, old: str, new: str, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
    monkeypatch.setattr(parquet, "find_columns", columns.find_columns)
    with pytest.raises(AssertionError):
        _compare(tmp_path)


def _compare(folder: Path) -> None:
    test_comes_back_equal(folder, "fp32", 0)
    test_a_field_has_the_kind_of_most_values()
