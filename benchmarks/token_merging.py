"""What merging tokens buys and costs, by the number merged in each block: time, and distance to the plain tower.

    python -m benchmarks.token_merging --shape b16 --images photographs/ --merge 4 8 13
    python -m benchmarks.token_merging --shape l14-336 --images photographs/ --merge 8 16 23 --count 8
    python -m benchmarks.token_merging --source hf:openai/clip-vit-large-patch14-336 --images photographs/

Shapes have random weights: their times are those of the trained model, their distances are not (tokens of an untrained tower are
alike in other ways). With --source the distances count too. Times take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from edgeclip.bundle import Licence, Preprocessing
from edgeclip.export.observe import session
from edgeclip.export.onnx_graph import trace
from edgeclip.export.samples import made_up_pictures, pictures_in, pixels_of
from edgeclip.export.token_merging import schedule
from edgeclip.export.towers import tower_of
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, TransformerConfig
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.runtime.fidelity import measure

# name -> (picture size, patch size, width, blocks, heads, embedding width)
SHAPES = {"b32": (224, 32, 768, 12, 12, 512), "b16": (224, 16, 768, 12, 12, 512), "l14-336": (336, 14, 1024, 24, 16, 768)}  # fmt: skip


def random_source(shape: str) -> Source:
    """An image tower of a published shape with random weights."""
    size, patch, width, layers, heads, dim = SHAPES[shape]
    torch.manual_seed(0)
    blocks = TransformerConfig(width, layers, heads, 4 * width, "quick_gelu")
    model = Clip(ClipConfig(dim, ImageConfig(blocks, (size, size), patch), None)).eval()
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    spec = Preprocessing((size, size), "shortest_crop", "bicubic", mean, std)
    return Source(
        shape, shape, "clip", model, dim, "softmax", spec, None, b"", "cls", Licence("none"), "0" * 64
    )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="b16")
    parser.add_argument("--source", help="a trained model instead, as `edgeclip export` takes it")
    parser.add_argument("--images", type=Path, help="folder of pictures; none: made-up ones")
    parser.add_argument("--count", type=int, default=16, help="pictures to compare on")
    parser.add_argument("--merge", type=int, nargs="+", default=[4, 8, 13])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    source = load_source(args.source) if args.source else random_source(args.shape)
    assert source.preprocessing is not None
    pictures = pictures_in(args.images)[: args.count] if args.images else made_up_pictures(args.count)
    pixels = pixels_of(pictures, source.preprocessing)
    opened: dict[int, Any] = {}
    for merging in (0, *args.merge):
        tower = tower_of(source, "image", ("decomposed",), merging)
        opened[merging] = session(trace(tower, tower.flavours[0])[0], threads=args.threads)
    times: dict[int, list[float]] = {merging: [] for merging in opened}
    for _ in range(args.rounds):
        for merging, one in opened.items():
            start = time.perf_counter()
            one.run(None, {"pixels": pixels[:1]})
            times[merging].append((time.perf_counter() - start) * 1e3)
    rows = {
        merging: np.concatenate([one.run(None, {"pixels": pixels[i : i + 1]})[0] for i in range(len(pixels))])
        for merging, one in opened.items()
    }
    config: Any = source.model.image and source.model.image.config
    prefix = int(config.class_token)
    about = ", ".join(describe().values())
    weights = "trained weights" if args.source else "random weights"
    print(f"{source.name}, {weights}, {len(pixels)} pictures, batch 1, {args.threads} threads; {about}\n")
    print(
        "| merged a block | tokens, first and last block | ms, median | times as fast | relative distance | cosine, least |"
    )
    print("|---|---|---|---|---|---|")
    plain = float(np.median(times[0]))
    for merging in opened:
        counts = schedule(config.tokens, prefix, config.blocks.layers, merging)
        found = measure(rows[0], rows[merging])
        ms = float(np.median(times[merging]))
        print(
            f"| {merging} | {counts[0]}, {counts[-2]} | {ms:.1f} | {plain / ms:.2f} | {found.relative_distance:.4f} "
            f"| {found.cosine_min:.5f} |"
        )


if __name__ == "__main__":
    main()
