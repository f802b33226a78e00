"""`edgeclip index export` and `edgeclip index import`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import emit, json_option, notes, pickle_option

if TYPE_CHECKING:
    from edgeclip.runtime.index.away.vectors import Source
    from edgeclip.runtime.index.types import Origin

QDRANT = "qdrant:"

EXPORT_EXAMPLES = """\b
Examples:
  edgeclip index export pets.index -o pets.parquet                  pandas, LanceDB, Milvus, DuckDB; --vectors fp16: half as long
  edgeclip index export pets.index -o pets.fbin                     faiss, DiskANN, cuVS; also .f16bin, .i8bin
  edgeclip index export pets.index -o qdrant:http://host:6333/pets --quantization int8
  edgeclip index export pets.index -o qdrant:http://host:6333/pets --prune     again: what is new goes there, what is gone goes
  edgeclip index export pets.index -o qdrant:pets.qdrant            a folder of Qdrant's embedded mode
"""

IMPORT_EXAMPLES = """\b
Examples:
  edgeclip index import pets.parquet -o pets.index
  edgeclip index import others.fbin -o others.index -b clip-b32/    the file names no model: say whose vectors they are
  edgeclip index import qdrant:http://host:6333/pets -o pets.index
"""


@click.command("export", epilog=EXPORT_EXAMPLES)
@click.argument("index")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|qdrant:PLACE",
    help="A name ending in .parquet, .fbin, .f16bin or .i8bin; qdrant:http://host:6333/collection or qdrant:FOLDER.",
)
@click.option(
    "--vectors",
    type=click.Choice(["fp32", "fp16"]),
    help="Of Parquet. Default: fp32, which every reader takes.",
)
@click.option(
    "--quantization",
    type=click.Choice(["none", "int8", "binary"]),
    help="Of a new Qdrant collection; candidates are compared again by their originals. Default: none.",
)
@click.option("--prune", is_flag=True, help="Remove from Qdrant what the index does not have.")
@click.option("--overwrite", is_flag=True, help="Replace a Qdrant collection that is there.")
@pickle_option
@json_option
def export(index: str, output: str, as_json: bool, **options: Any) -> int:
    """Write an index for other tools.

    INDEX is its folder. A file is replaced when the new one is whole. A Qdrant collection that is there gets what it does not have, so
    that an interrupted export goes on; $QDRANT_API_KEY holds a server's key.
    """
    from edgeclip.runtime.index.index import Index

    with Index.open(index) as opened:
        facts = (_to_qdrant if output.startswith(QDRANT) else _to_file)(opened, output, as_json, **options)
    if as_json:
        emit({"output": output, **facts})
    else:
        click.echo(f"{output}: " + ", ".join(f"{count} {name}" for name, count in facts.items()), err=True)
    return 0


def _to_file(
    index: Any, output: str, as_json: bool, *, vectors: str | None, quantization: str | None, prune: bool, overwrite: bool, allow_pickle: bool
) -> dict[str, int]:  # fmt: skip
    from edgeclip.runtime.index.away.files import export_file

    if quantization or prune or overwrite or allow_pickle:
        raise click.UsageError(
            f"-o {output}: --quantization, --prune, --overwrite and --allow-pickle are of qdrant: places."
        )
    return {"items": export_file(index, output, vectors=vectors)}


def _to_qdrant(
    index: Any, output: str, as_json: bool, *, vectors: str | None, quantization: str | None, prune: bool, overwrite: bool, allow_pickle: bool
) -> dict[str, int]:  # fmt: skip
    from edgeclip.runtime.index.away.push import push
    from edgeclip.runtime.index.away.qdrant import QdrantIndex
    from edgeclip.runtime.index.away.qdrant_client import QdrantOptions

    if vectors:
        raise click.UsageError(f"-o {output}: --vectors is of Parquet files.")
    options = QdrantOptions(quantization) if quantization else None  # type: ignore[arg-type]
    with QdrantIndex.ready(
        output, index.origin, options=options, overwrite=overwrite, allow_pickle=allow_pickle
    ) as target, _bar(len(index), as_json) as tell:  # fmt: skip
        report = push(index, target, prune=prune, tell=tell)
    return {"sent": report.sent, "present": report.present, "removed": report.removed}


@click.command("import", epilog=IMPORT_EXAMPLES)
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option(
    "-b",
    "--bundle",
    help="Whose vectors they are, where the file does not say; where it does, both have to agree.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "int8", "bits"]),
    help="How vectors are stored. Default: fp16.",
)
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@pickle_option
@json_option
def import_(
    source: str, output: Path, bundle: str | None, precision: str | None, overwrite: bool, allow_pickle: bool, as_json: bool
) -> int:  # fmt: skip
    """Make an index of vectors that are there.

    SOURCE is a .parquet, .fbin, .f16bin or .i8bin, or qdrant:PLACE.

    The index appears when it is whole. Keys and records are kept, ids are given anew.
    """
    from edgeclip.runtime.index.away.files import import_vectors
    from edgeclip.runtime.index.types import IndexSettings

    settings = IndexSettings(precision) if precision else IndexSettings()  # type: ignore[arg-type]
    with ExitStack() as stack:
        opened = _opened(source, allow_pickle, stack)
        tell = stack.enter_context(_bar(len(opened), as_json))
        count = import_vectors(
            opened,
            output,
            origin=_origin(bundle),
            settings=settings,
            overwrite=overwrite,
            where=source,
            tell=tell,
        )
    if as_json:
        emit({"output": str(output), "items": count})
    else:
        click.echo(f"{output}: {count} items", err=True)
    return 0


def _opened(source: str, allow_pickle: bool, stack: ExitStack) -> Source:
    if source.startswith(QDRANT):
        from edgeclip.runtime.index.away.qdrant import QdrantIndex

        return stack.enter_context(QdrantIndex.open(source, allow_pickle=allow_pickle))
    from edgeclip.runtime.index.away.files import open_file

    return open_file(source)


def _origin(bundle: str | None) -> Origin | None:
    if bundle is None:
        return None
    import edgeclip
    from edgeclip.runtime.index.binding import origin_of

    with edgeclip.load(bundle) as model:  # opens no tower
        return origin_of(model)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """What to tell of the items dealt with so far: a bar with its rate on stderr. None where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn()
    with Progress(*columns, console=notes(), transient=True) as bar:
        task = bar.add_task("items", total=total)
        yield lambda done: bar.update(task, completed=done)
