"""Replay graphs that end in logits: what they give must follow from the golden embeddings, or at least be sane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed
from edgeclip.runtime.engines import Engine, run
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.results import to_scores

Array = NDArray[Any]

MASKED = -1e4  # the logit of a prompt that is masked
MAX_SCORE = 1e-5  # of a graph's own float32 scores, from the ones that its logits give


def replay_head(bundle: Bundle, engine: Engine, pixels: Array, want: Array | None, allowed: float) -> str:
    """Run a graph with a head on pixels.

    Args:
        want: (N, D) golden embeddings of those pixels; None: not known.
        allowed: how far cosines may be from the ones that `want` gives: the largest of each picture, on average.
    Raises:
        CheckFailed: what falls short.
    """
    variant = engine.variant
    found = (
        _labels(bundle, engine, pixels) if variant.axes.head == "labels" else _prompts(bundle, engine, pixels)
    )
    if len(pixels) > 1 and not any(np.ptp(cosines, axis=0).any() for cosines, _ in found):
        raise CheckFailed("gives the same row for different inputs")
    if want is None:
        return f"{len(pixels)} made-up inputs, finite and different"
    worst = 0.0
    for cosines, vectors in found:
        wanted = np.einsum(
            "nd,npd->np", want.astype(np.float64), np.broadcast_to(vectors, (len(want), *vectors.shape[1:]))
        )
        worst = max(worst, float(np.abs(cosines - wanted).max(axis=1).mean()))
    if not worst <= allowed:
        raise CheckFailed(
            f"its cosines are {worst:.1e} from what the golden rows give, {allowed:.0e} is allowed"
        )
    return f"{len(want)} golden rows, cosines {worst:.1e} away"


def _labels(bundle: Bundle, engine: Engine, pixels: Array) -> list[tuple[Array, Array]]:
    """-> (cosines (N, P), vectors (1, P, D)). Scores must follow from logits."""
    pack = LabelPack.open(bundle.path(engine.variant.labels))
    slot = engine.slot(len(pixels))
    slot.inputs["pixels"][:] = pixels
    out = run(engine, slot)
    if out["logits"].shape[1] != len(pack.labels):
        raise CheckFailed(
            f"gives {out['logits'].shape[1]} logits, its label pack has {len(pack.labels)} labels"
        )
    cosines = _cosines(bundle, engine.variant, out["logits"])
    off = float(np.abs(out["scores"] - to_scores(out["logits"], 1.0, 0.0, bundle.manifest.activation)).max())
    if not off <= MAX_SCORE:
        raise CheckFailed(f"its scores are {off:.1e} from what its logits give, {MAX_SCORE:.0e} is allowed")
    return [(cosines, pack.vectors[None].astype(np.float64))]


def _prompts(bundle: Bundle, engine: Engine, pixels: Array) -> list[tuple[Array, Array]]:
    """One set of prompts for all pictures, then one for each: the axes of the space, so that nothing of a row is missed."""
    dim, count = bundle.manifest.embedding_dim, len(pixels)
    size = engine.variant.inputs[1].shape[1]
    axes = np.eye(dim)[np.arange(size if isinstance(size, int) else dim) % dim]
    mask = np.arange(len(axes)) != len(axes) - 1  # the last one is masked, unless it is the only one
    mask |= len(axes) == 1
    found = []
    for vectors in (axes[None], np.stack([np.roll(axes, i, axis=0) for i in range(count)])):
        slot = engine.slot(count, {"B": len(vectors), "P": len(axes)})
        slot.inputs["pixels"][:] = pixels
        slot.inputs["prompt_embeddings"][:], slot.inputs["prompt_mask"][:] = vectors, mask
        logits = run(engine, slot)["logits"]
        if (logits[:, ~mask] != MASKED).any():
            raise CheckFailed(f"gives a masked prompt another logit than {MASKED:g}")
        found.append((_cosines(bundle, engine.variant, logits[:, mask]), vectors[:, mask]))
    return found


def _cosines(bundle: Bundle, variant: Variant, logits: Array) -> Array:
    if not np.isfinite(logits).all():
        raise CheckFailed("gives values that are not finite")
    scores = bundle.manifest.scores_of(variant)
    return np.asarray((logits.astype(np.float64) - scores.logit_bias) / scores.logit_scale)
