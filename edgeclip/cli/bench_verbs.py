"""`edgeclip bench compare|matrix|show|attach`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.bench_options import (
    check_places,
    live_line,
    page_options,
    part_option,
    scenario_options,
    settings_options,
    write_result,
)
from edgeclip.cli.common import emit, json_option, say
from edgeclip.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from edgeclip.bench.comparison import Comparison
    from edgeclip.bench.settings import Settings

COMPARE_EXAMPLES = """\b
Examples:
  edgeclip bench compare before.json after.json
  edgeclip bench compare before.json after.json --fail-if 'p99>+5%'
  edgeclip bench compare orin.json nx.json --allow device --html boards.html
  edgeclip bench compare --live clip-b32/ clip-b32-int8/ --images photos/
"""

MATRIX_EXAMPLES = """\b
Examples:
  edgeclip bench matrix clip-b32/ --quick
  edgeclip bench matrix clip-b32/ --batch 1,8,32 --html matrix.html
  edgeclip bench matrix clip-b32/ --engine onnxruntime-cpu,tensorrt
  edgeclip bench matrix clip-b32/ --retry-failed --json
"""

SHOW_EXAMPLES = """\b
Examples:
  edgeclip bench show orin.json
  edgeclip bench show orin.json --html orin.html --markdown orin.md
"""

ATTACH_EXAMPLES = """\b
Examples:
  edgeclip bench attach orin.json clip-b32/ -o clip-b32-orin/
"""

OF_REPORTS = (
    "--fail-if",
    "--strict",
    "--allow",
    "--output",
    "--html",
    "--markdown",
    "--json",
)  # with or without --live
ALLOWED = ("device", "mode", "settings", "inputs")


@click.command(epilog=COMPARE_EXAMPLES)
@click.argument("a")
@click.argument("b")
@click.option("--fail-if", "gates", multiple=True, metavar="GATE", help="Limit that B must hold, e.g. 'p99>+5%', 'throughput<-5%', 'single-stream:p50>20ms'; may be repeated. Exit code 1 when one fails.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail a gate also when the runs are too noisy to tell.")
@click.option("--allow", multiple=True, type=click.Choice(ALLOWED), help="Compare although this differs; may be repeated.")  # fmt: skip
@click.option("--live", is_flag=True, help="A and B are bundles: run them in turns now, so that what slows the machine slows both.")  # fmt: skip
@settings_options
@scenario_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.json", help="Write the comparison into this file.")  # fmt: skip
@page_options
@json_option
def compare(
    a: str, b: str, gates: tuple[str, ...], strict: bool, allow: tuple[str, ...], live: bool, settings: Settings,
    images: Path | None, output: Path | None, html: Path | None, markdown: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Tell whether B is slower or faster than A, and by how much.

    A and B are reports of `edgeclip bench`; with --live, bundles. Every change comes with its interval, and is called worse or
    better only when it is more than noise. Reports of different devices, modes, settings or inputs are refused unless allowed.
    What is measured, and how long, can be chosen with --live only: reports hold it.
    """
    from edgeclip.bench.gate import parse_gate

    sides = None
    _check_options(live)
    limits = [parse_gate(text) for text in gates]
    check_places(output, html, markdown)
    if live:
        from edgeclip.bench.live import compare_live
        from edgeclip.bench.plan import check_settings
        from edgeclip.bench.samples import load_inputs
        from edgeclip.bench.tasks import for_bundle
        from edgeclip.bundle import open_bundle

        check_settings(settings)
        settings = for_bundle(settings, open_bundle(a))
        inputs = load_inputs(images, settings.task, settings)
        with live_line() as tell:
            found = compare_live(a, b, settings, inputs, limits, tell, strict=strict)
    else:
        from edgeclip.bench.compare import compare as compare_reports
        from edgeclip.bench.reading import open_report

        sides = _report(a, open_report), _report(b, open_report)
        found = compare_reports(*sides, limits, allow=allow, strict=strict)
    write_result(found, output, html, markdown, as_json, sides)
    _require(found)


def _check_options(live: bool) -> None:
    """Refuse what would be passed over: --allow with --live, and without it whatever says how to measure."""
    context = click.get_current_context()
    given = {
        option.opts[-1]
        for option in context.command.params
        if isinstance(option, click.Option)
        and context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
    }
    if live and "--allow" in given:
        raise click.UsageError(
            "--allow is for reports: with --live device, mode, settings and inputs are the same."
        )
    if not live and (wrong := sorted(given - {*OF_REPORTS})):
        raise click.UsageError(
            f"{wrong[0]} says how to measure, which reports hold already. Drop it, or pass --live and two bundles."
        )


def _report(name: str, read: Any) -> Any:
    path = Path(name)
    if path.is_dir() or path.suffix == ".zip":
        raise InputError(
            f"{name}: expected a report, a JSON file of `edgeclip bench -o`, got a bundle. For bundles pass --live."
        )
    return read(path)


def _require(found: Comparison) -> None:
    """Exit code 1 when a gate failed."""
    if found.failed:
        lines = (
            f"{c.scenario} {c.metric} {c.b:.4g} {c.unit}, {c.change:+.1%} ({c.gate})".strip()
            for c in found.changes
            if c.failed
        )
        raise CheckFailed(f"{found.b} against {found.a}: gates failed: {'; '.join(lines)}.")


@click.command(epilog=MATRIX_EXAMPLES)
@click.argument("bundle")
@settings_options
@part_option("one cell")
@click.option("--batch", "batches", default="1,8", show_default=True, metavar="N[,N...]", help="Pictures, or texts, in one call.")  # fmt: skip
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where finished cells are kept, so that a run that was interrupted goes on. Default: the bundle's folder in the cache.")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Try cells again that failed before.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.json", help="Write the matrix into this file.")  # fmt: skip
@page_options
@json_option
def matrix(
    bundle: str, settings: Settings, images: Path | None, batches: str, folder: Path | None, retry_failed: bool, output: Path | None,
    html: Path | None, markdown: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure a bundle on every engine, variant and batch size.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Each cell runs in a process of its own: one that fails keeps its
    reason and the others go on. --engine and --variant choose; default: whatever this machine and the bundle have.
    """
    from edgeclip.bench.matrix import run_matrix
    from edgeclip.bench.plan import check_settings
    from edgeclip.bench.samples import load_inputs
    from edgeclip.bench.tasks import for_bundle
    from edgeclip.bundle import open_bundle

    sizes = _numbers(batches)
    check_places(output, html, markdown)
    check_settings(settings)
    opened = open_bundle(bundle)
    settings = for_bundle(settings, opened)
    inputs = load_inputs(images, settings.task, settings)
    try:
        with live_line() as tell:
            found = run_matrix(
                opened, replace(settings, engines=(), variants=()), settings.engines, settings.variants, sizes,
                folder or opened.cache / "matrix", inputs, tell, retry_failed=retry_failed,
            )  # fmt: skip
    except KeyboardInterrupt:
        say("finished cells are kept: the same command goes on with the others")
        raise
    write_result(found, output, html, markdown, as_json)


def _numbers(text: str) -> tuple[int, ...]:
    """ "1,8" -> (1, 8). Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--batch {text}: expected numbers above 0 separated by commas, e.g. 1,8,32.")
    return tuple(dict.fromkeys(map(int, parts)))


@click.command(epilog=SHOW_EXAMPLES)
@click.argument("report", type=click.Path(path_type=Path))
@page_options
@json_option
def show(report: Path, html: Path | None, markdown: Path | None, as_json: bool) -> None:
    """Show a report again, or make pages of it.

    REPORT is a JSON file that `edgeclip bench`, `bench compare` or `bench matrix` wrote.
    """
    from edgeclip.bench.reading import open_any

    check_places(html, markdown)
    write_result(open_any(report), None, html, markdown, as_json)


@click.command(epilog=ATTACH_EXAMPLES)
@click.argument("report", type=click.Path(path_type=Path))
@click.argument("bundle")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the bundle to make.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@json_option
def attach(report: Path, bundle: str, output: Path, overwrite: bool, as_json: bool) -> None:
    """Put a report into a bundle: a new bundle with the same graphs.

    REPORT was made of BUNDLE, or of one with the same graphs, on any device. `edgeclip inspect` shows it, push and pull carry it.
    """
    from edgeclip.bench.reading import open_report
    from edgeclip.bench.store import attach as attach_report
    from edgeclip.bundle import open_bundle

    made = attach_report(open_bundle(bundle), open_report(report), output, overwrite=overwrite)
    if as_json:
        emit({"path": str(made.root), "digest": made.digest, "reports": list(made.manifest.reports)})
    else:
        click.echo(f"{made.root}: holds {made.manifest.reports[-1]}")


VERBS = (compare, matrix, show, attach)
