"""`edgeclip pull`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeclip.cli.common import emit, json_option

EXAMPLES = """\b
Examples:
  edgeclip pull ORG/clip-b32-edgeclip -o clip-b32/
  edgeclip pull ORG/clip-b32-edgeclip --revision v2 -o clip-b32/ --overwrite
"""


@click.command(epilog=EXAMPLES)
@click.argument("repository")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to make. Default: the repository's name."
)
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@json_option
def command(
    repository: str, output: Path | None, revision: str | None, overwrite: bool, as_json: bool
) -> None:
    """Download a bundle from the Hugging Face Hub.

    REPOSITORY is ORG/NAME. Every hash is checked before the folder appears at its place.
    """
    from edgeclip.bundle.hub import pull, repo_id

    target = output or Path(repo_id(repository).split("/")[1])
    bundle = pull(repository, target, revision=revision, overwrite=overwrite)
    if as_json:
        emit({"path": str(target), "name": bundle.manifest.name, "digest": bundle.digest})
    else:
        click.echo(
            f"{target}: {bundle.manifest.name}, {len(bundle.manifest.files)} files, hashes checked", err=True
        )
