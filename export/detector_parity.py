"""Compare an exported detector with its source: boxes, region embeddings, scores of labels, and the detections that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from edgeclip.bundle import Bundle, Fidelity, Variant
from edgeclip.errors import EdgeClipError, SourceError
from edgeclip.export.parity import STEADY, Parity
from edgeclip.export.proofs import Material
from edgeclip.export.samples import pixels_of
from edgeclip.models.detector import Regions
from edgeclip.models.source import Source
from edgeclip.runtime.detection_fidelity import Seen, check_seen, measure_head, measure_regions
from edgeclip.runtime.engines import Engine, EngineOptions, open_engine
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.replay import pixels_from
from edgeclip.runtime.verify_detector import run_detector

Array = NDArray[Any]

# By precision: a figure of the region embeddings and its largest value. The exporter's noise is 6e-7 at 12 blocks and 768 pixels; an
# epsilon of 1e-6 in place of 1e-5 in the last norm moves 3e-6, the tanh form of GELU more.
ROWS: Mapping[str, tuple[str, float]] = {"fp32": ("max_abs", 3e-6), "fp16": ("relative_distance", 0.01)}
SHARES = 1e-5  # in place of it: of a head's logits in fp32, as shares of themselves. Noise is 2e-6: scale, bias and cosine have theirs
# Largest difference of a corner or a score, 0-1. Noise is 1.5e-6, and 6e-4 where weights are stored in fp16.
LARGEST: Mapping[str, float] = {"fp32": 1e-5, "fp16": 1e-2}
REGIONS = 10_000  # as many pictures as give so many regions are compared, 3 at least
FEW, MOST = 3, 16
LABELS = 32  # texts that scores are made with, at most
KEPT = 64  # regions of a golden picture that travel in the bundle
LARGE = 2500  # regions from which pictures run one and two at a time: attention over 3,600 tokens needs 0.6 GB a picture and block


def open_proof(source: Source, kind: str, material: Material) -> DetectorProof:
    """See proofs.py."""
    return DetectorProof(source, material)


class DetectorProof:
    """What a source's detector says of some pictures."""

    def __init__(self, source: Source, material: Material) -> None:
        spec = (source.detection and source.detection.preprocessing) or source.preprocessing
        if spec is None or source.detection is None:
            raise SourceError(
                f"{source.spec}: has a detector, but does not say how pictures become detections."
            )
        self.spec, self.detection, self.material = spec, source.detection, material
        self.levels = bytes_of(pixels_of(list(material.golden), spec), spec)
        self.kept = see(source, pixels_from(self.levels, spec))
        regions = self.kept.boxes.shape[1]
        self.batches = (1, 2) if regions > LARGE else (1, 3)
        count = min(MOST, max(FEW, REGIONS // regions))
        # whole levels, so that a graph which takes bytes is asked the same
        self.pixels = pixels_from(bytes_of(pixels_of(list(material.pictures[:count]), spec), spec), spec)
        self.seen = see(source, self.pixels)
        check_seen(self.seen.arrays(), f"{source.spec}: detector of the source")
        self.vectors = self._vectors()

    def _vectors(self) -> Array:
        """(P, D) labels: texts, or regions where no text tower is at hand."""
        rows = self.material.text_rows
        if rows is None:
            rows = self.kept.embeddings.reshape(-1, self.kept.embeddings.shape[-1])
            rows = rows[:: -(-len(rows) // LABELS)]
        return rows[:LABELS]

    def golden(self) -> dict[str, Array]:
        """See runtime/replay.py."""
        count = self.kept.boxes.shape[1]
        # no whole step: every fourth of a 16 x 16 grid are 4 columns of it, and the same lane of a kernel
        regions = np.linspace(0, count - 1, min(count, KEPT)).round().astype(np.int64)
        said = self.kept.take(regions).arrays()
        found: dict[str, Array] = {"pixels": self.levels, "regions": regions, **said}
        return {f"detector/{name}": array for name, array in found.items()}

    def compare(self, bundle: Bundle, variant: Variant) -> Parity:
        """See proofs.py."""
        fidelity = batches = None
        failures: list[str] = []
        try:
            path = bundle.root / variant.files[0]
            engine = open_engine(
                "onnxruntime-cpu", path, variant, EngineOptions(threads=self.material.threads)
            )
            try:
                # prompts stand behind the same layers: a few pictures tell whether they are read as they should be
                count = len(self.pixels) if variant.axes.head == "embeddings" else FEW
                found = self._run(engine, count, self.batches[-1])
                check_seen(found, "the graph")
                fidelity = self._measure(found)
                failures += self._gate(variant, fidelity)
                batches = self._batches(engine, found)
            finally:
                engine.close()
        except EdgeClipError as error:
            failures.append(str(error))
        if batches is not None and not batches <= STEADY:
            failures.append(
                f"differs by {batches:.1e} between batch sizes {self.batches}, {STEADY:.0e} is allowed"
            )
        return Parity(
            variant.id, fidelity, batches, None, tuple(f"{variant.id}: {line}" for line in failures)
        )

    def _run(self, engine: Engine, count: int, batch: int) -> dict[str, Array]:
        pixels: Array = self.pixels[:count]
        if engine.variant.inputs[0].dtype == "uint8":
            pixels = bytes_of(pixels, self.spec)
        parts = [
            run_detector(engine, pixels[i : i + batch], self.vectors[None]) for i in range(0, count, batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _measure(self, found: Mapping[str, Array]) -> Fidelity:
        want = self.seen.first(len(found["boxes"]))
        if "logits" in found:
            return measure_head(want, found, self.vectors, self.detection)
        return measure_regions(want, Seen.of(found), self.vectors, self.detection)

    def _gate(self, variant: Variant, fidelity: Fidelity) -> list[str]:
        figure, largest = ROWS[variant.axes.precision]
        if variant.axes.head != "embeddings" and figure == "max_abs":
            largest = SHARES
        allowed = {figure: largest, "box_max": LARGEST[variant.axes.precision]}
        allowed["score_max"] = allowed["box_max"]
        if self.material.tolerance is not None:
            allowed = {
                name: max(self.material.tolerance, most if name != figure else 0)
                for name, most in allowed.items()
            }
        values = {**asdict(fidelity), **(asdict(fidelity.detection) if fidelity.detection else {})}
        return [
            f"{name} to the source is {values[name]:.2e} over {fidelity.samples} regions, {most:.0e} is allowed"
            for name, most in allowed.items()
            if not values[name] <= most
        ]

    def _batches(self, engine: Engine, found: Mapping[str, Array]) -> float:
        """Largest difference between pictures that ran together and each by itself, beside each output's own size."""
        few = min(FEW, len(self.pixels))
        alone = self._run(engine, few, self.batches[0])
        return max(
            float(np.abs(array - found[name][:few]).max() / max(1.0, np.abs(array).max()))
            for name, array in alone.items()
        )


def see(source: Source, pixels: Array) -> Seen:
    """What a source's detector says of (N, 3, H, W) pixels, one picture at a time; embeddings of unit length."""
    model = source.model.eval()
    detector = model.detector
    assert isinstance(detector, nn.Module)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        parts: list[Regions] = [detector(torch.from_numpy(one[None])) for one in pixels]
    boxes, embeddings, scales, biases = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("boxes", "embeddings", "scales", "biases")
    )
    objectness = [part.objectness for part in parts if part.objectness is not None]
    return Seen(
        boxes.numpy(),
        F.normalize(embeddings, dim=-1).numpy(),
        scales.numpy(),
        biases.numpy(),
        torch.cat(objectness).numpy() if objectness else None,
    )
