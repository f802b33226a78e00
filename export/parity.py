"""Compare an exported graph with its source, on the engine that devices use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.bundle import Bundle, Fidelity, Variant
from edgeclip.errors import CheckFailed, EdgeClipError
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
    source: Source, pixels: Array | None, input_ids: Array | None
) -> tuple[Array | None, Array | None]:
    """The source's own unit rows for pictures (N, 3, H, W) and ids (M, L): (N, D) and (M, D) float32; None for None."""
    model = source.model.eval()

    def rows(encode: Callable[[torch.Tensor], torch.Tensor], inputs: Array | None) -> Array | None:
        if inputs is None:
            return None
        parts = [encode(torch.from_numpy(inputs[i : i + _CHUNK])) for i in range(0, len(inputs), _CHUNK)]
        unit: Array = F.normalize(torch.cat(parts), dim=-1).numpy()
        return unit

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return rows(model.encode_image, pixels), rows(model.encode_text, input_ids)


def compare(
    bundle: Bundle,
    variant: Variant,
    samples: Samples,
    *,
    tolerance: float | None,
    threads: int | None,
    merged: Array | None = None,
) -> Parity:
    """Run a variant on the samples. A figure that falls short is reported, not raised.

    Args:
        bundle: holds the graph; need not be sealed.
        tolerance: of the precision's figure in TOLERANCES; None: the one there.
        merged: (N, D) of a variant that merges tokens: what PyTorch gives with the same merges. The graph must agree with
            that; how far it is from the source is reported.
    """
    image, texts = variant.tower == "image", samples.texts
    inputs = samples.pixels if image else None if texts is None else texts.input_ids
    want = samples.image_rows if image else samples.text_rows
    if variant.inputs[0].dtype == "uint8":
        assert samples.pixels is not None
        assert bundle.manifest.preprocessing is not None
        inputs = bytes_of(samples.pixels, bundle.manifest.preprocessing)
    assert inputs is not None
    assert want is not None
    fidelity = batches = lengths = None
    failures = []
    try:
        engine = open_engine(
            "onnxruntime-cpu", bundle.root / variant.files[0], variant, EngineOptions(threads=threads)
        )
        try:
            found = _rows(engine, inputs, _CHUNK)
            fidelity = measure(want, found, _scores(image, samples))
            if merged is None:
                failures += _gate(variant, fidelity, tolerance)
            else:
                failures += _gate_merged(variant, merged, found, tolerance)
            batches = _batches(engine, inputs, found, MERGED_ALIKE if variant.axes.token_merging else 1.0)
            lengths = _lengths(engine, texts, found) if texts and "L" in variant.inputs[0].shape else None
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


def require(parities: list[Parity], where: str) -> None:
    """Raise CheckFailed that says which figures fell short."""
    failures = [line for parity in parities for line in parity.failures]
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise CheckFailed(
            f"{where}: {failures[0]}{more}. Nothing was written; see --keep-failed and --tolerance."
        )


def _gate(variant: Variant, fidelity: Fidelity, tolerance: float | None) -> list[str]:
    figure, largest = TOLERANCES[variant.axes.precision]
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


def _lengths(engine: Engine, texts: Encoded, found: Array) -> float:
    """Largest difference to `found` when a text runs alone, at its own length."""
    worst = 0.0
    for length in sorted(set(texts.lengths)):
        i = texts.lengths.index(length)
        alone = _rows(engine, texts.input_ids[i : i + 1, : min(length, texts.input_ids.shape[1])], 1)
        worst = max(worst, float(np.abs(alone[0] - found[i]).max()))
    return worst
