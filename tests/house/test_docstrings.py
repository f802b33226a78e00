"""Docstrings stand where they should and name parameters that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for room in ("edgeclip", "runtime", "export", "models") for path in (ROOT / room).rglob("*.py")
)
FILES = [path for path in FILES if not any(parent.is_symlink() for parent in path.parents)]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef
KNOWN_METHODS = {"forward"}  # torch's own contract; the class says what goes in and comes out


def complaints(source: str) -> list[str]:
    """What is wrong with the docstrings of one file."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else ["the file has no docstring"]
    for name, node, public in _definitions(tree, "", True):
        doc = ast.get_docstring(node)
        if public and not doc:
            found.append(f"{name} has no docstring")
        named, have = _documented(doc or ""), _parameters(node)
        found += [f"{name} has no parameter {each!r}" for each in named if each not in have]
        if "Args:" in (doc or "") and not named:
            found.append(f"{name}: no parameter under Args:")
    return found


def _definitions(node: ast.AST, prefix: str, public: bool) -> Iterator[tuple[str, Documented, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Documented):
            name = prefix + child.name
            open_to_all = public and not child.name.startswith("_") and child.name not in KNOWN_METHODS
            yield name, child, open_to_all and not _is_overload(child)
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, f"{name}.", open_to_all)


def _is_overload(node: Documented) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)


def _documented(doc: str) -> list[str]:
    """The names in the `Args:` section: lines of its first indentation that look like `name:` or `one, two:`."""
    section = re.split(r"^\S", doc.partition("Args:\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = re.findall(r"^ {4}([\w*]+(?:, [\w*]+)*):", section, re.MULTILINE)
    return [name.strip("* ") for line in lines for name in line.split(",")]


def _parameters(node: Documented) -> set[str]:
    """Of a function, or of a class's __init__ or fields."""
    if isinstance(node, ast.ClassDef):
        inits = [each for each in node.body if isinstance(each, Function) and each.name == "__init__"]
        if not inits:
            return {
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
        node = inits[0]
    return {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", []),
        ("x = 1", ["the file has no docstring"]),
        ('"""."""\ndef f(): ...', ["f has no docstring"]),
        ('"""."""\nclass A:\n    """."""\n    def f(self): ...', ["A.f has no docstring"]),
        ('"""."""\nclass _A:\n    def f(self): ...', []),
        ('"""."""\ndef f(a, *, b):\n    """.\n\n    Args:\n        a: x\n            c: y\n        b, d: z\n    """', ["f has no parameter 'd'"]),
        ('"""."""\ndef f(a):\n    """.\n\n    Args:\n        a: x\n    Returns:\n        b: z\n    """', []),
        ('"""."""\ndef f(a):\n    """.\n\n    Args:\n        the first\n    """', ["f: no parameter under Args:"]),
        ('"""."""\nclass A:\n    """.\n\n    Args:\n        a: x\n        b: y\n    """\n    def __init__(self, a): ...', ["A has no parameter 'b'"]),
    ],
)  # fmt: skip
def test_the_checker(source: str, said: list[str]) -> None:
    assert complaints(source) == said
