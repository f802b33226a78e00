"""Compare an exported graph with its source, on the engine that devices use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.bundle import Bundle, Fidelity, Variant
from edgeclip.errors import CheckFailed, EdgeClipError
from edgeclip.export.capacity import MOST_LOST
from edgeclip.export.routing import NEAR, Watch
from edgeclip.export.variants import Rows
from edgeclip.models.feed_forward import recorded
from edgeclip.models.source import Source
from edgeclip.runtime.engines import Engine, EngineOptions, open_engine, run
from edgeclip.runtime.fidelity import measure
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.text import Encoded

Array = NDArray[Any]

# Figure and largest value of it by precision. The exporter's noise on unit vectors is 2e-7 at 24 blocks; the tanh form of
# GELU moves them by 2e-5, QuickGELU by 1e-3, an epsilon of 1e-6 in place of 1e-5 by 4e-6.
TOLERANCES: Mapping[str, tuple[str, float]] = {"fp32": ("max_abs", 1e-6), "fp16": ("relative_distance", 0.01)}
BATCHES = (1, 3, 8)
# The same in fp32 where a softmax of experts stands in every block: its noise is twice a dense tower's.
WITH_EXPERTS = 2e-6
STEADY = 2e-6  # largest difference of one graph's rows between batch sizes, or between lengths of padding
# Share of the pictures whose merged tokens must be the same: two pairs of tokens that are alike within rounding may change
# places, which moves that picture by about as much as merging itself does.
MERGED_ALIKE = 0.75
_CHUNK = 16  # samples a call


@dataclass(frozen=True)
class Samples:
    """What both sides are run on, and what the source says."""

    pixels: Array | None  # (N, 3, H, W) float32; None: no image tower
    texts: Encoded | None
    image_rows: Array | None  # (N, D) the source's unit rows
    text_rows: Array | None  # (M, D)
    # by tower: (N,) bool, samples of which a token might as well have taken another expert; none: it has no experts
    near_ties: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Parity:
    """How far one variant is from its source."""

    variant: str
    fidelity: Fidelity | None  # None: the rows were not fit to be measured
    batches: float | None  # largest difference between batch sizes 1, 3 and 8
    # largest difference between a text alone and padded; None where the length is fixed
    lengths: float | None
    failures: tuple[str, ...]  # what fell short, one line each


def source_rows(
    source: Source,
    pixels: Array | None,
    input_ids: Array | None,
    watches: Mapping[str, Watch] | None = None,
) -> tuple[Array | None, Array | None]:
    """The source's own unit rows for pictures (N, 3, H, W) and ids (M, L): (N, D) and (M, D) float32; None for None.

    Args:
        watches: by tower, are told what its routers say.
    """
    model = source.model.eval()

    def rows(kind: str, inputs: Array | None) -> Array | None:
        if inputs is None:
            return None
        encode = model.encode_image if kind == "image" else model.encode_text
        watch, parts = (watches or {}).get(kind), []
        for i in range(0, len(inputs), _CHUNK):
            chunk = torch.from_numpy(inputs[i : i + _CHUNK])
            if watch is None:
                parts.append(encode(chunk))
                continue
            with recorded(watch.tower) as recorder:
                parts.append(encode(chunk))
            watch.add(recorder, chunk)
        unit: Array = F.normalize(torch.cat(parts), dim=-1).numpy()
        return unit

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return rows("image", pixels), rows("text", input_ids)


def compare(
    bundle: Bundle,
    variant: Variant,
    samples: Samples,
    *,
    tolerance: float | None,
    threads: int | None,
    lossy: Rows | None = None,
) -> Parity:
    """Run a variant on the samples. A figure that falls short is reported, not raised.

    Args:
        bundle: holds the graph; need not be sealed.
        tolerance: of the precision's figure in TOLERANCES; None: the one there.
        lossy: of a variant that merges tokens or drops choices: what PyTorch gives with the same losses. The graph must agree
            with that; how far it is from the source is reported.
    """
    image, texts = variant.tower == "image", samples.texts
    inputs = inputs_for(bundle, variant, samples)
    want = samples.image_rows if image else samples.text_rows
    assert want is not None
    near = samples.near_ties.get(variant.tower) if lossy is None else lossy.near
    kept = np.flatnonzero(~near) if near is not None else np.arange(len(want))
    fidelity = batches = lengths = None
    failures = []
    try:
        if len(kept) < 2:
            raise CheckFailed(all_near(len(want) - len(kept), len(want), image))
        engine = open_engine(
            "onnxruntime-cpu", bundle.root / variant.files[0], variant, EngineOptions(threads=threads)
        )
        try:
            found = _rows(engine, inputs, _CHUNK)
            fidelity = measure(want[kept], found[kept], _scores(image, samples))
            fidelity = replace(fidelity, near_ties=len(want) - len(kept))
            failures += _gates(variant, fidelity, lossy, found, kept, tolerance)
            batches = _batches(
                engine, inputs[kept], found[kept], MERGED_ALIKE if variant.axes.token_merging else 1.0
            )
            lengths = (
                _lengths(engine, texts, found, kept) if texts and "L" in variant.inputs[0].shape else None
            )
        finally:
            engine.close()
    except EdgeClipError as error:
        failures.append(str(error))
    if batches is not None and not batches <= STEADY:
        failures.append(
            f"rows differ by {batches:.1e} between batch sizes {BATCHES}, {STEADY:.0e} is allowed"
        )
    if lengths is not None and not lengths <= STEADY:
        failures.append(f"rows differ by {lengths:.1e} with the amount of padding, {STEADY:.0e} is allowed")
    return Parity(variant.id, fidelity, batches, lengths, tuple(f"{variant.id}: {line}" for line in failures))


def inputs_for(bundle: Bundle, variant: Variant, samples: Samples) -> Array:
    """The samples as a variant takes them."""
    if variant.inputs[0].dtype == "uint8":
        assert samples.pixels is not None
        assert bundle.manifest.preprocessing is not None
        return bytes_of(samples.pixels, bundle.manifest.preprocessing)
    texts = samples.texts
    inputs = samples.pixels if variant.tower == "image" else None if texts is None else texts.input_ids
    assert inputs is not None
    return inputs


def all_near(near: int, every: int, image: bool) -> str:
    """Why samples say nothing."""
    more = "--images" if image else "--texts"
    return (
        f"in {near} of {every} samples a token is within {NEAR:.0e} of taking another expert, and too few are left to compare. "
        f"Pass others with {more}, or train the routers: they may all be alike"
    )


def require(parities: list[Parity], where: str) -> None:
    """Raise CheckFailed that says which figures fell short."""
    failures = [line for parity in parities for line in parity.failures]
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise CheckFailed(
            f"{where}: {failures[0]}{more}. Nothing was written; see --keep-failed and --tolerance."
        )


def _gates(
    variant: Variant,
    fidelity: Fidelity,
    lossy: Rows | None,
    found: Array,
    kept: Array,
    tolerance: float | None,
) -> list[str]:
    """What falls short, of the samples in `kept`."""
    if lossy is None:
        return _gate(variant, fidelity, tolerance)
    if variant.axes.token_merging:
        return _gate_merged(variant, lossy.rows, found, tolerance)
    failures = _gate(variant, measure(lossy.rows[kept], found[kept]), tolerance)
    failures = [line.replace("the source", "PyTorch with the same drops") for line in failures]
    if not fidelity.relative_distance <= MOST_LOST:
        dropped = variant.experts.dropped if variant.experts else None
        failures.append(
            f"dropping {dropped or 0:.2%} of the tokens' choices of experts moves embeddings by a relative distance of "
            f"{fidelity.relative_distance:.3f}, {MOST_LOST:g} is allowed. Pass a smaller --moe-drop, or --moe dense,gather"
        )
    return failures


def _gate(variant: Variant, fidelity: Fidelity, tolerance: float | None) -> list[str]:
    figure, largest = TOLERANCES[variant.axes.precision]
    if variant.axes.precision == "fp32" and variant.axes.moe != "none":
        largest = WITH_EXPERTS
    largest = largest if tolerance is None else tolerance
    value = getattr(fidelity, figure)
    if value <= largest:
        return []
    return [
        f"{figure} to the source is {value:.2e} over {fidelity.samples} samples, {largest:.0e} is allowed"
    ]


def _gate_merged(variant: Variant, want: Array, found: Array, tolerance: float | None) -> list[str]:
    alike = np.argsort(np.abs(want - found).max(axis=1))[: max(2, int(MERGED_ALIKE * len(want)))]
    failures = _gate(variant, measure(want[alike], found[alike]), tolerance)
    return [line.replace("the source", "PyTorch with the same merges") for line in failures]


def _scores(image: bool, samples: Samples) -> Callable[[Array], Array] | None:
    """From a tower's rows to scores of pictures against texts; None where only one tower is there."""
    if samples.image_rows is None or samples.text_rows is None:
        return None
    images, texts = samples.image_rows.astype(np.float64), samples.text_rows.astype(np.float64)
    return (lambda rows: rows @ texts.T) if image else (lambda rows: images @ rows.T)


def _rows(engine: Engine, inputs: Array, batch: int) -> Array:
    """(N, D) rows of a graph run at one batch size; the last call is shorter."""
    name, output = engine.variant.inputs[0].name, engine.variant.outputs[0].name
    symbolic = {
        size: n
        for size, n in zip(engine.variant.inputs[0].shape, inputs.shape, strict=True)
        if isinstance(size, str)
    }
    rows = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        slot = engine.slot(len(part), {**symbolic, "N": len(part)})
        slot.inputs[name][:] = part
        rows.append(run(engine, slot)[output].copy())
    return np.concatenate(rows)


def _batches(engine: Engine, inputs: Array, found: Array, share: float) -> float:
    """Largest difference to `found` when the first eight samples (repeated if fewer) run at each size of BATCHES.

    Args:
        share: of the samples that must agree so well.
    """
    first = np.arange(max(BATCHES)) % len(inputs)
    worst = [np.abs(_rows(engine, inputs[first], n) - found[first]).max(axis=1) for n in BATCHES]
    return max(float(np.quantile(rows, share)) for rows in worst)


def _lengths(engine: Engine, texts: Encoded, found: Array, kept: Array) -> float:
    """Largest difference to `found` when a text runs alone, at its own length; of those in `kept`."""
    worst, alone_at = 0.0, {texts.lengths[i]: int(i) for i in reversed(kept)}
    for length, i in sorted(alone_at.items()):
        alone = _rows(engine, texts.input_ids[i : i + 1, : min(length, texts.input_ids.shape[1])], 1)
        worst = max(worst, float(np.abs(alone[0] - found[i]).max()))
    return worst
