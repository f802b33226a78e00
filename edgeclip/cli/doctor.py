"""`edgeclip doctor`."""

from __future__ import annotations

import click

from edgeclip.cli.common import console, emit, json_option

EXAMPLES = """\b
Examples:
  edgeclip doctor
  edgeclip doctor --json | jq .
"""


@click.command(epilog=EXAMPLES)
@json_option
def command(as_json: bool) -> None:
    """Tell what this machine can run and what it lacks.

    For what is missing it prints the command that installs it.
    """
    from edgeclip.doctor import examine, to_records

    findings = examine()
    if as_json:
        emit({"findings": to_records(findings)})
        return
    from rich.table import Table

    table = Table("", "what", "found")
    for finding in findings:
        table.add_row(
            "yes" if finding.ok else "no",
            finding.topic,
            finding.detail,
            style=None if finding.ok else "yellow",
        )
    console().print(table)
    for finding in findings:
        if finding.command:  # on lines of their own, so that they can be copied
            click.echo(f"{finding.topic}:\n  {finding.command}")
