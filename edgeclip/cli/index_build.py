"""`edgeclip index build` and `edgeclip index add`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from edgeclip.cli.boxes import read_boxes
from edgeclip.cli.common import emit, finish, json_option, model_options, say, strict_option
from edgeclip.cli.index_show import build_table, progress_bar
from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from edgeclip.runtime.index.build_words import BuildReport, BuildSettings, Progress
    from edgeclip.runtime.index.sources import Source
    from edgeclip.runtime.model import Model

F = TypeVar("F", bound=Callable[..., Any])
Tell = Callable[["Progress"], None]

BUILD_EXAMPLES = """\b
Examples:
  edgeclip index build photos/ -o photos.index                     again later: what is new or changed
  edgeclip index build photos/ -o photos.index --prune             and what is gone from the folder goes
  edgeclip index build 'shards/train-{000..009}.tar' -o train.index -b clip-b32/ --precision int8
  edgeclip index build table.parquet -o table.index                pictures as bytes or paths, or ready-made vectors
  edgeclip index build captions.txt -o words.index --captions      texts, one a line
  edgeclip index build photos/ -o regions.index -b detector/ --proposals 20
  edgeclip index build /nfs/photos -o photos.index -b /nfs/clip-b32 --ray auto --ray-gpus 1
"""

ADD_EXAMPLES = """\b
Examples:
  edgeclip index add photos.index photos/new/ --root photos/       keys as a build of photos/ gives them
  edgeclip index add photos.index list.csv --json
"""


def _source_options(command: F) -> F:
    found = command
    for option in (
        click.option("--boxes", "boxes_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
            help="Index these regions of the pictures, not whole ones: a line for each picture, {\"path\": ..., \"boxes\": [[x1, y1, x2, y2], ...]}."),
        click.option("--proposals", type=click.IntRange(min=1), metavar="N",
            help="Index so many regions of each picture that a detector proposes."),
        click.option("--captions", is_flag=True, help="Index the captions of the source, not its pictures."),
        click.option("--prune", is_flag=True, help="Remove what came from this source and is not there any more."),
        click.option("--root", type=click.Path(path_type=Path), metavar="FOLDER",
            help="Name pictures by their path below this folder. Default: the folder given, or the one a file lies in."),
        click.option("--kind", type=click.Choice(["parquet", "csv", "jsonl", "webdataset", "captions", "folder"]),
            help="What the source is, where its name does not tell."),
        click.option("--new-only", is_flag=True, help="Do not look again at pictures that are there, whether they changed or not."),
        click.option("--trust", is_flag=True,
            help="Take ready-made vectors for the bundle's own, whatever their file says."),
        click.option("--ray-gpus", type=click.FloatRange(min=0), default=0, show_default=True, help="GPUs of one of Ray's workers."),
        click.option("--ray-cpus", type=click.IntRange(min=1), default=4, show_default=True, help="CPU threads of one of Ray's workers."),
        click.option("--ray", metavar="ADDRESS",
            help="Embed on many machines with Ray: auto, ray://host:10001, or here for this machine alone."),
        click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures per call of the engine."),
    ):  # fmt: skip
        found = option(found)
    return model_options(strict_option(json_option(found)))


@click.command(epilog=BUILD_EXAMPLES)
@click.argument("source", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the index; one that is there is brought up to date.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "int8", "bits"]),
    help="How vectors are stored. Default: fp16. int8 takes half of it, bits find candidates by signs.",
)
@click.option(
    "--exact-below",
    type=click.IntRange(min=0),
    help="Vectors up to which all are compared; above, a graph is walked. Default: 50000.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew where an index is there.")
@_source_options
def build(
    source: tuple[str, ...],
    output: Path,
    precision: str | None,
    exact_below: int | None,
    overwrite: bool,
    **options: Any,
) -> int:
    """Make an index of pictures, or bring one up to date.

    SOURCE is a folder (captions and fields from .txt and .json beside the pictures), webdataset shards (.tar), a .parquet, .csv, .tsv or
    .jsonl, a .txt of captions, or pictures one by one. Interrupted, the same command goes on where it stopped.
    """
    from edgeclip.runtime.index.build import build_index

    chosen = {"precision": precision, "exact_below": exact_below}
    settings = {name: value for name, value in chosen.items() if value is not None}

    def run(opened: Source, model: Model | None, how: BuildSettings, tell: Tell) -> BuildReport:
        return build_index(opened, output, model, settings=settings, how=how, overwrite=overwrite, tell=tell)

    return _run(source, output, run, **options)


@click.command(epilog=ADD_EXAMPLES)
@click.argument("index")
@click.argument("source", nargs=-1, required=True)
@_source_options
def add(index: str, source: tuple[str, ...], **options: Any) -> int:
    """Add pictures to an index that is there.

    INDEX is its folder; SOURCE is what `edgeclip index build` takes.
    """
    from edgeclip.runtime.index.build import fill
    from edgeclip.runtime.index.index import Index

    def run(opened: Source, model: Model | None, how: BuildSettings, tell: Tell) -> BuildReport:
        with Index.open(index, model, write=True) as found:
            return fill(found, opened, model, how=how, tell=tell)

    return _run(source, Path(index), run, **options)


def _run(
    source: Sequence[str], place: Path, run: Callable[..., BuildReport], *, root: Path | None, kind: str | None,
    new_only: bool, boxes_file: Path | None, ray: str | None, ray_cpus: int, ray_gpus: float, trust: bool, as_json: bool,
    strict: bool, bundle: str, engine: Any, threads: int | None, variants: tuple[str, ...], **how: Any,
) -> int:  # fmt: skip
    import edgeclip
    from edgeclip.runtime.index.build_words import BuildSettings
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.sources import open_source

    settings = BuildSettings(boxes=_boxes(boxes_file), update=not new_only, trust=trust, **how)
    opened = open_source(source[0] if len(source) == 1 else source, root, kind)
    if next(iter(opened), None) is None:  # with --prune too: a disk that is not mounted looks like that
        raise InputError(
            f"{', '.join(source)}: holds nothing to index. Pictures have names that end in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    where: Any = nullcontext()
    if ray is not None and not opened.has_vectors:
        from edgeclip.runtime.index.away.ray_build import RayOptions, Spread, cluster

        machines = RayOptions(None if ray == "here" else ray, cpus=ray_cpus, gpus=ray_gpus)
        opening = {"engine": engine, "variants": variants}
        settings, where = replace(settings, elsewhere=Spread(bundle, opening, machines)), cluster(machines)
    with where, progress_bar(as_json) as tell, _kept(place):
        if opened.has_vectors and not trust and not _said("bundle"):  # their file says whose they are
            report = run(opened, None, settings, tell)
        else:
            with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
                report = run(opened, model, settings, tell)
    with Index.open(place) as index:
        facts = index.info()
    if as_json:
        emit({**report.to_dict(), "index": facts})
    else:
        build_table(place, report, facts)
    return finish(report.added + report.updated + report.unchanged, report.failures, strict)


def _said(option: str) -> bool:
    """Whether an option was passed, and is not there by default."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _boxes(file: Path | None) -> Mapping[Path, Sequence[Any]] | None:
    if file is None:
        return None
    from edgeclip.runtime.index.sources.folder import absolute

    return {absolute(path): rows for path, rows in zip(*read_boxes(file), strict=True)}


@contextmanager
def _kept(place: Path) -> Iterator[None]:
    """Say what an interruption leaves."""
    try:
        yield
    except KeyboardInterrupt:
        if place.exists():
            say(f"{place}: what was embedded is kept; the same command goes on from there.")
        raise
