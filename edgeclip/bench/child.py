"""The command of a fresh process that finds modules where this one does."""

from __future__ import annotations

import sys


def program(lines: str) -> list[str]:
    """Run these lines of Python.

    `python -m` would look into the folder that the user stands in first, and a json.py there would be run instead of Python's own
    (`-P` is Python 3.11's); and it would not find an edgeclip that this process found by a path of its own.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!a}\n{lines}"]
