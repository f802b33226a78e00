"""What a mixture of experts costs in each form: time beside dense towers and PyTorch's loop, and agreement with PyTorch.

    python -m benchmarks.moe --images photographs/ -o benchmarks/results/moe
    python -m benchmarks.moe --shapes b16 --rounds 5 --images photographs/

Shapes have random weights: experts are the dense tower's feed-forward, each moved by a tenth of its own spread, so that routes differ
from token to token and experts from each other. Times take turns in one process, so that a busy machine slows all alike.

"activated" counts the multiplications of what is computed for a picture; a form's share is that over the dense form's.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from edgeclip.bundle import Bundle, Licence, Preprocessing, Variant, open_bundle
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.samples import pictures_in, pixels_of
from edgeclip.models.clip import Clip, ImageTower
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TransformerConfig
from edgeclip.models.feed_forward import MoeMlp, moe_layers
from edgeclip.models.source import Source
from edgeclip.runtime.engines import EngineOptions, open_engine, run

# name -> (picture size, patch size, width, blocks, heads, embedding width)
SHAPES = {"b16": (224, 16, 768, 12, 12, 512), "l14": (224, 14, 1024, 24, 16, 768)}
EXPERTS, TOP_K = 4, 2
MOVED = 0.1  # of a weight's own spread: how far an expert is from the others
FORMS = ("dense", "gather", "capacity")


def source(shape: str, hidden: int = 1, experts: int = 0) -> Source:
    """An image tower of a published shape with random weights. `hidden`: times the usual hidden width."""
    size, patch, width, layers, heads, dim = SHAPES[shape]
    torch.manual_seed(0)
    moe = MoeConfig((experts,) * layers, TOP_K) if experts else None
    blocks = TransformerConfig(width, layers, heads, 4 * hidden * width, "quick_gelu", moe=moe)
    model = Clip(ClipConfig(dim, ImageConfig(blocks, (size, size), patch), None)).eval()
    for mixture in moe_layers(model).values():
        _relatives(mixture)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    spec = Preprocessing((size, size), "shortest_crop", "bicubic", mean, std)
    name = f"{shape}-{experts or hidden}"
    return Source(
        name, name, "clip", model, dim, "softmax", spec, None, b"", "cls", Licence("none"), "0" * 64
    )


@torch.no_grad()
def _relatives(mixture: MoeMlp) -> None:
    """Give every expert the first one's weights, moved a little."""
    first = mixture.experts[0].state_dict()
    for expert in mixture.experts:
        for name, weight in expert.named_parameters():
            weight.copy_(first[name] + MOVED * first[name].std() * torch.randn_like(weight))


def activated(config: ImageConfig, hidden: float) -> float:
    """Multiplications of a picture, in 1e9. `hidden`: times 4 W of each token's feed-forward. The last block has one token to compute."""
    t, w, layers = config.tokens, config.blocks.width, config.blocks.layers
    whole = t * (4 * w * w + 2 * t * w + hidden * 8 * w * w)
    last = t * 2 * w * w + 2 * w * w + 2 * t * w + hidden * 8 * w * w
    patches = (t - 1) * 3 * config.patch_size**2 * w
    return (whole * (layers - 1) + last + patches) / 1e9


def exported(made: Source, folder: Path, images: Path, threads: int) -> Bundle:
    """Its bundle, made once: what lies there already is taken."""
    if (folder / "bundle.json").is_file():
        return open_bundle(folder)
    moe = FORMS if moe_layers(made.model) else ()
    settings = ExportSettings(targets=("portable",), moe=moe, images=images, threads=threads, overwrite=True)
    return export_bundle(made, folder, settings=settings).bundle


def opened(
    bundle: Bundle, variant: Variant, pixels: np.ndarray[Any, Any], threads: int
) -> Callable[[], object]:
    """What runs one batch."""
    engine = open_engine(
        "onnxruntime-cpu", bundle.root / variant.files[0], variant, EngineOptions(threads=threads)
    )

    def once() -> object:
        slot = engine.slot(len(pixels), {"N": len(pixels)})
        slot.inputs["pixels"][:] = pixels
        return run(engine, slot)

    return once


def looped(made: Source, pixels: np.ndarray[Any, Any]) -> Callable[[], object]:
    """PyTorch's own forward."""
    assert isinstance(made.model.image, ImageTower)
    tower, inputs = made.model.image, torch.from_numpy(pixels)

    def once() -> object:
        with torch.inference_mode():
            return tower(inputs)

    return once


def take_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds a call."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, once in contestants.items():
            start = time.perf_counter()
            once()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def measure(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """One shape's rows."""
    mixture, wide, plain = source(shape, experts=EXPERTS), source(shape, hidden=TOP_K), source(shape)
    assert isinstance(mixture.model.image, ImageTower)
    config = mixture.model.image.config
    bundles = {
        made.name: exported(made, args.work / made.name, args.images, args.threads)
        for made in (mixture, wide, plain)
    }
    if args.export_only:
        return {}
    variants = {
        v.axes.moe: v
        for v in bundles[mixture.name].manifest.variants_of("image")
        if v.axes.attention == "decomposed"
    }
    capacity = variants["capacity"].experts
    assert capacity is not None
    choices = min(TOP_K, EXPERTS) * config.tokens
    factor = float(np.mean([sum(counts) / choices for counts in capacity.capacities[:-1]]))
    pixels = pixels_of(pictures_in(args.images)[: max(args.batches)], mixture.preprocessing)  # type: ignore[arg-type]
    rows: dict[str, Any] = {}
    for batch in args.batches:
        part = pixels[:batch]
        contestants = {
            "dense tower": opened(bundles[plain.name], bundles[plain.name].manifest.variants[0], part, args.threads),
            "dense tower, hidden x 2": opened(bundles[wide.name], bundles[wide.name].manifest.variants[0], part, args.threads),
            **{form: opened(bundles[mixture.name], variants[form], part, args.threads) for form in FORMS},
            "PyTorch's loop": looped(mixture, part),
        }  # fmt: skip
        for name, ms in take_turns(contestants, args.rounds).items():
            rows.setdefault(name, {})[f"ms_batch_{batch}"] = ms
        del contestants
        gc.collect()
    hidden = {
        "dense tower": 1.0, "dense tower, hidden x 2": float(TOP_K), "dense": float(EXPERTS),
        "gather": float(TOP_K), "capacity": TOP_K * factor, "PyTorch's loop": float(TOP_K),
    }  # fmt: skip
    for name, row in rows.items():
        row["activated_gmac"] = activated(config, hidden[name])
        found = variants[name].fidelity if name in variants else None
        row["fidelity"] = found and asdict(found)
    for batch in args.batches:
        key = f"ms_batch_{batch}"
        for row in rows.values():
            row[f"over_its_share_batch_{batch}"] = (row[key] / rows["dense"][key]) / (
                row["activated_gmac"] / rows["dense"]["activated_gmac"]
            )
    return {
        "shape": shape,
        "capacity": {"factor": factor, "dropped": capacity.dropped, "places": capacity.capacities},
        "bytes": {name: sum(f.size for f in b.manifest.files.values()) for name, b in bundles.items()},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "rows": rows,
    }


def table(found: dict[str, Any], batches: list[int]) -> str:
    """One shape as Markdown."""
    lines = [
        f"## {found['shape']}: {EXPERTS} experts in every block, {TOP_K} to a token",
        "",
        "| | GMAC | "
        + " | ".join(f"batch {b}, ms | times the dense form's speed | over its share" for b in batches)
        + " | max abs | near ties |",
        "|---|---|" + "---|---|---|" * len(batches) + "---|---|",
    ]
    for name, row in found["rows"].items():
        cells = [f"{name} | {row['activated_gmac']:.1f}"]
        for b in batches:
            ms, dense = row[f"ms_batch_{b}"], found["rows"]["dense"][f"ms_batch_{b}"]
            cells.append(f"{ms:.0f} | {dense / ms:.2f} | {row[f'over_its_share_batch_{b}']:.2f}")
        fit = row["fidelity"]
        cells.append(
            f"{fit['max_abs']:.1e} | {fit['near_ties']} of {fit['samples'] + fit['near_ties']}"
            if fit
            else "- | -"
        )
        lines.append("| " + " | ".join(cells) + " |")
    capacity = found["capacity"]
    lines += [
        "",
        f"The capacity form's places are {capacity['factor']:.2f} times the choices; {capacity['dropped']:.2%} of the choices found none.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/moe"), help="where bundles are made and kept"
    )
    parser.add_argument("--export-only", action="store_true", help="make the bundles and measure nothing")
    parser.add_argument("-o", "--output", type=Path, help="<output>.md and <output>.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    found = [measure(shape, args) for shape in args.shapes]
    if args.export_only:
        return
    about = ", ".join(describe().values())
    head = f"# Mixtures of experts in three forms\n\n{about}; onnxruntime-cpu, {args.threads} threads, fp32, random weights, median of {args.rounds} rounds that take turns.\n"
    text = "\n\n".join([head, *(table(one, args.batches) for one in found)]) + "\n"
    print(text)
    if args.output:
        args.output.with_suffix(".md").write_text(text)
        args.output.with_suffix(".json").write_text(
            json.dumps({"machine": describe(), "shapes": found}, indent=1, default=str) + "\n"
        )


if __name__ == "__main__":
    main()
