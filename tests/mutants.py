"""Faults planted in the code itself, to see that a comparison catches them."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def broken(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function as its source would be with `old` (which stands there once) replaced by `new`."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {function.__qualname__}"
    space = dict(function.__globals__)
    flags = __future__.annotations.compiler_flag
    exec(compile(source.replace(old, new), function.__qualname__, "exec", flags), space)
    mutant: Callable[..., Any] = space[function.__name__]
    return mutant
