"""`edgeclip labels make|show`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeclip.cli.common import console, emit, json_option, model_options, parse_labels

MAKE_EXAMPLES = """\b
Examples:
  edgeclip labels make --labels 'a cat,a dog' -o pets.labels
  edgeclip labels make --labels @labels.txt --template 'a photo of a {}' -b clip-b32/ -o shop.labels
"""

SHOW_EXAMPLES = """\b
Examples:
  edgeclip labels show pets.labels
  edgeclip labels show pets.labels --json
"""


@click.group(epilog=MAKE_EXAMPLES + SHOW_EXAMPLES.replace("\b\nExamples:\n", ""))
def command() -> None:
    """Make and show label packs: labels, embedded once.

    With a pack a device needs neither text tower nor tokenizer.
    """


@command.command(epilog=MAKE_EXAMPLES)
@click.option("--labels", help="What to embed: 'a cat,a dog', or @FILE with one label a line.")
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The pack to write.",
)
@model_options
@json_option
def make(
    labels: str | None,
    label: tuple[str, ...],
    template: tuple[str, ...],
    output: Path,
    bundle: str,
    engine: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Embed labels once, into a small file bound to this model."""
    import edgeclip

    wanted = parse_labels(labels, label)
    with edgeclip.load(bundle, engine=engine, threads=threads) as model:
        pack = model.make_labels(wanted, templates=template or None)
    pack.save(output)
    record = {
        "path": str(output),
        "labels": len(pack.labels),
        "bytes": output.stat().st_size,
        "model_id": pack.model_id,
    }
    if as_json:
        emit(record)
    else:
        click.echo(f"{output}: {record['labels']} labels, {record['bytes']} bytes", err=True)


@command.command(epilog=SHOW_EXAMPLES)
@click.argument("pack", type=click.Path(exists=True, dir_okay=False))
@json_option
def show(pack: str, as_json: bool) -> None:
    """Print what a label pack holds."""
    import edgeclip

    opened = edgeclip.LabelPack.open(pack)
    if as_json:
        emit(opened.to_dict())
        return
    from rich.table import Table

    table = Table("index", "label")
    for index, name in enumerate(opened.labels):
        table.add_row(str(index), name)
    screen = console()
    screen.print(table)
    screen.print(f"model {opened.model_id[:16]}, templates: {', '.join(opened.templates)}")
