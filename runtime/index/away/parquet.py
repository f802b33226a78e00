"""An index as one Parquet table, and such a table as vectors.

Columns: `id` int64, `key` text, one for each plain field of the records (path, size, caption, ...), `record` text (JSON of what is left, null
where nothing is), `embedding` a list of D floats. The schema's metadata holds edgeclip.model_id, .name, .dim, .variants, .preprocessing, .precision.

    pandas    pandas.read_parquet("pets.parquet"); numpy.stack(frame.embedding)
    faiss     rows = pyarrow.parquet.read_table("pets.parquet")["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, D)
              index = faiss.IndexIDMap(faiss.IndexFlatIP(D)); index.add_with_ids(rows, table["id"].to_numpy())
    LanceDB   lancedb.connect("db").create_table("pets", pyarrow.parquet.read_table("pets.parquet")); search with metric "cosine"
    Milvus    a collection with `id` INT64 as primary key, `key` VARCHAR and `embedding` FLOAT_VECTOR of D (metric IP or COSINE), then the
              bulk import of this file, whose group size Milvus allows; it takes fp32
    DuckDB    SELECT key FROM 'pets.parquet' ORDER BY list_inner_product(embedding, ?) DESC LIMIT 10

Whoever rewrites a table loses the metadata; then the model has to be named when it comes back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.files import new_files
from edgeclip.runtime.index.away.columns import Kind, find_columns, split
from edgeclip.runtime.index.away.texts import each_text, from_utf8, to_utf8
from edgeclip.runtime.index.away.vectors import (
    AT_ONCE,
    PREFIX,
    Batches,
    Ids,
    Vectors,
    origin_facts,
    read_origin,
    unit_rows,
)
from edgeclip.runtime.index.types import Item, Origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index

FORMAT = "edgeclip.vectors 1"
EMBEDDINGS = ("embedding", "vector", "embeddings")  # what others call the column too
_TYPES = {"bool": "bool_", "int": "int64", "float": "float64", "str": "string"}  # pyarrow's names


def export_parquet(
    index: Index, path: Path, *, vectors: Literal["fp32", "fp16"] = "fp32", rows_per_group: int = AT_ONCE
) -> int:
    """Write all living items to one table, whole or not at all; a group of rows is in memory at a time.

    Args:
        vectors: "fp32" is what every reader takes; "fp16" is half as long and known to pyarrow, pandas and LanceDB.
        rows_per_group: vectors in one row group.
    Returns:
        rows written.
    Raises:
        InputError: a setting, or a place that cannot be written. MissingExtraError: no pyarrow.
    """
    pa, pq = _pyarrow()
    if vectors not in ("fp32", "fp16"):
        raise InputError(f"vectors {vectors!r}: expected fp32 or fp16.")
    if rows_per_group < 1:
        raise InputError(f"rows_per_group: expected 1 or more, got {rows_per_group}.")
    columns = find_columns(item for _, item in index.items())
    value, dim = pa.float32() if vectors == "fp32" else pa.float16(), index.origin.dim
    fields = [("id", pa.int64()), ("key", pa.string())]
    fields += [(name, getattr(pa, _TYPES[kind])()) for name, kind in columns.items()]
    fields += [("record", pa.string()), ("embedding", pa.list_(pa.field("element", value), dim))]
    facts = {
        f"{PREFIX}format": FORMAT,
        f"{PREFIX}precision": index.settings.precision,
        **origin_facts(index.origin),
    }
    schema = pa.schema(fields, metadata=facts)
    rows = 0
    with new_files(path) as (scratch,):
        # bytes that a dictionary or a compressor would gain nothing from are most of the file
        plain = [name for name in schema.names if name != "embedding"]
        with pq.ParquetWriter(scratch, schema, compression="zstd", use_dictionary=plain) as writer:
            for ids, found, items in index.batches(rows_per_group):
                arrays = _arrays(ids, found.astype(value.to_pandas_dtype()), items, columns, schema, pa)
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows_per_group)
                rows += len(ids)
    return rows


def _arrays(
    ids: Ids, vectors: Any, items: list[Item], columns: Mapping[str, Kind], schema: Any, pa: Any
) -> list[Any]:
    """One for each of the schema's columns."""
    parts = [split(item.record, columns) for item in items]
    found = [pa.array(ids), pa.array([to_utf8(item.key) for item in items], pa.string())]
    for name in columns:
        cells = [each_text(fits.get(name), to_utf8) for fits, _ in parts]
        found.append(pa.array(cells, schema.field(name).type))
    found.append(pa.array([json.dumps(rest) if rest else None for _, rest in parts], pa.string()))
    flat = pa.array(vectors.ravel())
    return [*found, pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)]


class ParquetVectors:
    """A table of vectors: `origin`, `len`, `batches`.

    `embedding` (or `vector`) must be a column of lists; `key`, else `path`, else `id`, else the row's number names an item; other columns
    become its record, but those that hold bytes (pictures).

    Raises:
        InputError: no table of vectors. MissingExtraError: no pyarrow.
    """

    def __init__(self, path: Path) -> None:
        pa, pq = _pyarrow()
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file. Check the path.")
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read as Parquet ({_first_line(error)}).") from error
        schema = self._file.schema_arrow
        self._column = next((name for name in EMBEDDINGS if name in schema.names), "")
        kind = schema.field(self._column).type if self._column else None
        if kind is None or not pa.types.is_floating(getattr(kind, "value_type", pa.null())):
            raise InputError(
                f"{path}: expected a column {' or '.join(EMBEDDINGS[:2])} of lists of floats, got {', '.join(schema.names)}."
            )
        self._binary = {
            field.name
            for field in schema
            if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        }
        self.dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_width()
        facts = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        self.origin: Origin | None = read_origin(facts, self.dim, path)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def _first_width(self) -> int:
        for batch in self._file.iter_batches(1, columns=[self._column]):
            if batch.column(0)[0].is_valid:
                return len(batch.column(0)[0])
            break
        raise InputError(f"{self.path}: its first row holds no vector.")

    def batches(self, size: int = AT_ONCE) -> Batches:
        """(n,) ids, (n, D) float32 unit rows, n items. Raises InputError for a row that holds no such vector."""
        pa, _ = _pyarrow()
        names = [name for name in self._file.schema_arrow.names if name not in self._binary]
        first = 0
        try:
            for batch in self._file.iter_batches(size, columns=names):
                yield self._read(batch, first)
                first += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: damaged after row {first} ({_first_line(error)}).") from error

    def _read(self, batch: Any, first: int) -> tuple[Ids, Vectors, list[Item]]:
        lists = batch.column(self._column)
        flat = lists.flatten()  # leaves out what is null
        if flat.null_count or len(flat) != len(batch) * self.dim:
            raise InputError(
                f"{self.path}: rows {first} to {first + len(batch) - 1}: expected {self.dim} numbers in each, got "
                f"{len(flat) - flat.null_count} in {len(batch)} rows."
            )
        rows = flat.to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        others = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != self._column}
        numbers = others.pop("id", None)
        items = [
            self._item(i, first, {name: cells[i] for name, cells in others.items()}, numbers)
            for i in range(len(batch))
        ]
        whole = numbers is not None and all(isinstance(number, int) for number in numbers)
        ids = np.array(numbers, np.int64) if whole else np.arange(first, first + len(batch))
        return ids, unit_rows(rows, first, self.path), items

    def _item(self, i: int, first: int, cells: dict[str, Any], numbers: list[Any] | None) -> Item:
        key, rest = cells.pop("key", None), cells.pop("record", None)
        record = {name: _json_value(cell) for name, cell in cells.items() if cell is not None}
        record = each_text(record, from_utf8)
        if isinstance(rest, str):
            record |= self._rest(rest, first + i)
        elif rest is not None:
            record["record"] = _json_value(rest)
        if key is None:
            key = record.get("path", first + i if numbers is None else numbers[i])
        return Item(from_utf8(str(key)), record)

    def _rest(self, text: str, row: int) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            return {"record": text}  # a column of somebody else's that happens to have this name
        if not isinstance(found, dict):
            raise InputError(f"{self.path}: row {row}: record: expected a JSON object, got {text[:40]!r}.")
        return found


def _json_value(cell: Any) -> Any:
    """Dates and decimals as texts."""
    try:
        json.dumps(cell)
    except (TypeError, ValueError):
        return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)
    return cell


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet: pyarrow is not installed. pip install 'edgeclip[parquet]'"
        ) from error
    return pyarrow, parquet
