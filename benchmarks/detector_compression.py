"""What compressing a detector buys and costs: OWL-ViT B/32 at 768 pixels, random weights with planted outliers, on this machine.

    python -m benchmarks.detector_compression --images photos/

Everything that can be converted is, under no budget, so that the table shows what each method loses by itself. Weights are random: they
show size, speed and rounding, not accuracy; outliers are planted as trained towers carry them (tests/stress.py), and the heads are
scaled so that boxes, scores and embeddings differ from region to region. Labels are regions of the pictures themselves.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.photographs import PHOTOGRAPHS, find_photographs
from edgeclip.bundle import Detection, Licence, Preprocessing
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.compress.api import CompressSettings, compress_bundle
from edgeclip.export.compress.budget import of_tower, parse_budgets, within
from edgeclip.export.compress.curve import Point
from edgeclip.export.samples import pixels_of
from edgeclip.models.config import ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.detector import DetectorConfig, DetectorModel, DetectorModelConfig
from edgeclip.models.source import Source
from tests.checkpoints import roughen
from tests.export.detectors import liven
from tests.stress import plant_trunk_outliers

SIDE, PATCH, WIDTH, LAYERS, HEADS, DIM = 768, 32, 768, 12, 12, 512
WIDE = ("distance=2", "box=1", "score=1")


def stressed(pictures: list[Path], layers: int) -> Source:
    """The detector without its text tower, scaled on a few of the pictures."""
    torch.manual_seed(0)
    blocks = TransformerConfig(WIDTH, layers, HEADS, 4 * WIDTH, "quick_gelu")
    image = ImageConfig(blocks, (SIDE, SIDE), PATCH, norm_after_pool=False, projection=False)
    words = TextConfig(TransformerConfig(64, 1, 1, 64), 64, 8, eos_id=1, pad_id=0)
    model = DetectorModel(DetectorModelConfig(DetectorConfig(image, DIM), words)).eval()
    roughen(model)
    plant_trunk_outliers(model.detector.trunk)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    spec = Preprocessing((SIDE, SIDE), "squash", "bicubic", mean, std)
    liven(model.detector, torch.from_numpy(pixels_of(pictures[:2], spec)))
    model.text = None
    return Source(
        "owlvit-b32-768", "owlvit-b32-768", "owlvit", model, DIM, "sigmoid", spec, None, b"", "patches", Licence("none"),
        "0" * 64, detection=Detection(threshold=0.3),
    )  # fmt: skip


def row(point: Point) -> str:
    """A line of the table."""
    figures, latency = point.held_out or point.figures, point.latency
    if figures is None:
        return f"| {point.name} | {point.size_bytes / 1e6:.0f} | {point.reason} |"
    kept = "yes" if within(of_tower(parse_budgets(()), "detector"), figures) else "no"
    agreement = "-" if figures.agreement is None else f"{figures.agreement:.3f}"
    return (
        f"| {point.name} | {point.size_bytes / 1e6:.0f} | {latency or '1'} | {figures.distance:.4f} | {figures.cosine_min:.5f} | "
        f"{figures.box:.5f} | {figures.score:.5f} | {agreement} | {kept} |"
    )


def tell(step: str, seconds: float | None) -> None:
    """What was done, and how long it took."""
    if seconds is not None:
        print(f"{seconds:7.1f} s  {step}", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=34, help="pictures: half calibrate, half are held out")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--methods", nargs="+", default=["fp16", "int8", "int8-dynamic"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.getLogger("edgeclip").setLevel(logging.ERROR)
    pictures = find_photographs(options.images)[: options.count]
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        for picture in pictures:
            (folder / "pictures" / picture.name).symlink_to(picture.resolve())
        settings = ExportSettings(targets=("portable",), threads=options.threads)
        bundle = export_bundle(stressed(pictures, options.layers), folder / "float", settings=settings).bundle
        asked = CompressSettings(
            parse_budgets(WIDE), tuple(options.methods), ("detector",), "size", folder / "pictures", threads=options.threads
        )  # fmt: skip
        report = compress_bundle(
            bundle,
            folder / "small",
            settings=asked,
            tell=tell,
        )
    print(json.dumps({**describe(), "threads": options.threads, "pictures": len(pictures)}))
    print("| | MB | faster | rel. distance | worst cosine | box | score | agreement | default budget |")
    print("|---|---|---|---|---|---|---|---|---|")
    for point in report.points:
        print(row(point))
    for line in report.refusals:
        print(line)


if __name__ == "__main__":
    main()
