"""Every attribute of TensorRT that the project uses is there in TensorRT 10.3, 10.9, 10.16, 11.0, 11.4 and TensorRT-RTX 1.4 and 1.7."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgeclip.runtime.tensorrt as package
from edgeclip.runtime.tensorrt.library import FEATURES, Library
from tests.runtime.tensorrt.surface import CLASSES, RELEASES, attributes

HERE = Path(package.__file__).parent
SOURCES = sorted([*HERE.glob("*.py"), *(HERE.parent / "engines").glob("tensorrt*.py")])
# What some release lacks, and who asks first whether it is there.
GUARDED = {
    "SAME_COMPUTE_CAPABILITY": 'Library.need("same")',
    "IAttentionInputLayer": "a layer of this kind, which only releases make that read the operator",
    "decomposable": "the same",
}
# Used where Library.ahead_of_time says so only.
OF_RTX = {
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability", "create_runtime_config", "create_runtime_cache",
    "set_runtime_cache", "deserialize", "cuda_graph_strategy", "WHOLE_GRAPH_CAPTURE", "DISABLED",
    "set_execution_context_allocation_strategy",
}  # fmt: skip
OWN = {"precision", "attention", "update"}  # of the project's own objects: `axes.precision`, `hash.update`
EVERYWHERE = {word for row in CLASSES.values() for word in row["all"]}
SOMEWHERE = {word for row in CLASSES.values() for word in row["some"]} - EVERYWHERE
MODULES = {"trt", "module"}  # what the imported package is called


def missing(source: str) -> list[str]:
    """Uses of attributes that some release lacks, or that none has: "line 3: BuilderFlag.FP16"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr in GUARDED or node.attr in OF_RTX | OWN:
            continue
        word, owner = node.attr, node.value
        if (
            isinstance(owner, ast.Attribute)
            and _is_module(owner.value)
            and owner.attr in set(CLASSES) - OF_RTX
        ):
            if word not in CLASSES[owner.attr]["all"] and not word.startswith("__"):
                found.append((node.lineno, f"{owner.attr}.{word}"))
        elif word in SOMEWHERE:
            found.append((node.lineno, word))
    return [f"line {line}: {word}" for line, word in sorted(found)]


def _is_module(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id in MODULES) or (
        isinstance(node, ast.Attribute) and node.attr in MODULES
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_uses_what_a_release_lacks(path: Path) -> None:
    assert missing(path.read_text()) == []


def test_what_eleven_removed_and_what_never_was_is_seen() -> None:
    source = "config.set_flag(trt.BuilderFlag.FP16)\nconfig.int8_calibrator = 1\nlibrary.module.MemoryPoolType.WORKSPACES\ncontext.execute_v2"
    assert missing(source) == [
        "line 1: BuilderFlag.FP16", "line 2: int8_calibrator", "line 3: MemoryPoolType.WORKSPACES",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "kind", "word"),
    [
        ("same", "HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"),
        ("archs", "ComputeCapability", "SM86"),
    ],
)
def test_features_come_with_the_release_that_has_their_attribute(feature: str, kind: str, word: str) -> None:
    has = {
        release: Library(*release.split()[:1], None, release.split()[1]).has(feature) for release in RELEASES
    }
    there = {release: word in attributes(kind, release) for release in RELEASES}
    named = {release for release in RELEASES if release.split()[0] in FEATURES[feature].since}
    assert {release: has[release] for release in named} == {release: there[release] for release in named}


def test_what_only_rtx_has_all_its_releases_have() -> None:
    releases = {release for release in RELEASES if release.startswith("tensorrt-rtx")}
    for word in OF_RTX - set(CLASSES):
        having = [set(row["some"].get(word, ())) for row in CLASSES.values()]
        assert any(releases <= has for has in having), word
