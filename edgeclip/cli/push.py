"""`edgeclip push`."""

from __future__ import annotations

import click

from edgeclip.cli.common import emit, json_option, say

EXAMPLES = """\b
Examples:
  edgeclip push clip-b32/ ORG/clip-b32-edgeclip            log in first: hf auth login
  edgeclip push clip-b32/ ORG/clip-b32-edgeclip --private
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make the repository private if it does not exist yet.")
@click.option("--revision", help="Branch to push to.")
@json_option
def command(bundle: str, repository: str, private: bool, revision: str | None, as_json: bool) -> None:
    """Upload a bundle to the Hugging Face Hub.

    BUNDLE is a folder or a .zip of one, REPOSITORY is ORG/NAME. Every hash is checked first.
    """
    from edgeclip.bundle import open_bundle
    from edgeclip.bundle.hub import push

    opened = open_bundle(bundle)
    for warning in opened.manifest.licence.warnings:
        say(f"licence: {warning}")
    address = push(opened, repository, private=private, revision=revision)
    if as_json:
        emit({"repository": repository, "commit": address, "digest": opened.digest})
    else:
        click.echo(f"pushed {opened.manifest.name} to {address}", err=True)
