"""Replay graphs that say what each expert counts for each token: what they give must be shares, of as many experts as a token takes.

Shapes: N samples, R mixtures, T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Variant
from edgeclip.errors import CheckFailed
from edgeclip.runtime.engines import Engine, run
from edgeclip.runtime.replay import batches

Array = NDArray[Any]
MAX_SHARE = {"fp32": 1e-4}  # of a golden input's shares, and of their sum, which is one
ROUNDED = 0.02  # the same in other precisions


def shares_of(engine: Engine, inputs: Array) -> Array:
    """(N, R, T, E) float32 that a graph of head "routing" gives.

    Raises:
        CheckFailed: they are not shares: not finite, below zero, not one together, or of more experts than a token takes.
        EngineError: from the engine.
    """
    port, output = engine.variant.inputs[0], engine.variant.outputs[0].name
    named = zip(port.shape[1:], inputs.shape[1:], strict=True)
    sizes = {size: n for size, n in named if isinstance(size, str)}
    parts = []
    for part, slot in batches(engine, len(inputs), lambda rows: sizes):
        slot.inputs[port.name][:] = inputs[part]
        parts.append(run(engine, slot)[output].copy())
    shares = np.concatenate(parts)
    _check(engine.variant, shares)
    return shares


def golden_shares(variant: Variant, golden: Mapping[str, Any]) -> Array | None:
    """(N, R, T, E) shares that the golden inputs' rows were made with; None: the golden file has none of this tower."""
    found: Array | None = golden.get(f"{variant.tower}_routing")
    return None if found is None else found.astype(np.float32)


def replay_routing(engine: Engine, inputs: Array, want: Array | None) -> str:
    """Run a graph of head "routing" on golden inputs. -> what was compared, in words.

    Args:
        want: (N, R, T, E) golden shares; None: not known.
    Raises:
        CheckFailed: what falls short.
    """
    found = shares_of(engine, inputs)
    if want is None:
        return f"{len(found)} made-up inputs, shares of experts"
    if found.shape != want.shape:
        raise CheckFailed(f"gives shares of shape {found.shape}, the golden ones are {want.shape}")
    if engine.variant.axes.precision != "fp32":
        return f"{len(found)} golden inputs, shares of experts"
    worst = float(np.abs(found - want).max())
    if not worst <= MAX_SHARE["fp32"]:
        raise CheckFailed(
            f"its shares are {worst:.1e} from the golden ones, {MAX_SHARE['fp32']:.0e} is allowed"
        )
    return f"{len(found)} golden inputs, shares {worst:.1e} away"


def _check(variant: Variant, shares: Array) -> None:
    experts = variant.experts
    if experts is None:
        raise CheckFailed("gives shares of experts, but the bundle does not say how many there are")
    if not np.isfinite(shares).all():
        raise CheckFailed("gives values that are not finite")
    together = shares.sum(axis=-1)
    off = np.minimum(np.abs(together - 1), np.abs(together)).max()  # of padding: zero
    if not off <= MAX_SHARE.get(variant.axes.precision, ROUNDED) or (shares < 0).any():
        raise CheckFailed("gives shares that are not one together")
    if not together.any():
        raise CheckFailed("gives no expert any share")
    for place, count in enumerate(experts.counts):
        given = shares[:, place] > 0
        most = min(experts.top_k, count)
        if given.sum(axis=-1).max() > most or given[..., count:].any():
            raise CheckFailed(f"gives a token of mixture {place} other than {most} of {count} experts")
