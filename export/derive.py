"""A new bundle from an old one: variants added, dropped or put first; what the model is stays the same.

A bundle is immutable, so whatever changes one (compressing, baking labels) writes another, with the same `model_id`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeclip import __version__
from edgeclip.bench.store import still_true
from edgeclip.bundle import Bundle, Variant, seal
from edgeclip.errors import InputError
from edgeclip.export.tensorrt_rules import required
from edgeclip.export.weights import PIXELS, save_graphs
from edgeclip.files import new_folder, write_file
from edgeclip.runtime.verify import verify

GRAPHS = "graphs"


@dataclass(frozen=True)
class NewVariant:
    """One graph to add. The variant's `files` and `requires["tensorrt"]` are filled in when it is written."""

    variant: Variant
    model: ir.Model


def read_graph(bundle: Bundle, variant: Variant) -> ir.Model:
    """A variant's graph; large weights stay in the bundle's files until they are read."""
    return ir.load(bundle.path(variant.files[0]))


def derive_bundle(
    bundle: Bundle,
    output: Path,
    new: Sequence[NewVariant],
    *,
    keep: Callable[[Variant], bool] = lambda variant: True,
    order: Callable[[Sequence[Variant]], Sequence[Variant]] = lambda variants: variants,
    files: Mapping[str, bytes] | None = None,
    changes: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> Bundle:
    """Write a bundle that has the old one's kept variants and the new ones, sealed and verified. It appears whole or not at all.

    Latency reports inside the old one stay as long as all graphs that they measured do.

    Args:
        new: in the order of preference; they stand before the kept ones.
        keep: which of the old variants stay.
        order: rearranges the variants; the first of a tower is the one that the runtime prefers.
        files: more files, by name.
        changes: fields of the manifest to replace.
        record: what was done and on what evidence, appended to provenance["history"].
    Raises:
        InputError: the output is there, is the bundle itself or a folder around it, or a new variant's id is taken.
        CheckFailed: the result does not verify.
    """
    bundle.keep_clear(output)
    kept = [variant for variant in bundle.manifest.variants if keep(variant)]
    taken = {variant.id for variant in kept}
    if clash := [one.variant.id for one in new if one.variant.id in taken]:
        raise InputError(f"{bundle.root}: has a variant {clash[0]} already. Start from a bundle without it.")
    old = bundle.manifest
    text = (changes or {}).get("text", old.text)
    reports = still_true(bundle, {old.files[variant.files[0]].sha256 for variant in kept})
    with new_folder(output, overwrite=overwrite) as scratch:
        named = [name for variant in kept for name in (*variant.files, variant.labels) if name]
        named += [*reports, old.golden, old.codecs, text.tokenizer if text else ""]
        for name in dict.fromkeys(name for name in named if name and name not in (files or {})):
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), target)
        for name, content in (files or {}).items():
            write_file(scratch / name, content)
        written = _write(new, scratch)
        history = [*old.provenance.get("history", []), dict(record)] if record else None
        provenance = {**old.provenance, "history": history} if history else old.provenance
        manifest = replace(
            old,
            variants=tuple(order([*written, *kept])),
            reports=tuple(reports),
            provenance=provenance,
            created_by=f"edgeclip {__version__}",
            **(changes or {}),
        )
        derived = seal(scratch, manifest)
        verify(derived, threads=threads).require()
    return replace(derived, root=output.resolve())


def _write(new: Sequence[NewVariant], folder: Path) -> list[Variant]:
    """Graphs of one tower share a weights file, and those of all towers of pictures; another tower has its own."""
    files: dict[str, tuple[str, ...]] = {}
    groups: dict[str, list[NewVariant]] = {}
    for one in new:
        groups.setdefault("pixels" if one.variant.tower in PIXELS else one.variant.tower, []).append(one)
    for group in groups.values():
        towers = list(dict.fromkeys(one.variant.tower for one in group))
        models = [(one.variant.id, one.model) for one in group]
        files |= save_graphs(models, folder / GRAPHS, towers[0], share=len(towers) > 1)
    return [
        replace(
            one.variant,
            files=tuple(f"{GRAPHS}/{name}" for name in files[one.variant.id]),
            requires={**one.variant.requires, "tensorrt": required(one.model)},
        )
        for one in new
    ]
