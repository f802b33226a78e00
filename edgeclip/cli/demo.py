"""`edgeclip demo`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from edgeclip.cli.common import find_pictures, model_options, say

if TYPE_CHECKING:
    from edgeclip.demo import Demo

EXAMPLES = """\b
Examples:
  edgeclip demo                                          opens a page; a camera or files are chosen there
  edgeclip demo -b owlv2/ --prompts 'a face, a red cup'
  edgeclip demo street.jpg photos/ -b owlv2/             offers these pictures to begin with
  edgeclip demo --host 0.0.0.0 --port 9000 --no-browser  for other machines too

\b
On a device elsewhere, with the camera of this machine's browser:
  ssh -L 8765:localhost:8765 DEVICE edgeclip demo --no-browser
"""


@click.command(epilog=EXAMPLES)
@click.argument("pictures", nargs=-1)
@click.option("--prompts", default="", help="What stands in the page's field to begin with.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen at; 0 takes any that is free.",
)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@model_options
def command(
    pictures: tuple[str, ...],
    prompts: str,
    host: str,
    port: int,
    no_browser: bool,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
) -> int:
    """Try a model on a local web page, with camera or files.

    PICTURES are files, folders (searched with all their subfolders) and globs that the page offers. Ctrl-C ends.
    """
    import edgeclip
    from edgeclip.demo import serve

    paths, failures = find_pictures(pictures, as_json=False)
    for _, reason in failures:
        say(f"skipped: {reason}")

    def ready(demo: Demo) -> None:
        click.echo(demo.url)
        sys.stdout.flush()
        if not demo.is_local:
            say(
                f"listening on {host}: whoever reaches this machine and has the address above may use the model, and it travels unencrypted. "
                "A browser gives its camera to https and to localhost only; from elsewhere pass files, or use "
                f"`ssh -L {demo.port}:localhost:{demo.port}`."
            )
        if not no_browser and _has_screen():
            import webbrowser

            webbrowser.open(demo.url)

    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        model.warmup()
        serve(model, host, port, pictures=paths, prompts=prompts, ready=ready)
    say("ended.")
    return 0


def _has_screen() -> bool:
    """Whether a browser has a window: without one, Python would start a browser of text in this terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
