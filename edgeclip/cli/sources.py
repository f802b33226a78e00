"""`edgeclip sources`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from edgeclip.models.families import Family

EXAMPLES = """\b
Examples:
  edgeclip sources                               every family
  edgeclip sources siglip                        one family, with published weights and their licences
  edgeclip sources hf:ORG/NAME                   load it, and say how it is read
  edgeclip sources ./my-checkpoint --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("--revision", help="Branch, tag or commit of a Hub repository.")
@click.option("--allow-pickle", is_flag=True, help="Read .bin and .pt weights too (tensors only).")
@json_option
def command(name: str | None, revision: str | None, allow_pickle: bool, as_json: bool) -> None:
    """List the families that load, or say how one source is read.

    NAME is part of a family's name, or a source as `edgeclip export` takes it: that is loaded (which needs PyTorch), so that
    what is missing or contradicts itself shows before an export.
    """
    from pathlib import Path

    from edgeclip.models.families import FAMILIES

    if name and (":" in name or name == "nano" or Path(name).expanduser().exists()):
        record = _read(name, revision, allow_pickle)
        emit(record) if as_json else _print_record(record)
        return
    found = [family for family in FAMILIES if not name or name.lower() in family.name.lower()]
    if not found:
        from edgeclip.errors import InputError

        known = ", ".join(family.name for family in FAMILIES)
        raise InputError(f"{name}: no family of this name, no file and no source. Families: {known}.")
    if as_json:
        from dataclasses import asdict

        emit({"families": [asdict(family) for family in found]})
    elif name:
        for family in found:
            _print_family(family)
    else:
        _print_families(found)


def _read(spec: str, revision: str | None, allow_pickle: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from edgeclip.cli.export import need_export_extra

    need_export_extra("reading a source")
    from edgeclip.models.sources import load_source

    source = load_source(spec, revision=revision, allow_pickle=allow_pickle)
    return {
        "spec": spec,
        "family": source.family,
        "embedding_dim": source.embedding_dim,
        "pooling": source.pooling,
        "scores": source.activation if source.preprocessing and source.text else "none",
        "parameters": sum(parameter.numel() for parameter in source.model.parameters()),
        "preprocessing": source.preprocessing and asdict(source.preprocessing),
        "text": source.text and asdict(source.text),
        "detection": source.detection and asdict(source.detection),
        "licence": asdict(source.licence),
        "digest": source.digest,
    }


def _print_record(record: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {part}" for name, part in value.items() if part not in ("", (), None))
        table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    console().print(table)


def _print_families(families: list[Family]) -> None:
    from rich.table import Table

    table = Table("family", "read from", "scores", "licences of known weights")
    for family in families:
        licences = dict.fromkeys(known.licence for known in family.known)
        table.add_row(family.name, ", ".join(family.formats), family.scores, ", ".join(licences) or "-")
    screen = console()
    screen.print(table)
    screen.print("More of one: edgeclip sources NAME. Of a checkpoint: edgeclip sources SPEC.")


def _print_family(family: Family) -> None:
    from rich.table import Table

    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, value in (
        ("formats", ", ".join(family.formats)),
        ("image tower", family.image),
        ("text tower", family.text),
        ("pooling", ", ".join(family.pooling)),
        ("scores", family.scores),
        ("activation", family.activation),
        ("pictures", family.pictures),
        ("texts", family.texts),
    ):
        facts.add_row(label, value)
    for known in family.known:
        facts.add_row("weights", f"{known.spec}  {known.stated}")
    screen = console()
    screen.print(f"\n{family.name}")
    screen.print(facts)
