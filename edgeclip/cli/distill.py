"""`edgeclip distill`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.common import console, emit, json_option, notes
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.export.distill.report import DistillReport
    from edgeclip.export.distill.settings import LatencyBudget

EXAMPLES = """\b
Examples:
  edgeclip distill hf:openai/clip-vit-base-patch16 --student half --data pairs.csv -o student
  edgeclip distill ./teacher --student 39m-16 --data pairs.csv -o student --dry-run
  edgeclip distill ./teacher bundle:hf:ORG/OTHER --student half --data shards/ -o student      an ensemble
  edgeclip distill ./teacher --student timm:mobilenetv3_small_100 --data photos/ --text-bank texts.txt -o student
  edgeclip distill ./teacher --student half --data pairs.csv -o student --objectives feature_mse:4,affinity:1 --set steps=2000

\b
By a latency budget, from what was measured on the device:
  edgeclip distill ./teacher --candidates candidates/              a bundle for each student that could be
  edgeclip bench candidates/half -o reports/half.json              on the device, for each of them
  edgeclip distill ./teacher --latency 8ms --device-report reports/ --data pairs.csv -o student

\b
The same command again goes on where it stopped. OUTPUT holds bundle/ (edgeclip verify, inspect, bench take it), report.html and
report.json, run/model (a source), reinforced/ (what the teachers said) and start/ (the student before it learned).
Several GPUs: torchrun --nproc-per-node 4 -m edgeclip distill ...
"""


@click.command(epilog=EXAMPLES)
@click.argument("teachers", nargs=-1, required=True, metavar="TEACHERS...")
@click.option(
    "--student", "students", multiple=True, metavar="NAME",
    help="What learns: half, half-depth, 39m-16, ..., inherit:image.layers=6, timm:NAME, dense:mean, new:half, a source, or recipe.",
)  # fmt: skip
@click.option(
    "--latency",
    metavar="TIME",
    help="Instead: the largest student that is as fast, e.g. 8ms, by --device-report.",
)
@click.option(
    "--device-report", "reports", multiple=True, type=click.Path(path_type=Path),
    help="Report of `edgeclip bench` for a candidate, or a folder of them; may be repeated.",
)  # fmt: skip
@click.option(
    "--percentile", type=click.Choice(["p50", "p90", "p99"]), default="p90", show_default=True,
    help="Which latency --latency bounds.",
)  # fmt: skip
@click.option(
    "--candidates", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Only write a bundle for each student that could be, to be measured on the device; --student narrows them.",
)  # fmt: skip
@click.option("--data", default="", help="Pairs: a folder, .csv, .tsv, .jsonl, tar shards, or shapes:N.")
@click.option("--captions", default="", metavar="FILE", help="Further captions by key, .jsonl or .csv.")
@click.option(
    "--text-bank",
    default="",
    metavar="FILE",
    help="Texts, one a line: --data is a folder of pictures that nobody described.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Of each picture that teachers see.",
)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the result."
)
@click.option("--recipe", default="distill", show_default=True, help="A built-in recipe, or a .py file.")
@click.option(
    "--objectives", default="", metavar="NAME:WEIGHT,...", help="What is asked, as --set objectives=."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the recipe; repeat for more.",
)
@click.option(
    "--finish", "finish_steps", type=click.IntRange(min=2), metavar="STEPS",
    help="Train on for int8 for so many steps, then write the bundle in int8. 400 is a start.",
)  # fmt: skip
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("all",),
    show_default=True,
    help="What the graphs are for, as `edgeclip export`.",
)
@click.option("--allow-larger", is_flag=True, help="A student with more parameters than its teachers.")
@click.option("--allow-weaker", is_flag=True, help="Teachers that score below the student.")
@click.option("--allow-pickle", is_flag=True, help="Read .bin and .pt weights too (tensors only).")
@click.option(
    "--dry-run", is_flag=True, help="Check all, send a sample the whole way, make one step; keep nothing."
)
@json_option
def command(
    teachers: tuple[str, ...],
    students: tuple[str, ...],
    latency: str | None,
    reports: tuple[Path, ...],
    percentile: str,
    candidates: Path | None,
    data: str,
    captions: str,
    text_bank: str,
    views: int,
    output: Path | None,
    recipe: str,
    objectives: str,
    assignments: tuple[str, ...],
    finish_steps: int | None,
    targets: tuple[str, ...],
    allow_larger: bool,
    allow_weaker: bool,
    allow_pickle: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Teach a small student what a large model knows.

    TEACHERS are sources or bundles; several are an ensemble. Leaves a verified bundle and a report.
    Exit code 1 when the bundle does not agree with its student.
    """
    from edgeclip.cli.export import need_export_extra

    need_export_extra("distill")
    from edgeclip.export.api import ExportSettings
    from edgeclip.export.distill.api import distill, rehearse_distill
    from edgeclip.export.distill.settings import DistillSettings
    from edgeclip.export.targets import flavours_for
    from edgeclip.models.training import load_recipe, with_settings

    flavours_for(targets)
    if candidates is not None:
        return _candidates(teachers, students, candidates, ExportSettings(targets), allow_pickle, as_json)
    student = _wanted(students, latency, reports, percentile)
    if output is None and not dry_run:
        raise InputError("-o: expected the folder of the result, e.g. -o student.")
    named = [("data", data), ("text_bank", text_bank), ("objectives", objectives)]
    given = tuple(f"{key}={value}" for key, value in named if value)
    settings = DistillSettings(
        recipe=with_settings(load_recipe(recipe), (*given, *assignments)),
        views=views,
        captions=captions,
        allow_larger=allow_larger,
        allow_weaker=allow_weaker,
        allow_pickle=allow_pickle,
        finish_steps=finish_steps or 0,
        export=ExportSettings(targets),
    )
    if dry_run:
        emit(rehearse_distill(teachers, student, settings))
        return 0
    assert output is not None
    screen = notes()

    def tell(step: str, seconds: float | None) -> None:
        if seconds is not None:
            screen.print(f"{seconds:6.1f} s  {step}")
        elif screen.is_terminal:
            screen.print(f"         {step}")

    try:
        report = distill(teachers, student, output, settings, tell=tell, progress=not as_json)
    except KeyboardInterrupt:
        if (output / "distill.json").is_file():
            screen.print(f"stopped; the same command goes on from what is in {output}")
        raise
    if report is None or os.environ.get("RANK", "0") != "0":  # under torchrun, one process speaks
        return 0
    if as_json:
        emit(report.to_dict())
    else:
        _print(report, output)
    return 0


def _wanted(
    students: tuple[str, ...], latency: str | None, reports: tuple[Path, ...], percentile: str
) -> str | LatencyBudget:
    """One student by name, or a budget."""
    from edgeclip.export.distill.budget import parse_ms
    from edgeclip.export.distill.settings import LatencyBudget

    if latency is None:
        if len(students) != 1:
            raise InputError(
                f"--student: expected one name, got {', '.join(students) or 'none'}. Name one, e.g. half, or pass --latency 8ms."
            )
        if reports:
            raise InputError(
                "--device-report: chooses a student by --latency, and --student names one. Take one out."
            )
        return students[0]
    if students:
        raise InputError(
            f"--latency {latency}: chooses the student, and --student {students[0]} names one. Take one out."
        )
    ms = parse_ms(latency)
    if not reports:
        raise InputError(
            f"--latency {latency}: expected --device-report, what candidates took on the device. Write them with --candidates FOLDER, "
            "and run `edgeclip bench` there for each."
        )
    return LatencyBudget(ms, reports, percentile)  # type: ignore[arg-type]  # click has checked it


def _candidates(
    teachers: tuple[str, ...],
    students: tuple[str, ...],
    output: Path,
    settings: object,
    allow_pickle: bool,
    as_json: bool,
) -> int:
    from edgeclip.export.distill.budget import CANDIDATES, write_candidates
    from edgeclip.models.sources import load_source

    teacher = load_source(teachers[0], allow_pickle=allow_pickle)
    with notes().status(f"export the candidates of {teachers[0]}"):
        made = write_candidates(teacher, students or CANDIDATES, output, settings=settings)  # type: ignore[arg-type]
    if as_json:
        emit({"candidates": [str(path) for path in made]})
        return 0
    for path in made:
        click.echo(str(path))
    click.echo(f"Next, on the device, for each: edgeclip bench {made[0]} -o reports/{made[0].name}.json")
    return 0


def _print(report: DistillReport, output: Path) -> None:
    from rich.table import Table

    from edgeclip.bench.render.words import fixed, percent, size

    table = Table("", "runs in", "parameters", "size", "held-out R@1", "picture ms", "text ms")
    for side in report.sides:
        score = side.scores.get("score", side.scores.get("agreement"))
        table.add_row(
            side.role, side.runs_in, f"{side.parameters:,}", size(side.size_bytes), percent(score),
            fixed(side.image.p50_ms if side.image else None), fixed(side.text.p50_ms if side.text else None),
        )  # fmt: skip
    screen = console()
    if report.chosen:
        screen.print(f"{report.student}: {report.chosen}")
    screen.print(table)
    if report.best_step is not None:
        screen.print(
            f"the checkpoint of step {report.best_step} of {report.steps}, the best on the held-out pairs"
        )
    screen.print(
        f"{report.bundle}: verified. {output / 'report.html'}: side by side, the curve, and where they differ"
    )
    notes().print(
        "; ".join([f"licence of the weights: {report.licence['weights']}", *report.licence["warnings"]])
    )
