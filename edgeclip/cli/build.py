"""`edgeclip build`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, notes, say
from edgeclip.cli.engine_table import show
from edgeclip.errors import EdgeClipError, InputError

if TYPE_CHECKING:
    from edgeclip.bundle import Bundle
    from edgeclip.runtime.tensorrt.library import Library
    from edgeclip.runtime.tensorrt.record import Record
    from edgeclip.runtime.tensorrt.settings import Tell
    from edgeclip.runtime.tensorrt.store import Store

EXAMPLES = """\b
Examples:
  edgeclip build clip-b32 --target tensorrt                     for the GPU that is here: fp16, batches of 1 to 32
  edgeclip build clip-b32 --target tensorrt --low-memory        on a board of 8 GB
  edgeclip build clip-b32 --target tensorrt --batch 1:1:1 --batch 2:16:64

\b
On a machine without a GPU, for RTX cards:
  edgeclip build nano --target tensorrt-rtx --arch sm86,sm89
  edgeclip build clip-b32 --target tensorrt-rtx --arch sm89 --precision fp8 --images photos/
  edgeclip build clip-b32 --target tensorrt-rtx --arch sm89 --tower image -o engines/ --json

\b
What was built:
  edgeclip build clip-b32 --list
  edgeclip build clip-b32 --clear
"""

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option(
    "--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Library that builds: tensorrt for the GPU that is here, tensorrt-rtx also for RTX cards that are not.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8", "int4"]),
    help="What the engines compute in; made from the fp32 graph where the bundle has none. Default: fp16.",
)  # fmt: skip
@click.option(
    "--tower", "towers", multiple=True, type=click.Choice(["image", "text", "detector", "tokens", "regions", "grounding"]),
    help="Tower to build; may be repeated. Default: all that the bundle has, and its heads.",
)  # fmt: skip
@click.option(
    "--variant", "variants", multiple=True, metavar="ID",
    help="Graph to build from, as `edgeclip inspect` lists them; may be repeated. Default: chosen by rule.",
)  # fmt: skip
@click.option(
    "--batch", "batches", multiple=True, default=("1:8:32",), show_default=True, metavar="LEAST:BEST:MOST",
    help="Batches that an engine takes, and the one it is tuned for; may be repeated, for more than one to be tuned for.",
)  # fmt: skip
@click.option(
    "--arch", "archs", metavar="SM,...", help="GPUs to build for ahead of time, with tensorrt-rtx: sm75, sm80, sm86, sm89, sm120. Default: this machine's; where it has none, all but sm75."
)  # fmt: skip
@click.option(
    "--device",
    type=click.IntRange(min=0),
    default=0,
    help="Number of the GPU to build on and for. Default: the first.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of your pictures, to calibrate and measure a conversion on.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    help="File of your texts for the same, one a line. Default: built-in ones.",
)
@click.option(
    "--budget", "budgets", multiple=True,
    help="What a conversion may lose: cosine=0.999, distance=0.05 or recall=-0.5. Default: distance=0.02 for fp16, 0.5 for int4, 0.1 for the others.",
)  # fmt: skip
@click.option(
    "--workspace",
    metavar="SIZE",
    help="Scratch memory that a kernel may ask for, e.g. 512M or 2G. Default: the library's own limit.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    help="How long to search for kernels, 0 to 5. Default: the library's own.",
)
@click.option("--tf32", is_flag=True, help="Let fp32 products round to 10 bits of mantissa.")
@click.option("--low-memory", is_flag=True, help="Build slower in less memory, for boards of 8 GB.")
@click.option("--version-compatible", is_flag=True, help="Engines that later releases of TensorRT run, too.")
@click.option(
    "--hardware-compatible", type=click.Choice(["ampere+", "same"]),
    help="Engines that other GPUs run: Ampere and newer, or those of the same compute capability.",
)  # fmt: skip
@click.option(
    "--strip-weights",
    is_flag=True,
    help="Leave the weights out of the plan; they are put in from the graph when it is opened. tensorrt-rtx needs a GPU for it.",
)
@click.option(
    "--on-shortfall", type=click.Choice(["fail", "report"]), default="fail", show_default=True,
    help="When an engine is not what its graph promises, e.g. runs in fp32 or without fused attention.",
)  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Build again what is there already.")
@click.option("--force", is_flag=True, help="Build although the free memory looks too small.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the engines. Default: $EDGECLIP_ENGINES, else the bundle's own in the cache. `--engine` looks there.",
)  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads that measure a conversion. Default: one for each physical core.",
)
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="Only show what is built for the bundle, and whether it may run here.",
)
@click.option("--clear", is_flag=True, help="Remove what is built for the bundle.")
@json_option
def command(
    bundle: str, target: str | None, precision: str | None, towers: tuple[str, ...], variants: tuple[str, ...], batches: tuple[str, ...],
    archs: str | None, device: int, images: Path | None, texts: Path | None, budgets: tuple[str, ...], workspace: str | None, level: int | None,
    tf32: bool, low_memory: bool, version_compatible: bool, hardware_compatible: Any, strip_weights: bool, on_shortfall: Any,
    rebuild: bool, force: bool, output: Path | None, threads: int | None, listing: bool, clear: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build TensorRT engines from a bundle.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Each tower becomes one engine, which is looked at before it is
    kept: types of its products, attention. Where a GPU is, the golden inputs are replayed on it; without one, engines for
    RTX cards are built and not run. Exit code 1 when an engine falls short of its graph, or a conversion of its budget.
    """
    from edgeclip.bundle import open_bundle

    if listing or clear:
        (_clear if clear else _list)(open_bundle(bundle), output, as_json)
        return
    if target is None:
        raise click.UsageError("Missing option '--target'. Choose tensorrt or tensorrt-rtx.")
    from edgeclip.export.compress.budget import parse_budgets
    from edgeclip.export.prepare import build_engines
    from edgeclip.runtime.tensorrt.settings import BuildSettings

    settings = BuildSettings(
        precision=precision or "", towers=towers, variants=variants, batches=batches, archs=split(archs), device=device,
        workspace=parse_size(workspace) if workspace else 0, level=level, tf32=tf32, low_memory=low_memory,
        version_compatible=version_compatible, hardware_compatible=hardware_compatible or "", strip_weights=strip_weights,
        on_shortfall=on_shortfall, rebuild=rebuild, output=output, force=force,
    )  # fmt: skip
    opened = open_bundle(bundle)
    with progress() as (tell, found):
        records = build_engines(
            opened, target, settings, images=images, texts=texts, budgets=parse_budgets(budgets) if budgets else (),
            threads=threads, tell=tell,
        )  # fmt: skip
    if as_json:
        built = [{**to_dict(record), "found": record.variant.id in found} for record in records]
        emit({"path": str(opened.root), "folder": str(store_at(opened, output).folder), "engines": built})
        return
    show(records)
    for name in found:
        say(f"{name}: was built already. To build it again, pass --rebuild")
    console().print(f"{records[0].library} {records[0].version}, in {store_at(opened, output).folder}")


def store_at(bundle: Bundle, output: Path | None) -> Store:
    """Where a bundle's engines are."""
    from edgeclip.runtime.engines.seam import EngineOptions
    from edgeclip.runtime.tensorrt.store import store_of

    return store_of(bundle, EngineOptions(engines=output))


def _list(bundle: Bundle, output: Path | None, as_json: bool) -> None:
    store = store_at(bundle, output)
    found, problems = reasons(store), store.problems()
    if as_json:
        engines = [{**to_dict(record), "misfit": why} for record, why in found]
        emit(
            {"path": str(bundle.root), "folder": str(store.folder), "engines": engines, "problems": problems}
        )
        return
    if found:
        show([record for record, _ in found])
    for record, why in found:
        if why:
            say(f"{record.variant.id}: does not run here: {why}")
    for line in problems:
        say(line)
    console().print(f"{len(found)} engines in {store.folder}")


def _clear(bundle: Bundle, output: Path | None, as_json: bool) -> None:
    store = store_at(bundle, output)
    freed = store.clear()
    if as_json:
        emit({"path": str(bundle.root), "folder": str(store.folder), "freed_bytes": freed})
    else:
        console().print(f"{store.folder}: {freed / 1e6:.1f} MB freed")


def reasons(store: Store) -> list[tuple[Record, str]]:
    """Each engine with why it may not run here, "" where it may; libraries and GPUs that are not here are not asked."""
    from edgeclip.runtime.cuda import devices
    from edgeclip.runtime.tensorrt.library import load_library

    device = next(iter(devices()), None)
    libraries: dict[str, Library | None] = {}
    for record in (records := store.records()):
        if record.library not in libraries:
            with suppress(EdgeClipError):  # not installed: whoever opens the engine will hear of it
                libraries[record.library] = load_library(record.library)
    return [(record, store.misfit(record, libraries.get(record.library), device)) for record in records]


def split(text: str | None) -> tuple[str, ...]:
    """ "sm89, sm86" -> ("sm89", "sm86"), each once."""
    return tuple(dict.fromkeys(part.strip().lower() for part in (text or "").split(",") if part.strip()))


def parse_size(text: str) -> int:
    """ "512M" -> bytes. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?)(?:I?B)?", text.strip().upper())
    if not found or not float(found[1]):
        raise InputError(f"--workspace {text}: expected a size above 0 such as 512M or 2G.")
    return int(float(found[1]) * UNITS[found[2]])


@contextmanager
def progress() -> Iterator[tuple[Tell, list[str]]]:
    """A bar on stderr for each engine, with what is being done, where stderr is a terminal. The list fills with what was found."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from edgeclip.runtime.tensorrt.settings import FOUND

    columns = (
        TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TextColumn("{task.fields[doing]}")
    )  # fmt: skip
    shown = Progress(*columns, console=notes()) if sys.stderr.isatty() else None
    bars: dict[str, TaskID] = {}
    found: list[str] = []

    def tell(what: str, doing: str, done: float) -> None:
        if doing == FOUND:
            found.append(what)
        elif shown is not None:
            if what not in bars:
                for bar in bars.values():
                    shown.stop_task(bar)
                bars[what] = shown.add_task(what, total=1.0, doing=doing)
            # a conversion does not know its end: the bar runs to and fro until TensorRT's own begins
            shown.update(bars[what], total=1.0 if done else None, completed=done, doing=doing)

    with shown or nullcontext():
        yield tell, found


def to_dict(record: Record) -> dict[str, Any]:
    """JSON-ready."""
    from dataclasses import asdict

    return asdict(record)
