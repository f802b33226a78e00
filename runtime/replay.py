"""The golden inputs through one opened engine, and how far from the golden rows it may be. `verify` and proofs on a device share it.

The golden file (safetensors) holds `pictures/0`, `pictures/1`, ... (H, W, 3) uint8; what they become: `pixels` (N, 3, H, W) and
`image_embeddings` (N, D), or `image_embeddings/mergeR` where each block merges R tokens away; and `input_ids` (M, L) with
`text_embeddings` (M, D), whose texts are a JSON list under the metadata key `texts`. Where experts take so many tokens and no more, the
rows are `image_embeddings/capacity` and `text_embeddings/capacity`, NaN of an input in which rounding might drop another token; of towers with experts no token of the golden inputs is near to taking
another one, so that rounding sends none elsewhere. Whatever is absent is not replayed; every graph must still run, and give finite values that differ.

A detector's are `detector/pixels` (N, H, W, 3) uint8, which the bundle's mean and spread make floats of (at 960 pixels those would
be 11 MB a picture), and of the regions `detector/regions` (K,) what it says: `detector/boxes` (N, K, 4), `detector/region_embeddings`
(N, K, D), `detector/logit_scales`, `detector/logit_biases` and, if it has one, `detector/objectness` (N, K). Only every so many regions
are kept, 64 at most: all 3,600 x 512 of two pictures would be 15 MB. That all the others are sane is checked.

A region encoder's are `tokens/rows` (K,) and `tokens/tokens` (N, K, W), 61 tokens at most of what it makes of `pixels`; and what is asked
of those, tiled to the number of tokens that the towers take: `regions/boxes` (R, 4) -> `regions/embeddings` (N, R, D), and
`grounding/prompt_embeddings` (P, D) -> `grounding/embeddings` (N, P, D) and `grounding/boxes` (N, P, 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Fidelity, Preprocessing, Variant
from edgeclip.errors import BundleError, CheckFailed, EngineError
from edgeclip.runtime.engines import Engine, Slot, run
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.text import TextEncoder

Array = NDArray[Any]

# Of unit vectors. Other CPUs sum in another order: 2e-7 was seen between machines, a tanh for an exact GELU moves 2e-5.
MAX_ABS_FP32 = 5e-6
# Of the other precisions: mean distance to the golden rows, over the median distance between different golden rows.
RELATIVE = {"fp16": 0.02, "bf16": 0.05, "int8": 0.15, "fp8": 0.15, "int4": 0.5}
# A user's budget may be wider, and merged tokens cost what they cost: then it is so many times what the manifest states, since
# the golden inputs are few and of another kind than those it was measured on.
SLACK = 2.0
MERGED = 0.05  # at least, where tokens are merged: another CPU's rounding may choose another pair
SAME = 1e-4  # rows of different inputs that are closer than this are called constant

# Towers beside those of pictures and texts -> the module that replays them: `replay(bundle, engine, golden, precision)`.
REPLAYS: Mapping[str, str] = {
    "detector": "edgeclip.runtime.verify_detector",
    **dict.fromkeys(("tokens", "regions", "grounding"), "edgeclip.runtime.verify_regions"),
}


def replay_tower(
    bundle: Bundle, engine: Engine, golden: Mapping[str, Any], precision: str = ""
) -> tuple[str, Fidelity | None]:
    """Replay a graph of a tower in REPLAYS.

    Args:
        golden: as `read_golden` gives it.
        precision: that its products round to, where an engine takes another than its axes say.
    Returns:
        what was compared, in words; its agreement, None where there was nothing to compare with.
    Raises:
        CheckFailed: what falls short.
        EngineError: from the engine.
    """
    module = import_module(REPLAYS[engine.variant.tower])
    found: tuple[str, Fidelity | None] = module.replay(bundle, engine, golden, precision)
    return found


def pixels_from(levels: Array, spec: Preprocessing) -> Array:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 normalised; `bytes_of` the other way round."""
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    pixels: Array = ((levels / 255.0 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(pixels)


def read_golden(bundle: Bundle) -> dict[str, Any]:
    """The golden file's arrays by name, and "texts"; {} where the bundle has none. Raises BundleError."""
    if not bundle.manifest.golden:
        return {}
    from safetensors import SafetensorError, safe_open

    path = bundle.path(bundle.manifest.golden)
    try:
        with safe_open(path, framework="np") as file:
            texts = json.loads((file.metadata() or {}).get("texts", "[]"))
            return {"texts": texts, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  (no dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(f"{path}: not a golden file that can be read ({error})") from error


def inputs_of(bundle: Bundle, variant: Variant, golden: Mapping[str, Any]) -> tuple[Array, Array | None]:
    """-> (N inputs of a variant, (N, D) golden rows), or made-up inputs and None where the golden file has none."""
    rows = "image_embeddings" if variant.tower == "image" else "text_embeddings"
    want = golden.get(rows)
    if variant.axes.token_merging:
        want = golden.get(f"{rows}/merge{variant.axes.token_merging}", want)
    elif variant.axes.moe == "capacity":
        want = golden.get(f"{rows}/capacity", want)
    inputs = golden.get(variant.inputs[0].name) if want is not None else None
    if variant.axes.moe == "capacity" and inputs is not None and want is not None:
        steady = ~np.isnan(want).any(axis=1)
        inputs, want = (inputs[steady], want[steady]) if steady.any() else (None, None)
    if inputs is None:
        return np.stack(list(_stand_ins(variant, bundle))), None
    if variant.inputs[0].dtype == "uint8":
        assert bundle.manifest.preprocessing is not None
        inputs = bytes_of(inputs, bundle.manifest.preprocessing)
    return inputs, want


def rows_of(engine: Engine, inputs: Array) -> Array:
    """(N, D) float64 of an engine that gives embeddings, checked to be finite, of unit length and different.

    Raises:
        CheckFailed: they are not.
        EngineError: from the engine.
    """
    port, output = engine.variant.inputs[0], engine.variant.outputs[0].name
    named = zip(port.shape[1:], inputs.shape[1:], strict=True)
    sizes = {size: n for size, n in named if isinstance(size, str)}
    parts = []
    for part, slot in batches(engine, len(inputs), lambda rows: sizes):
        slot.inputs[port.name][:] = inputs[part]
        parts.append(run(engine, slot)[output].astype(np.float64))
    rows = np.concatenate(parts)
    _check_sane(rows)
    return rows


def batches(
    engine: Engine, count: int, sizes: Callable[[int], Mapping[str, int]]
) -> Iterator[tuple[slice, Slot]]:
    """Slots for `count` rows, as many at once as the engine was built for. A slot may come again: copy what it holds.

    Args:
        sizes: number of rows -> the other symbolic sizes.
    Raises:
        EngineError: it takes not even one row.
    """
    most = count
    while True:
        try:
            slot = engine.slot(most, sizes(most))
            break
        except EngineError:
            if most == 1:
                raise
            most = -(-most // 2)
    for start in range(0, count, most):
        part = slice(start, min(start + most, count))
        rows = part.stop - part.start
        yield part, slot if rows == most else engine.slot(rows, sizes(rows))


def _check_sane(found: Array) -> None:
    if not np.isfinite(found).all():
        raise CheckFailed("gives values that are not finite")
    if np.abs(np.linalg.norm(found, axis=1) - 1).max() > 1e-2:
        raise CheckFailed("gives rows that are not of unit length")
    if len(found) > 1 and np.ptp(found, axis=0).max() < SAME:
        raise CheckFailed("gives the same row for different inputs")


@dataclass(frozen=True)
class Limit:
    """How far a variant may be from the golden rows."""

    relative: (
        float | None
    )  # of the relative distance; None: the rows are to be met exactly, within `absolute`
    absolute: float = MAX_ABS_FP32

    def check(self, found: Array, want: Array) -> str:
        """What was compared, in words. Raises CheckFailed with its figures.

        Args:
            found, want: (N, D) float64.
        """
        if self.relative is None:
            worst = float(np.abs(found - want).max())
            if not worst <= self.absolute:
                raise CheckFailed(f"is {worst:.1e} from the golden rows, {self.absolute:.0e} is allowed")
            return f"{len(found)} golden rows, at most {worst:.1e} away"
        relative = float(np.linalg.norm(found - want, axis=1).mean() / _between(want))
        if not relative <= self.relative:
            raise CheckFailed(
                f"relative distance to the golden rows is {relative:.4f}, {self.relative:.3g} is allowed"
            )
        return f"{len(found)} golden rows, relative distance {relative:.4f}"

    def of_cosines(self, want: Array | None) -> float:
        """How far a cosine may be from the one that (N, D) golden rows give: no further than its embedding may."""
        if want is None or self.relative is None:
            return self.absolute
        return self.relative * _between(want.astype(np.float64))


def limit_of(variant: Variant, precision: str = "") -> Limit:
    """What a variant may lose. `precision`: that its products round to, where an engine takes another than its axes say."""
    precision = precision or variant.axes.precision
    # in fewer bits a token takes another expert now and then
    unsteady = variant.axes.token_merging or variant.axes.moe != "none"
    stated, floor = variant.fidelity, MERGED if unsteady else 0.0
    if (
        precision == "fp32" and variant.axes.moe == "capacity"
    ):  # has golden rows of its own: the fidelity is to the source
        return Limit(None, MAX_ABS_FP32)
    if precision == "fp32" and not variant.axes.token_merging:  # its weights may be stored in fewer bits
        return Limit(None, max(MAX_ABS_FP32, SLACK * stated.max_abs if stated else 0.0))
    lost = SLACK * stated.relative_distance if stated else 0.0
    return Limit(max(RELATIVE.get(precision, 0.0), lost, floor))


def _between(rows: Array) -> float:
    """Median distance between different rows; 1 where there is but one."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)[np.triu_indices(len(rows), 1)]
    return float(np.median(distances)) if len(distances) else 1.0


def _stand_ins(variant: Variant, bundle: Bundle) -> Iterator[Array]:
    """Two inputs that differ, for a graph without golden ones."""
    port = variant.inputs[0]
    for seed in (1, 2):
        if variant.tower == "image":
            shape = [size if isinstance(size, int) else 1 for size in port.shape[1:]]
            values = np.random.default_rng(seed).integers(0, 255, shape)
            yield values.astype(np.uint8) if port.dtype == "uint8" else (values / 128 - 1).astype(np.float32)
        else:
            settings = bundle.manifest.text
            assert settings is not None
            encoder = TextEncoder.open(bundle.path(settings.tokenizer), settings)
            yield encoder.encode(["a cat", "two dogs"]).input_ids[seed - 1]
