"""The command line: parse, call, print. One file a verb; a verb's module is imported when it is asked for."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from edgeclip import __version__
from edgeclip.cli.common import Warnings, say
from edgeclip.cli.verbs import LateGroup
from edgeclip.errors import EdgeClipError

VERBS = {  # in the order of a model's life; each module offers `command`
    "sources": "edgeclip.cli.sources",
    "export": "edgeclip.cli.export",
    "train": "edgeclip.cli.train",
    "distill": "edgeclip.cli.distill",
    "experts": "edgeclip.cli.experts",
    "evaluate": "edgeclip.cli.evaluate",
    "verify": "edgeclip.cli.verify",
    "inspect": "edgeclip.cli.inspect",
    "compress": "edgeclip.cli.compress",
    "bake": "edgeclip.cli.bake",
    "build": "edgeclip.cli.build",
    "triton": "edgeclip.cli.triton",
    "classify": "edgeclip.cli.classify",
    "detect": "edgeclip.cli.detect",
    "demo": "edgeclip.cli.demo",
    "codecs": "edgeclip.cli.codecs",
    "embed": "edgeclip.cli.embed",
    "index": "edgeclip.cli.index",
    "search": "edgeclip.cli.search",
    "labels": "edgeclip.cli.labels",
    "pull": "edgeclip.cli.pull",
    "push": "edgeclip.cli.push",
    "bench": "edgeclip.cli.bench",
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


class _Verbs(LateGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, SystemExit) as error:  # `edgeclip ... | head` has read enough
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise  # rich makes the one out of the other
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(cls=_Verbs, table=VERBS, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeclip")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """CLIP-family models on devices: export, prove, pack, and run them without PyTorch."""
    log = logging.getLogger("edgeclip")
    ctx.obj = Warnings()
    log.addHandler(ctx.obj)
    ctx.call_on_close(lambda: log.removeHandler(ctx.obj))


# What the machine refuses: no bug of ours, and no traceback.
_MACHINE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENAMETOOLONG,
}  # fmt: skip


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. The one place where errors become lines."""
    try:
        args = list(arguments) if arguments is not None else None
        result = cli.main(args=args, prog_name="edgeclip", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except EdgeClipError as error:
        say(str(error))
        return error.exit_code
    except click.ClickException as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            say(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
            return 2
        traceback.print_exc()
        say("this is a bug in edgeclip; please report the lines above.")
        return 70


def _usage(error: click.ClickException) -> int:
    """One line that ends with where to read on; the whole help for a command without any argument."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "edgeclip"
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
        error.show()
    else:
        say(f"{error.format_message()} See `{path} --help`.")
    return 2


def main() -> None:
    """Entry point of the `edgeclip` program."""
    # a job that is cancelled cleans up, and ends the processes that it measures in
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that is no Unicode is shown, not fatal
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns, in two lines of its own source, of damage that does no harm (a broken EXIF note)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run())
