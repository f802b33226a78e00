"""Whether the graph that says how a tower routes says what PyTorch does: the same experts for every token, and the same shares.

Shapes: N samples, R mixtures, T tokens, E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed, EdgeClipError
from edgeclip.export.parity import Parity, Samples, all_near, inputs_for
from edgeclip.export.routing import NEAR, Routing
from edgeclip.runtime.engines import EngineOptions, open_engine
from edgeclip.runtime.verify_routing import shares_of

Array = NDArray[Any]
# Weights stored in fp16 move logits by 1e-3: so many of the choices may differ then.
ROUNDED = 0.02


def compare_routing(
    bundle: Bundle, variant: Variant, samples: Samples, routing: Routing, *, threads: int | None
) -> Parity:
    """Run a graph of head "routing" on the samples. What falls short is reported, not raised; there are no rows to measure."""
    failures = []
    try:
        engine = open_engine(
            "onnxruntime-cpu", bundle.root / variant.files[0], variant, EngineOptions(threads=threads)
        )
        try:
            shares = shares_of(engine, inputs_for(bundle, variant, samples))
        finally:
            engine.close()
        _check(variant, shares, routing)
    except EdgeClipError as error:
        failures.append(f"{variant.id}: {error}")
    return Parity(variant.id, None, None, None, tuple(failures))


def _check(variant: Variant, shares: Array, routing: Routing) -> None:
    """Raise CheckFailed where a token takes another expert than in PyTorch, outside near ties."""
    assert routing.real is not None
    real = routing.real
    kept = np.flatnonzero(routing.everywhere >= NEAR)
    if not len(kept):
        raise CheckFailed(all_near(len(real), len(real), variant.tower == "image"))
    tokens = shares.shape[
        2
    ]  # of a text without the class token behind it, which the source pads to its full length
    if tokens > real.shape[1] or (variant.tower == "image" and tokens < real.shape[1]):
        raise CheckFailed(f"gives shares of {tokens} tokens, the source routes {real.shape[1]}")
    real = real[:, :tokens]
    other = every = 0
    for place, chosen in enumerate(rows[:, :tokens] for rows in routing.chosen):
        given = shares[kept, place] > 0
        experts = chosen.shape[-1]
        if given[..., experts:].any():
            raise CheckFailed(
                f"gives shares to expert {experts} and above of mixture {place}, which has {experts}"
            )
        counted = real[kept][..., None]
        other += int((given[..., :experts] & counted != chosen[kept]).any(axis=-1).sum())
        every += int(real[kept].sum())
    allowed = ROUNDED if variant.axes.precision == "fp16" else 0.0
    if other > allowed * every:
        raise CheckFailed(
            f"{other} of {every} tokens take other experts than in PyTorch, none of them near a tie"
        )
