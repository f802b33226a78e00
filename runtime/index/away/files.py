"""Files by their names: an index into one, an index out of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.errors import InputError
from edgeclip.files import new_folder
from edgeclip.runtime.index.away.vectors import AT_ONCE, Source, known_origin
from edgeclip.runtime.index.types import IndexSettings, Origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index

# suffix -> module under `away`, what writes, what reads
FORMATS = {
    ".parquet": ("parquet", "export_parquet", "ParquetVectors"),
    ".fbin": ("fbin", "export_fbin", "FbinVectors"),
    ".f16bin": ("fbin", "export_fbin", "FbinVectors"),
    ".i8bin": ("fbin", "export_fbin", "FbinVectors"),
}


def export_file(index: Index, path: str | os.PathLike[str], *, vectors: str | None = None) -> int:
    """Write an index to a file that other tools read, in the format of its suffix.

    Args:
        vectors: "fp32" or "fp16", of Parquet; of the others the suffix says it.
    Returns:
        rows written.
    """
    place = Path(path)
    module, write, _ = _format(place)
    if vectors is not None and place.suffix != ".parquet":
        raise InputError(
            f"{place}: vectors {vectors}: expected .parquet. Name the file .fbin for fp32, .f16bin for fp16."
        )
    more = {} if vectors is None else {"vectors": vectors}
    rows: int = getattr(import_module(f"edgeclip.runtime.index.away.{module}"), write)(index, place, **more)
    return rows


def open_file(path: str | os.PathLike[str]) -> Source:
    """A file of vectors, in the format of its suffix, to read from."""
    place = Path(path)
    module, _, read = _format(place)
    source: Source = getattr(import_module(f"edgeclip.runtime.index.away.{module}"), read)(place)
    return source


def _format(path: Path) -> tuple[str, str, str]:
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}.")
    return FORMATS[path.suffix]


def import_vectors(
    source: Source,
    path: str | os.PathLike[str],
    *,
    origin: Origin | None = None,
    settings: IndexSettings | None = None,
    overwrite: bool = False,
    where: object = "the source",
    tell: Callable[[int], None] | None = None,
) -> int:
    """Make an index of vectors that are there: equal vectors, new ids. It appears when it is whole.

    Args:
        source: of `open_file`, or a QdrantIndex.
        origin: the model, where the source does not say; where it does, they have to agree.
        where: what to call the source in messages.
        tell: called with the items that are in it so far.
    Returns:
        items in it.
    Raises:
        InputError: a source that cannot be used, a model that nobody names, or `path` is there already.
    """
    from edgeclip.runtime.index.index import Index

    known = known_origin(source, origin, where)
    rows = 0
    with new_folder(Path(path), overwrite=overwrite) as scratch:  # noqa: SIM117
        with Index.create(
            scratch, known, settings=settings, overwrite=True
        ) as index:  # closed before it moves
            for _, vectors, items in source.batches(AT_ONCE):
                index.add(vectors, items)
                rows += len(items)
                if tell:
                    tell(rows)
            if len(index) != rows:
                raise InputError(
                    f"{where}: {rows} rows name {len(index)} items: a key is there twice. Give each its own `key`."
                )
            index.settle()
    return rows
