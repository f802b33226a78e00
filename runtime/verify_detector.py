"""Replay a detector's graphs, with any head: boxes and what follows from the golden regions, or at least sane values.

What is compared of a head is its logits, beside the size of scale and bias: a share of a logit, as of a cosine for a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Detection, Fidelity, Variant
from edgeclip.errors import CheckFailed
from edgeclip.runtime.detection_fidelity import Seen, check_seen, logit_shares, measure_head, measure_regions
from edgeclip.runtime.engines import Engine, run
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.replay import SLACK, batches, limit_of, pixels_from
from edgeclip.runtime.verify_heads import MASKED

Array = NDArray[Any]

# Of boxes and objectness, 0-1, in fp32. Other CPUs sum in another order: 1e-6 was seen; a sigmoid's slope is a quarter.
MAX_BOX_FP32 = 2e-5
# Of the other precisions, on average over the regions; a budget that was wider when the variant was made counts SLACK times. That of
# bytes is SLACK times the hundredth which compression may lose by default.
MEAN_BOX = {"fp16": 0.005, "bf16": 0.02, "int8": 0.02, "fp8": 0.02, "int4": 0.15}
PROMPTS = 16  # golden rows that are asked with


def replay(
    bundle: Bundle, engine: Engine, golden: Mapping[str, Any], precision: str = ""
) -> tuple[str, Fidelity | None]:
    """See `replay.replay_tower`."""
    variant, want = engine.variant, _golden(golden)
    pixels = _pixels(bundle, variant, golden)
    vectors = _vectors(bundle, variant, want)
    mask = None  # (P,): the last prompt is masked, unless it is the only one
    if variant.axes.head == "prompts":
        mask = (np.arange(len(vectors)) != len(vectors) - 1) | (len(vectors) == 1)
    found = run_detector(engine, pixels, vectors[None], mask)
    check_seen(found, "the graph")
    _check_head(found, vectors, mask)
    if (
        variant.axes.head == "prompts" and len(pixels) > 1
    ):  # a set for each picture: in another order, the same logits
        _check_sets(found, run_detector(engine, pixels, _rolled(vectors, len(pixels)), mask))
    if want is None:
        return f"{len(pixels)} made-up inputs, finite and different", None
    regions = golden["detector/regions"]
    found = {name: array[:, regions] for name, array in found.items()}
    detection = bundle.manifest.detection or Detection()
    shown = vectors if mask is None else vectors[mask]
    if variant.axes.head == "embeddings":
        got = Seen.of(found)
        logits = np.stack([got.logits(i, shown) for i in range(len(pixels))])
        measured = measure_regions(want, got, shown, detection)
    else:
        logits = found["logits"] if mask is None else found["logits"][..., mask]
        measured = measure_head(want, {**found, "logits": logits}, shown, detection)
    return _check(variant, precision, want, found, logit_shares(want, logits, shown), measured), measured


def run_detector(
    engine: Engine, pixels: Array, vectors: Array | None = None, mask: Array | None = None
) -> dict[str, Array]:
    """Every output by name, of N pictures as the variant takes them.

    Args:
        vectors: (B, P, D) prompts of a graph that takes them, B being 1 or N.
        mask: (P,) those that count.
    Raises:
        EngineError: from the engine.
    """
    prompts = {port.name for port in engine.variant.inputs} > {"pixels"}
    parts = []

    def sizes(rows: int) -> dict[str, int]:
        return (
            {"B": min(len(vectors), rows), "P": vectors.shape[1]} if prompts and vectors is not None else {}
        )

    for part, slot in batches(engine, len(pixels), sizes):
        slot.inputs["pixels"][:] = pixels[part]
        if prompts and vectors is not None:
            slot.inputs["prompt_embeddings"][:] = vectors if len(vectors) == 1 else vectors[part]
            slot.inputs["prompt_mask"][:] = True if mask is None else mask
        parts.append({name: array.copy() for name, array in run(engine, slot).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check(
    variant: Variant, precision: str, want: Seen, found: Mapping[str, Array], shares: tuple[Array, Array], measured: Fidelity,
) -> str:  # fmt: skip
    """Hold golden regions to the variant's limits. -> what was compared."""
    limit, stated = limit_of(variant, precision), variant.fidelity and variant.fidelity.detection
    flat = want.embeddings.reshape(-1, want.embeddings.shape[-1]).astype(np.float64)
    if "region_embeddings" in found:
        limit.check(found["region_embeddings"].reshape(flat.shape).astype(np.float64), flat)
    exact = limit.relative is None
    lost = SLACK * (stated.box_max if exact else stated.box_mean) if stated else 0.0
    allowed = max(MAX_BOX_FP32 if exact else MEAN_BOX.get(precision or variant.axes.precision, 0.0), lost)
    for name in ("boxes", "objectness"):
        wanted = want.arrays().get(name)
        if wanted is None or name not in found:
            continue
        difference = np.abs(found[name].astype(np.float64) - wanted)
        off = float(difference.max() if exact else difference.mean())
        if not off <= allowed:
            how = "" if exact else " on average"
            raise CheckFailed(f"{name} are {off:.1e} from the golden ones{how}, {allowed:.0e} is allowed")
    largest = np.abs(shares[0] - shares[1]).max(axis=1)
    off, most = float(largest.max() if exact else largest.mean()), limit.of_cosines(flat)
    if not off <= most:
        raise CheckFailed(
            f"logits are {off:.1e} of their scale from what the golden rows give, {most:.0e} is allowed"
        )
    assert measured.detection is not None
    return (
        f"{len(flat)} golden regions, boxes at most {measured.detection.box_max:.1e} away, "
        f"scores {measured.detection.score_max:.1e}"
    )


def _check_head(found: Mapping[str, Array], vectors: Array, mask: Array | None) -> None:
    logits = found.get("logits")
    if logits is None:
        return
    if logits.shape[2] != len(vectors):
        raise CheckFailed(f"gives {logits.shape[2]} logits, expected one for each of {len(vectors)} labels")
    if mask is not None and (logits[..., ~mask] != MASKED).any():
        raise CheckFailed(f"gives a masked prompt another logit than {MASKED:g}")


def _check_sets(found: Mapping[str, Array], each: Mapping[str, Array]) -> None:
    """Prompts that differ from picture to picture: each logit must stand where its prompt does."""
    for i, (one, other) in enumerate(zip(found["logits"], each["logits"], strict=True)):
        places = other.shape[-1] - 1
        alike = np.abs(np.roll(other[:, :places], -i, axis=1) - one[:, :places]).max()
        if not alike <= 1e-3 * (1 + np.abs(one[:, :places]).max()):
            raise CheckFailed("gives other logits when each picture has prompts of its own")


def _rolled(vectors: Array, pictures: int) -> Array:
    """(P, D) -> (N, P, D): turned by one place more for each picture, the last one, which is masked, apart."""
    return np.stack(
        [np.concatenate([np.roll(vectors[:-1], i, axis=0), vectors[-1:]]) for i in range(pictures)]
    )


def _golden(golden: Mapping[str, Any]) -> Seen | None:
    if "detector/boxes" not in golden:
        return None
    return Seen.of(
        {
            name.removeprefix("detector/"): array
            for name, array in golden.items()
            if name.startswith("detector/")
        }
    )


def _pixels(bundle: Bundle, variant: Variant, golden: Mapping[str, Any]) -> Array:
    """What the variant takes of the golden pictures, or of two that are made up."""
    levels = golden.get("detector/pixels")
    spec = bundle.manifest.preprocessing_of("detector")
    if spec is None:
        raise CheckFailed("the bundle does not say how a detector's pictures are prepared")
    if levels is None:
        levels = np.random.default_rng(1).integers(0, 255, (2, *spec.size, 3)).astype(np.uint8)
    return levels if variant.inputs[0].dtype == "uint8" else pixels_from(levels, spec)


def _vectors(bundle: Bundle, variant: Variant, want: Seen | None) -> Array:
    """(P, D) labels that are asked with: the baked ones, else golden rows; of a graph with prompts as many as it takes."""
    if variant.axes.head == "labels":
        return LabelPack.open(bundle.path(variant.labels)).vectors
    dim, size = bundle.manifest.embedding_dim, PROMPTS + 1
    if variant.axes.head == "prompts" and isinstance(places := variant.inputs[1].shape[1], int):
        size = places
    if want is None:
        rows = np.random.default_rng(2).normal(size=(size, dim))
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
    flat = want.embeddings.reshape(-1, dim)
    some: Array = flat[np.linspace(0, len(flat) - 1, size).astype(int)]
    return some
