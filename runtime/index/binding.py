"""An index and the model that asks it: the same model or none, in any of its precisions, with what another one costs measured."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.engines.seam import UNCOUNTED
from edgeclip.runtime.index.places import read_picture
from edgeclip.runtime.index.types import Origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.manifest import Manifest
    from edgeclip.runtime.model import Model

SAMPLE = 200  # pictures that are embedded again

log = logging.getLogger(__name__)


def origin_of(model: Model) -> Origin:
    """What an index keeps of its model."""
    facts = model.manifest
    spec = facts.preprocessing
    return Origin(
        facts.model_id, facts.name, facts.embedding_dim, variants_of(model), None if spec is None else asdict(spec)
    )  # fmt: skip


def variants_of(model: Model) -> tuple[str, ...]:
    """Ids of the variants that make this model's vectors: those in use, or that would be used first."""
    found = []
    for tower in model.towers:
        if tower.kind in ("image", "text") and tower.head == "embeddings":
            try:
                found.append(tower.variant.id if tower.variant else tower.variants[0].id)
            except EdgeClipError:  # the bundle has no such tower
                continue
    return tuple(found)


def variants_in_use(model: Model) -> tuple[str, ...]:
    """Ids of the variants that made vectors in this process."""
    return tuple(
        tower.variant.id
        for tower in model.towers
        if tower.variant and tower.kind in ("image", "text") and tower.head == "embeddings"
    )


def check_model(path: object, origin: Origin, model: Model) -> None:
    """Raise InputError unless the index holds this model's vectors."""
    facts = model.manifest
    if (facts.model_id, facts.embedding_dim) != (origin.model_id, origin.dim):
        raise InputError(
            f"{path}: holds vectors of {origin.name} (model {origin.model_id[:12]}..., width {origin.dim}), the bundle is {facts.name} "
            f"({facts.model_id[:12]}..., width {facts.embedding_dim}). Pass {origin.name}'s bundle, or build the index again with this one."
        )


def tell_of_variant(path: Path, manifest: Manifest, model: Model) -> None:
    """Say what it costs where queries come from another variant than the stored vectors: another precision, mostly."""
    wrote, asks = manifest.origin.variants, variants_of(model)[:1]  # what makes stored vectors, not texts
    others = [variant for variant in asks if wrote and variant not in wrote]
    measured: Mapping[str, Any] = manifest.measured.get("variants", {})
    for variant in others:
        if variant in measured:
            log.info(
                "%s: queries by %s find %.3f of what its own vectors find",
                path,
                variant,
                measured[variant]["recall"],
            )
        else:
            log.warning(
                "%s: written by %s, asked by %s of the same model: `edgeclip index info %s --measure -b BUNDLE` tells what that costs",
                path, ", ".join(sorted(wrote)), variant, path, extra=UNCOUNTED,
            )  # fmt: skip


def measure_variants(index: Index, model: Model, k: int = 10) -> dict[str, Any]:
    """What queries by this model's own variant find of what stored vectors find; kept in the manifest where the index may be written.

    The first 200 pictures that are still where their records say are embedded anew, and asked beside their stored vectors.

    Returns:
        {} where the variant wrote the index itself; else {variant: {"recall", "k", "queries", "cosine"}}.
    Raises:
        InputError: none of the pictures is there.
    """
    variant = next(iter(variants_of(model)))
    if variant in index.origin.variants:
        return {}
    pictures: dict[str, Any] = {}
    own: dict[str, int] = {}
    for number, item in index.items():
        with contextlib.suppress(InputError):  # gone by now
            if "box" not in item.record and (picture := read_picture(item)) is not None:
                pictures[item.key], own[item.key] = picture, number
        if len(pictures) == SAMPLE:
            break
    found = {
        key: row
        for key, row in zip(pictures, model.embed_each(pictures.values()), strict=True)
        if not isinstance(row, EdgeClipError)
    }
    if len(found) < 2:
        raise InputError(
            f"{index.path}: {len(found)} of its pictures can be read; two are needed to measure {variant}."
        )
    most = min(k, len(index) - 1)
    new, old = np.stack(list(found.values())), index.vectors(list(found))
    ids = [index.search_ids(rows, most + 1)[0].tolist() for rows in (new, old)]
    # a picture is its own nearest, which proves nothing
    hits = [len(set(a) & set(b) - {own[key]}) for key, a, b in zip(found, *ids, strict=True)]
    facts = {
        "recall": round(min(1.0, float(np.mean(hits)) / most), 4), "k": most, "queries": len(found),
        "cosine": round(float((new * old).sum(axis=1).mean()), 6),
    }  # fmt: skip
    return {variant: facts}
