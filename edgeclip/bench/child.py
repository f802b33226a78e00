"""Fresh processes: a command that finds modules where this process does, and answers that come back as JSON, errors included."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

from edgeclip import errors
from edgeclip.errors import EdgeClipError


def program(lines: str) -> list[str]:
    """Run these lines of Python.

    `python -m` would look into the folder that the user stands in first, and a json.py there would be run instead of Python's own
    (`-P` is Python 3.11's); and it would not find an edgeclip that this process found by a path of its own.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!a}\n{lines}"]


def answers() -> IO[str]:
    """In the child: stdout, for its answers alone. What libraries print goes to stderr from here on."""
    found = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return found


def refusal(error: EdgeClipError) -> dict[str, str]:
    """In the child: the answer that says what it met."""
    return {"error": type(error).__name__, "message": str(error)}


def accepted(answer: Any) -> Any:
    """In the parent: the answer. Raises the EdgeClipError that it tells of."""
    if isinstance(answer, dict) and "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer
