"""`edgeclip verify`."""

from __future__ import annotations

import click

from edgeclip.cli.common import console, emit, json_option

EXAMPLES = """\b
Examples:
  edgeclip verify clip-b32/            every hash, every graph, the golden inputs replayed
  edgeclip verify nano --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. Default: one for each physical core."
)
@json_option
def command(bundle: str, threads: int | None, as_json: bool) -> None:
    """Prove that a bundle is whole and gives what it should.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Checks every SHA-256, opens every graph, replays the golden pictures and texts, and refuses non-finite or constant
    outputs. Exit code 1 when a check falls short.
    """
    from edgeclip.bundle import open_bundle
    from edgeclip.runtime.verify import verify

    report = verify(open_bundle(bundle), threads=threads)
    if as_json:
        emit(report.to_dict())
    else:
        from rich.table import Table

        table = Table("check", "result", "figure")
        for check in report.checks:
            table.add_row(
                check.name,
                "ok" if check.passed else "FAILED",
                check.detail,
                style=None if check.passed else "red",
            )
        console().print(table)
    report.require()
