"""`edgeclip index`: its verbs, imported when they are asked for."""

from __future__ import annotations

import click

from edgeclip.cli.verbs import LateGroup

VERBS = {  # in the order of an index's life
    "build": "edgeclip.cli.index_build:build",
    "add": "edgeclip.cli.index_build:add",
    "remove": "edgeclip.cli.index_care:remove",
    "info": "edgeclip.cli.index_care:info",
    "verify": "edgeclip.cli.index_care:verify",
    "optimize": "edgeclip.cli.index_care:optimize",
    "dedupe": "edgeclip.cli.index_dedupe",
    "cluster": "edgeclip.cli.index_cluster",
    "link": "edgeclip.cli.index_link",
    "export": "edgeclip.cli.index_away:export",
    "import": "edgeclip.cli.index_away:import_",
}

EXAMPLES = """\b
Examples:
  edgeclip index build photos/ -o photos.index      run it again: only what is new or changed is embedded
  edgeclip index add photos.index more/ --root .
  edgeclip index info photos.index
  edgeclip search photos.index "a red bicycle"
"""


@click.group(cls=LateGroup, table=VERBS, epilog=EXAMPLES)
def command() -> None:
    """Keep vectors on disk and search them.

    An index is a folder. It knows the model whose vectors it holds, survives a crash at any moment, and is searched while it is written.
    """
