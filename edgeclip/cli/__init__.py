"""The command line: parse, call, print. One file a verb; a verb's module is imported when it is asked for."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from edgeclip import __version__
from edgeclip.errors import EdgeClipError

VERBS = {  # in the order of a model's life; each module offers `command`
    "export": "edgeclip.cli.export",
    "train": "edgeclip.cli.train",
    "verify": "edgeclip.cli.verify",
    "inspect": "edgeclip.cli.inspect",
    "classify": "edgeclip.cli.classify",
    "embed": "edgeclip.cli.embed",
    "search": "edgeclip.cli.search",
    "labels": "edgeclip.cli.labels",
    "pull": "edgeclip.cli.pull",
    "push": "edgeclip.cli.push",
    "doctor": "edgeclip.cli.doctor",
}

EPILOG = """\b
First steps (offline, with the embedded model):
  edgeclip classify cat.png --labels 'a cat,a dog,a bicycle'
  edgeclip search pictures/ "a red bicycle"
  edgeclip doctor                              what this machine can run

\b
Exit codes: 0 done, 1 a check fell short, 2 wrong input or all inputs failed, 130 interrupted, 70 a bug.
Shell completion: eval "$(_EDGECLIP_COMPLETE=bash_source edgeclip)"   (or zsh_source, fish_source)
"""


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = import_module(VERBS[name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and (near := get_close_matches(name, VERBS, 1)):
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeclip")
def cli() -> None:
    """CLIP-family models on devices: export, prove, pack, and run them without PyTorch."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. The one place where errors become lines."""
    try:
        result = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="edgeclip",
            standalone_mode=False,
        )
        return result if isinstance(result, int) else 0
    except EdgeClipError as error:
        click.echo(f"edgeclip: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgeclip: interrupted", err=True)
        return 130
    except BrokenPipeError:  # `edgeclip ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        click.echo("edgeclip: this is a bug in edgeclip; please report the lines above.", err=True)
        return 70


def main() -> None:
    """Entry point of the `edgeclip` program."""
    sys.exit(run())
