"""What a forked child must not use: an engine's threads do not survive a fork, and a lock may be held for ever.

Whatever owns such things registers itself here; in the child its `after_fork` is called, forgets them, and opens anew when used.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An owner of threads or locks."""

    def after_fork(self) -> None:
        """Replace the locks and drop what holds threads."""


_live: weakref.WeakSet[Forkable] = weakref.WeakSet()


def register(owner: Forkable) -> None:
    """Have `owner.after_fork()` called in every child forked from now on."""
    _live.add(owner)


def abandon(thing: object) -> None:
    """Never destroy `thing`: its destructor would join threads that this process does not have, and crash or hang."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork_in_child() -> None:
    for owner in list(_live):
        owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
