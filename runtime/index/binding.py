"""An index and the model that asks it: the same model or none, in any of its precisions, with what another one costs measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.engines.seam import UNCOUNTED
from edgeclip.runtime.index.types import Origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.manifest import Manifest
    from edgeclip.runtime.model import Model

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


def check_model(path: Path, origin: Origin, model: Model) -> None:
    """Raise InputError unless the index holds this model's vectors."""
    facts = model.manifest
    if (facts.model_id, facts.embedding_dim) != (origin.model_id, origin.dim):
        raise InputError(
            f"{path}: holds vectors of {origin.name} (model {origin.model_id[:12]}..., width {origin.dim}), the bundle is {facts.name} "
            f"({facts.model_id[:12]}..., width {facts.embedding_dim}). Pass {origin.name}'s bundle, or build the index again with this one."
        )


def tell_of_variant(path: Path, manifest: Manifest, model: Model) -> None:
    """Say what it costs where queries come from another variant than the stored vectors: another precision, mostly."""
    wrote, asks = set(manifest.origin.variants), set(variants_of(model))
    others = sorted(asks - wrote)
    if not others or not wrote:
        return
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
                "%s: written by %s, asked by %s of the same model; `edgeclip index info %s --measure` tells what that costs",
                path, ", ".join(sorted(wrote)), variant, path, extra=UNCOUNTED,
            )  # fmt: skip
