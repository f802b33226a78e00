"""Replay a region encoder's graphs: what a picture's tokens are, and what boxes and texts find in tokens.

Tokens that are no unit rows are compared as such: what asks them normalises them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Fidelity
from edgeclip.errors import CheckFailed
from edgeclip.runtime.detection_fidelity import measure_rows
from edgeclip.runtime.engines import Engine, run
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.replay import SAME, batches, limit_of
from edgeclip.runtime.verify_detector import MAX_BOX_FP32, MEAN_BOX

Array = NDArray[Any]

KEPT = 61  # tokens of a golden picture, at most; a prime, so that tiled over a grid no row of it repeats the one above
ALONE = {"fp32": 1e-5}  # largest difference of a row asked for alone
_ALONE_ROUNDED = 0.01  # the same in other precisions: another shape of a product may round in another order


def made_up_boxes(count: int) -> Array:
    """(count, 4) float32 xyxy in 0-1: the whole input, then boxes of every size and place, by arithmetic."""
    i = np.arange(count)
    centres = np.stack([0.5 + 0.35 * np.sin(2.4 * i), 0.5 + 0.35 * np.cos(1.7 * i)], axis=1)
    sizes = np.stack([0.08 + 0.11 * (i % 5), 0.05 + 0.13 * (i % 4)], axis=1)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).clip(0, 1)
    boxes[0] = (0, 0, 1, 1)
    return boxes.astype(np.float32)


def tiled(rows: Array, count: int) -> Array:
    """(N, K, W) golden tokens -> (N, count, W): each again and again, since a picture's own would be megabytes."""
    return np.ascontiguousarray(rows[:, np.arange(count) % rows.shape[1]])


def unit_rows(rows: Array) -> Array:
    """(..., W) -> the same of L2 norm 1, float64."""
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True).clip(1e-12))


def run_tower(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every output by name, for inputs by name that have N rows each. Raises EngineError from the engine."""
    ports = engine.variant.inputs
    named = [pair for port in ports for pair in zip(port.shape[1:], inputs[port.name].shape[1:], strict=True)]
    sizes = {size: n for size, n in named if isinstance(size, str)}
    parts = []
    for part, slot in batches(engine, len(inputs[ports[0].name]), lambda rows: sizes):
        for port in ports:
            slot.inputs[port.name][:] = inputs[port.name][part]
        parts.append({name: array.copy() for name, array in run(engine, slot).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_regions(found: Mapping[str, Array], whose: str) -> None:
    """Raise CheckFailed for what no region encoder gives: values that are not finite, rows that do not depend on what was asked."""
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise CheckFailed(f"{whose}: {name} hold values that are not finite")
        if name == "embeddings" and np.abs(np.linalg.norm(array, axis=-1) - 1).max() > 1e-2:
            raise CheckFailed(f"{whose}: embeddings are not of unit length")
        if name != "boxes" and len(array) > 1 and np.ptp(array, axis=0).max() < SAME:
            raise CheckFailed(f"{whose}: gives the same {name} for different pictures")
        if array.shape[1] > 1 and np.ptp(array, axis=1).max() < SAME:
            asked = "token of a picture" if name == "tokens" else "box or text"
            raise CheckFailed(f"{whose}: gives the same {name} for every {asked}")


def replay(
    bundle: Bundle, engine: Engine, golden: Mapping[str, Any], precision: str = ""
) -> tuple[str, Fidelity | None]:
    """See `replay.replay_tower`."""
    variant = engine.variant
    inputs, want = _inputs(bundle, engine, golden)
    found = run_tower(engine, inputs)
    check_regions(found, "the graph")
    precision = precision or variant.axes.precision
    if variant.tower != "tokens":
        _check_alone(engine, inputs, found, precision)
    if not want:
        return f"{len(next(iter(found.values())))} made-up inputs, finite and different", None
    if variant.tower == "tokens":
        found = {"tokens": found["tokens"][:, golden["tokens/rows"]]}
    name = "tokens" if variant.tower == "tokens" else "embeddings"
    rows, wanted = (unit_rows(side[name]).reshape(-1, side[name].shape[-1]) for side in (found, want))
    limit = limit_of(variant, precision)
    words = limit.check(rows, wanted)
    if "boxes" in want:
        off = np.abs(found["boxes"].astype(np.float64) - want["boxes"])
        exact = limit.relative is None
        most = MAX_BOX_FP32 if exact else MEAN_BOX.get(precision, 0.0)
        worst = float(off.max() if exact else off.mean())
        if not worst <= most:
            raise CheckFailed(f"boxes are {worst:.1e} from the golden ones, {most:.0e} is allowed")
        words = f"{words}; boxes {worst:.1e}"
    return words, measure_rows(wanted, rows)


def _inputs(
    bundle: Bundle, engine: Engine, golden: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """-> what the tower takes, and the golden outputs; {} where the golden file has none."""
    variant, random = engine.variant, np.random.default_rng(3)
    rows = golden.get("tokens/tokens")
    if variant.tower == "tokens":
        pixels, port = golden.get("pixels") if rows is not None else None, variant.inputs[0]
        if pixels is None:
            rows, levels = None, random.integers(0, 255, (2, *(int(size) for size in port.shape[1:])))
            pixels = levels.astype(np.uint8) if port.dtype == "uint8" else levels / 128 - 1
        elif port.dtype == "uint8":
            assert bundle.manifest.preprocessing is not None
            pixels = bytes_of(pixels, bundle.manifest.preprocessing)
        return {"pixels": pixels}, {} if rows is None else {"tokens": rows}
    shape = variant.inputs[0].shape
    count, width = int(shape[1]), int(shape[2])
    tokens = unit_rows(random.normal(size=(2, count, width))) if rows is None else tiled(rows, count)
    second = variant.inputs[1].name
    asked = golden.get(f"{variant.tower}/{second}") if rows is not None else None
    if asked is None:
        asked = (
            made_up_boxes(9)
            if second == "boxes"
            else unit_rows(random.normal(size=(5, int(variant.inputs[1].shape[2]))))
        )
        rows = None
    names = [port.name for port in variant.outputs]
    want = {} if rows is None else {name: golden[f"{variant.tower}/{name}"] for name in names}
    return {"tokens": tokens, second: np.repeat(asked[None], len(tokens), axis=0)}, want


def _check_alone(
    engine: Engine, inputs: Mapping[str, Array], found: Mapping[str, Array], precision: str
) -> None:
    """What is asked beside it may not change a row."""
    second = engine.variant.inputs[1].name
    alone = run_tower(engine, {**inputs, second: inputs[second][:, :1]})
    for name, array in alone.items():
        off = float(np.abs(array[:, 0] - found[name][:, 0]).max())
        if not off <= ALONE.get(precision, _ALONE_ROUNDED):
            raise CheckFailed(f"{name} of one box or text change by {off:.1e} with what is asked beside it")
