"""Prompts as they are typed, and prompts that change while a stream runs."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.cli.common import say
from edgeclip.errors import EdgeClipError, InputError

if TYPE_CHECKING:
    from edgeclip.runtime.video.stream import Session

WATCH_S = 0.3  # between two looks at the file of `--watch`, or at the terminal


def parse_prompts(text: str) -> Any:
    """Prompts as they are typed: 'a cat, a dog', one a line (# starts a comment), or nested in [brackets]."""
    from edgeclip.runtime.detect.prompt_tree import typed_prompts  # late: numpy

    return typed_prompts(text)


@contextlib.contextmanager
def changes(session: Session, watch: str | None, read: Callable[[str], Any]) -> Iterator[None]:
    """Prompts changed while frames go on: by the file of `--watch`, else by lines typed at a terminal."""
    over = threading.Event()
    if watch is not None:
        texts: Iterator[str] | None = _edits(watch, over)
    else:
        texts = _typed(over) if sys.stdin is not None and sys.stdin.isatty() else None
    if texts is None:
        yield
        return
    thread = threading.Thread(
        target=_follow, args=(session, texts, read, over), name="edgeclip-prompts", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(
    session: Session, texts: Iterator[str], read: Callable[[str], Any], over: threading.Event
) -> None:
    for text in texts:
        if over.is_set():
            return
        try:
            session.set_prompts(read(text))
            say(f"prompts: {' '.join(text.split())}")
        except EdgeClipError as error:
            say(f"{error} The prompts stay as they were.")


def _edits(path: str, over: threading.Event) -> Iterator[str]:
    seen = watched(path)
    while not over.wait(WATCH_S):
        try:
            text = watched(path)
        except InputError:  # an editor is just replacing it
            continue
        if text != seen and text.strip():
            seen = text
            yield text


def _typed(over: threading.Event) -> Iterator[str]:
    """Lines from the terminal. Not by sys.stdin: a thread that waits in it could not end, and Python would abort at exit."""
    terminal, rest = sys.stdin.fileno(), b""
    while not over.is_set():
        if not select.select([terminal], [], [], WATCH_S)[0]:
            continue
        typed = os.read(terminal, 1 << 16)
        if not typed:  # Ctrl-D
            return
        *lines, rest = (rest + typed).split(b"\n")
        yield from (text for line in lines if (text := line.decode(errors="replace")).strip())


def watched(path: str) -> str:
    """What the file of `--watch` holds. Raises InputError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"--watch {path}: cannot read the file ({reason}). Expected prompts in UTF-8, separated by commas or lines."
        ) from error
