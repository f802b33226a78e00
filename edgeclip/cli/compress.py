"""`edgeclip compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, notes, parse_labels, say
from edgeclip.cli.export import need_export_extra
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.bundle import Bundle
    from edgeclip.export.compress.api import CompressReport
    from edgeclip.export.compress.budget import Budget
    from edgeclip.export.compress.curve import Point

EXAMPLES = """\b
Examples:
  edgeclip compress clip-b32 -o clip-b32-int8 --images photos/
  edgeclip compress clip-b32 -o small --images photos/ --budget cosine=0.999 --budget recall=-0.5
  edgeclip compress clip-b32 -o small --labels-from sorted/ --budget top1=-0.3 --picture curve.svg
  edgeclip compress clip-b32 -o tiny --images photos/ --for size --drop-float
  edgeclip compress student -o student-int8 --images photos/ --ranges finished/finished.safetensors
  edgeclip compress clip-b32-int8 --measure-only --json > jetson.json      on the device
  edgeclip compress clip-b32 -o out --images photos/ --device-report jetson.json
"""

STEADY = 1e-4  # relative distance by which a row may move with its batch before it is told


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle to make.")
@click.option(
    "--budget", "budgets", multiple=True,
    help="What may be lost: cosine=0.999, distance=0.05, top1=-0.3 or recall=-0.5 (points); of a detector also box=0.005 (of the side), "
    "score=0.02 or agreement=0.95. Repeated ones must all hold. Default: distance=0.10, of a detector also box=0.01 and score=0.02.",
)  # fmt: skip
@click.option(
    "--images", type=click.Path(path_type=Path),
    help="Folder of your pictures: half calibrate, half are held out. Default: made-up ones.",
)  # fmt: skip
@click.option(
    "--texts", type=click.Path(path_type=Path), help="File of your texts, one a line. Default: built-in ones."
)
@click.option(
    "--labels",
    help="Labels of the top-1 figure, the scores and the detections: 'a cat,a dog', or @FILE with one a line.",
)
@click.option(
    "--labels-from", type=click.Path(path_type=Path),
    help="Folder with a folder of pictures for each label: top-1 is then accuracy.",
)  # fmt: skip
@click.option(
    "--precision", "methods", multiple=True,
    help="What to try: int8, int8-dynamic, fp16, bf16, fp8, int4; may be repeated. Default: what the aim makes likely.",
)  # fmt: skip
@click.option(
    "--tower", "towers", multiple=True, type=click.Choice(["image", "text", "detector"]),
    help="Tower that must end compressed; may be repeated. Default: whichever can be.",
)  # fmt: skip
@click.option(
    "--for", "aim", type=click.Choice(["speed", "size"]), default="speed", show_default=True,
    help="What to gain. With size a variant need not be faster.",
)  # fmt: skip
@click.option(
    "--device-report", type=click.Path(path_type=Path),
    help="Latencies of the target, made there by --measure-only. Default: this machine.",
)  # fmt: skip
@click.option(
    "--measure-only", is_flag=True, help="Only time the bundle's variants here, for --device-report."
)
@click.option(
    "--ranges", type=click.Path(path_type=Path),
    help="Of a student that was finished in int8: the file finished.safetensors beside it. Its layers become int8 as they were trained to.",
)  # fmt: skip
@click.option("--unproven", is_flag=True, help="Write the named precisions without proof of their speed.")
@click.option(
    "--drop-float", is_flag=True, help="Leave the float variants of compressed towers out of the result."
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the trade-off curve into this .svg file."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. Default: one for each physical core."
)
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@json_option
def command(
    bundle: str, output: Path | None, budgets: tuple[str, ...], images: Path | None, texts: Path | None, labels: str | None,
    labels_from: Path | None, methods: tuple[str, ...], towers: tuple[Any, ...], aim: Any, device_report: Path | None,
    measure_only: bool, ranges: Path | None, unproven: bool, drop_float: bool, picture: Path | None, threads: int | None, overwrite: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a bundle smaller and faster, within a budget.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Layers are converted, measured on your pictures, and left in float where the budget asks for
    it. Exit code 1, and nothing written, when the result is out of budget or not faster than fp32 on the target.
    """
    from edgeclip.bundle import open_bundle

    if measure_only:
        _measure_only(open_bundle(bundle), threads, as_json)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if picture is not None and picture.suffix.lower() != ".svg":
        raise InputError(f"--picture {picture}: expected a name that ends in .svg.")
    need_export_extra("compress", torch=False)
    from edgeclip.export.compress.api import CompressSettings, NothingFits, compress_bundle
    from edgeclip.export.compress.budget import parse_budgets

    settings = CompressSettings(
        budgets=parse_budgets(budgets),
        methods=methods,
        towers=towers,
        aim=aim,
        images=images,
        texts=texts,
        labels=tuple(parse_labels(labels, ())) if labels else (),
        labels_from=labels_from,
        device_report=device_report,
        ranges=ranges,
        unproven=unproven,
        drop_float=drop_float,
        threads=threads,
        overwrite=overwrite,
    )
    screen = notes()
    with screen.status(f"open {bundle}") as status:

        def tell(step: str, seconds: float | None) -> None:
            status.update(step)
            if seconds is not None:
                screen.print(f"{seconds:6.1f} s  {step}")

        try:
            report = compress_bundle(open_bundle(bundle), output, settings=settings, tell=tell)
        except NothingFits as refused:
            show_curve(refused.points, settings.budgets, picture, as_json)
            if as_json:
                emit({"error": str(refused), "curve": [point.to_dict() for point in refused.points]})
            raise
    show_curve(report.points, settings.budgets, picture, as_json)
    if as_json:
        emit(report.to_dict())
    else:
        print_report(report)


def _measure_only(bundle: Bundle, threads: int | None, as_json: bool) -> None:
    from edgeclip.export.compress.target import measure_bundle

    screen = notes()
    with screen.status("time the variants") as status:
        target = measure_bundle(bundle, threads=threads, tell=lambda step, _: status.update(step))
    if as_json:
        emit(target.to_dict())
        return
    from rich.table import Table

    table = Table("variant", "ms", "float ms", "faster")
    for name, found in target.variants.items():
        table.add_row(name, f"{found.ms:.2f}", f"{found.reference_ms:.2f}", str(found))
    console().print(table)
    console().print(f"{target.device}, {target.threads} threads, onnxruntime {target.onnxruntime}")


def show_curve(
    points: Sequence[Point], budgets: Sequence[Budget], picture: Path | None, as_json: bool
) -> None:
    """The trade-off curve, as a table and as a picture."""
    from edgeclip.export.compress.curve import columns
    from edgeclip.export.compress.picture import draw
    from edgeclip.files import write_file

    if picture is not None:
        write_file(picture, draw(points, budgets))
    if as_json:
        return
    from rich.table import Table

    boxes = any(point.tower == "detector" for point in points)
    table = Table(*columns(boxes))
    for point in points:
        table.add_row(*point.row(boxes), style={"chosen": "green", "refused": "dim"}.get(point.verdict))
    console().print(table)


def _boxes(point: Point) -> str:
    """What a detector's best regions lost."""
    figures = point.held_out
    if figures is None or figures.box is None:
        return ""
    same = "" if figures.agreement is None else f", {figures.agreement:.1%} of the detections are fp32's"
    return f"; corners move by {figures.box:.4f} of the side, scores by {figures.score:.4f}{same}"


def print_report(report: CompressReport) -> None:
    """What was refused, chosen and fitted, one line each."""
    screen = console()
    for line in report.refusals:
        say(f"refused: {line}")
    for tower, point in report.chosen.items():
        left = len(point.left)
        kept = f", {left} layer{'s' * (left > 1)} left in float" if left else ""
        moved = point.batch_change or 0.0
        rows = f"; rows move by {moved:.4f} of a distance with their batch" if moved > STEADY else ""
        experts = (
            "" if point.routing is None else f"; {point.routing:.1%} of the choices of experts are fp32's"
        )
        screen.print(
            f"{tower}: {point.method}{kept}, {point.latency or 'speed not measured'}{rows}{experts}{_boxes(point)}"
        )
    for point in report.points:
        if point.verdict == "unproven":
            screen.print(f"{point.tower}: {point.name} is written last, its speed unproven")
    if not isinstance(report.refit, str):
        fit = report.refit
        word = "fitted again" if fit.kept else "left as they were"
        screen.print(
            f"scores {word}: error against {fit.against} {fit.error_before:.4f} before, {fit.error_after:.4f} fitted"
        )
    budgets = ", ".join(map(str, report.budgets))
    screen.print(f"{report.bundle.root}: within {budgets} on held-out samples, verified")
