"""`edgeclip bench BUNDLE`; and `bench compare|matrix|show|attach`, which lie in bench_verbs.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.bench.settings import PARTS
from edgeclip.cli.bench_options import (
    SECONDS,
    check_places,
    live_line,
    page_options,
    part_option,
    scenario_options,
    settings_options,
    write_result,
)
from edgeclip.cli.bench_verbs import VERBS
from edgeclip.cli.common import say
from edgeclip.errors import EdgeClipError

if TYPE_CHECKING:
    from edgeclip.bench.report import Report
    from edgeclip.bench.settings import Settings
    from edgeclip.bundle import Bundle

EXAMPLES = """\b
Examples:
  edgeclip bench nano --quick
  edgeclip bench clip-b32/ --images photos/ -o b32.json --html b32.html
  edgeclip bench clip-b32/ --scenario server --bound 50
  edgeclip bench clip-b32/ --task embed --skip all --json
  edgeclip bench clip-b32/ --full --require tensorrt -o orin.json

\b
More with reports:
  edgeclip bench compare before.json after.json --fail-if 'p99>+5%'
  edgeclip bench compare --live clip-b32/ clip-b32-int8/
  edgeclip bench matrix clip-b32/ --batch 1,8,32
  edgeclip bench show orin.json --html orin.html
  edgeclip bench attach orin.json clip-b32/ -o clip-b32-orin/
"""


class _Bench(click.Group):
    """Runs by itself, unless the first word is one of its verbs. A bundle of such a name is reached as ./compare."""

    allow_interspersed_args, allow_extra_args = (
        True,
        False,
    )  # as of a command: a group leaves the rest to its verbs

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.commands:
            return self.commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return click.Command.parse_args(self, ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return click.Command.collect_usage_pieces(self, ctx)

    def invoke(self, ctx: click.Context) -> Any:
        return click.Command.invoke(self, ctx)


@click.group(cls=_Bench, epilog=EXAMPLES, no_args_is_help=False)
@click.argument("bundle")
@settings_options
@scenario_options
@part_option("each point of a sweep, and of the stages")
@click.option(
    "--rate", type=SECONDS, metavar="PER_S",
    help="Queries a second that the server scenario offers. Default: the highest that holds the bound is searched.",
)  # fmt: skip
@click.option("--bound", type=SECONDS, metavar="MS", help="Bound of the server's p99. Default: ten times p50 of a single stream.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Pictures in one call of the offline scenario, and most queries that the server merges. Default: 8.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Part to measure beside the scenarios; may be repeated. Default: all parts.")  # fmt: skip
@click.option("--skip", multiple=True, type=click.Choice([*PARTS, "all"]), help="Part to leave out; may be repeated.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="REPORT.json", help="Write the report into this file.")  # fmt: skip
@page_options
@click.option("--save/--no-save", default=True, help="Keep the report among the bundle's local ones, which `edgeclip inspect` lists. Default: keep it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, for programs.")
def command(
    bundle: str, settings: Settings, images: Path | None, rate: float | None, bound: float | None, batch: int | None,
    only: tuple[str, ...], skip: tuple[str, ...], output: Path | None, html: Path | None, markdown: Path | None, save: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure a bundle's latency on this machine.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Each scenario runs in fresh processes, from a picture's bytes to
    the result; percentiles come with their intervals. Then stages, batch sizes, threads, variants, cold start,
    memory and the share of the machine's peak. End other programs first.
    """
    from edgeclip.bench.measure import measure
    from edgeclip.bundle import open_bundle

    check_places(output, html, markdown)
    parts = tuple(part for part in only or settings.parts if part not in skip and "all" not in skip)
    changes: dict[str, Any] = {"parts": parts}
    changes |= {"server_rate_per_s": rate} if rate else {}
    changes |= {"server_bound_ms": bound} if bound else {}
    changes |= {"offline_batch": batch, "server_batch": batch} if batch else {}
    with live_line() as tell:
        report = measure(bundle, replace(settings, **changes), images, tell)
    if save:
        _keep(open_bundle(bundle), report)
    write_result(report, output, html, markdown, as_json)


def _keep(bundle: Bundle, report: Report) -> None:
    """A cache that cannot be written costs nobody the figures."""
    from edgeclip.bench.store import keep

    try:
        say(f"kept as {keep(bundle, report)}")
    except EdgeClipError as error:
        say(f"not kept: {error}")


for _verb in VERBS:
    command.add_command(_verb)
