"""Whether an engine gives on its device what the bundle says: the golden inputs replayed, measured in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Fidelity, Variant, check_hashes
from edgeclip.errors import CheckFailed, EdgeClipError
from edgeclip.runtime.engines import Engine, open_variant
from edgeclip.runtime.fidelity import figures
from edgeclip.runtime.replay import REPLAYS, inputs_of, limit_of, read_golden, replay_tower, rows_of
from edgeclip.runtime.verify_heads import cosines_of, replay_head, wanted_cosines

Array = NDArray[Any]

CPU = "onnxruntime-cpu"


def prove(bundle: Bundle, variant: Variant, engine: Engine, *, tf32: bool = False) -> Fidelity:
    """Replay the golden inputs. Without golden rows, what the bundle's own graph gives on the CPU is the measure.

    Args:
        variant: what the engine was built from; of the bundle, or made from one of its variants.
        engine: opened, in any batch sizes.
        tf32: whether its fp32 products round to 10 bits of mantissa, as fp16 does.
    Returns:
        Its agreement with the golden rows; of a graph with a head, of the cosines with those that the rows give.
    Raises:
        CheckFailed: out of the limits, not finite, constant, or without anything to compare with; gives the figures.
        EngineError: the engine takes none of the inputs.
    """
    manifest = bundle.manifest
    check_hashes(bundle, [name for name in (manifest.golden, variant.labels) if name])
    golden, precision = read_golden(bundle), "fp16" if tf32 and variant.axes.precision == "fp32" else ""
    try:
        if variant.tower in REPLAYS:
            return _of_tower(bundle, engine, golden, precision)
        (inputs, want), limit = inputs_of(bundle, variant, golden), limit_of(variant, precision)
        if variant.axes.head == "routing":
            raise CheckFailed("says how tokens are routed, which is looked at on the CPU and not built")
        if variant.axes.head != "embeddings":
            found, want = _of_head(bundle, engine, inputs, want, limit.of_cosines(want))
            return figures(want, found)
        found, against = rows_of(engine, inputs), "source"
        if want is None:
            want, against = _on_the_cpu(bundle, variant, inputs)
        want = want.astype(np.float64)
        limit.check(found, want)
    except CheckFailed as error:
        raise CheckFailed(f"{variant.id} on {engine.name}: {error}. The engine is not used.") from error
    return figures(want, found, against=against)


def _of_tower(bundle: Bundle, engine: Engine, golden: Mapping[str, Any], precision: str) -> Fidelity:
    _, found = replay_tower(bundle, engine, golden, precision)
    if found is None:
        raise CheckFailed(
            f"the bundle has no golden rows of its {engine.variant.tower} tower to compare with"
        )
    return found


def _of_head(
    bundle: Bundle, engine: Engine, pixels: Array, want: Array | None, allowed: float
) -> tuple[Array, Array]:
    """-> (N, P) cosines found, and those wanted."""
    if want is None:
        raise CheckFailed("the bundle has no golden pictures, and a head cannot be proved without")
    replay_head(bundle, engine, pixels, want, allowed)
    (found, vectors), *_ = cosines_of(bundle, engine, pixels)
    return found, wanted_cosines(want, vectors)


def _on_the_cpu(bundle: Bundle, variant: Variant, inputs: Array) -> tuple[Array, str]:
    """-> (rows of the first variant of the same kind that runs here, fp32 before others; its id)."""
    kind = _kind(variant)
    alike = [v for v in bundle.manifest.variants_of(variant.tower) if _kind(v) == kind]
    reasons = []
    for one in sorted(alike, key=lambda v: v.computes_in != "fp32"):
        try:
            engine = open_variant(CPU, bundle, one)
        except EdgeClipError as error:
            reasons.append(str(error))
            continue
        try:
            return rows_of(engine, inputs), one.id
        finally:
            engine.close()
    why = reasons[0] if reasons else f"the bundle has no {variant.tower} tower like it"
    raise CheckFailed(f"there are no golden rows, and nothing on the CPU to compare with: {why}")


def _kind(variant: Variant) -> tuple[int, str, bool]:
    """Variants of the same kind give the same rows."""
    return variant.axes.token_merging, variant.axes.input, variant.axes.moe == "capacity"
