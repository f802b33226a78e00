"""Replay graphs that end in logits: what they give must follow from the golden embeddings, or at least be sane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed
from edgeclip.runtime.engines import Engine, run
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.replay import batches
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
    found = cosines_of(bundle, engine, pixels)
    if want is None:
        return f"{len(pixels)} made-up inputs, finite and different"
    worst = max(
        float(np.abs(cosines - wanted_cosines(want, vectors)).max(axis=1).mean())
        for cosines, vectors in found
    )
    if not worst <= allowed:
        raise CheckFailed(
            f"its cosines are {worst:.1e} from what the golden rows give, {allowed:.0e} is allowed"
        )
    return f"{len(want)} golden rows, cosines {worst:.1e} away"


def cosines_of(bundle: Bundle, engine: Engine, pixels: Array) -> list[tuple[Array, Array]]:
    """-> (cosines (N, P), the prompts' vectors (1 or N, P, D)) of each way in which a head is asked. Raises CheckFailed."""
    ask = _labels if engine.variant.axes.head == "labels" else _prompts
    found = ask(bundle, engine, pixels)
    if len(pixels) > 1 and not any(np.ptp(cosines, axis=0).any() for cosines, _ in found):
        raise CheckFailed("gives the same row for different inputs")
    return found


def wanted_cosines(rows: Array, vectors: Array) -> Array:
    """(N, P) that (N, D) rows give with (1 or N, P, D) vectors."""
    shape = (len(rows), *vectors.shape[1:])
    return np.asarray(np.einsum("nd,npd->np", rows.astype(np.float64), np.broadcast_to(vectors, shape)))


def _labels(bundle: Bundle, engine: Engine, pixels: Array) -> list[tuple[Array, Array]]:
    """-> (cosines (N, P), vectors (1, P, D)). Scores must follow from logits."""
    pack = LabelPack.open(bundle.path(engine.variant.labels))
    parts = []
    for part, slot in batches(engine, len(pixels), lambda rows: {}):
        slot.inputs["pixels"][:] = pixels[part]
        parts.append({name: array.copy() for name, array in run(engine, slot).items()})
    out = {name: np.concatenate([part[name] for part in parts]) for name in ("logits", "scores")}
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
        logits = _asked(engine, pixels, vectors, mask)
        if (logits[:, ~mask] != MASKED).any():
            raise CheckFailed(f"gives a masked prompt another logit than {MASKED:g}")
        found.append((_cosines(bundle, engine.variant, logits[:, mask]), vectors[:, mask]))
    return found


def _asked(engine: Engine, pixels: Array, vectors: Array, mask: Array) -> Array:
    """(N, P) logits of (B, P, D) prompts, B being 1 or N."""
    sets, prompts = vectors.shape[:2]
    parts = []
    for part, slot in batches(engine, len(pixels), lambda rows: {"B": min(sets, rows), "P": prompts}):
        slot.inputs["pixels"][:] = pixels[part]
        slot.inputs["prompt_embeddings"][:] = vectors if sets == 1 else vectors[part]
        slot.inputs["prompt_mask"][:] = mask
        parts.append(run(engine, slot)["logits"].copy())
    return np.concatenate(parts)


def _cosines(bundle: Bundle, variant: Variant, logits: Array) -> Array:
    if not np.isfinite(logits).all():
        raise CheckFailed("gives values that are not finite")
    scores = bundle.manifest.scores_of(variant)
    return np.asarray((logits.astype(np.float64) - scores.logit_bias) / scores.logit_scale)
