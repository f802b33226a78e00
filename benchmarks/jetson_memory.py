"""What each Jetson can hold, computed from shapes: no Jetson has been at hand, so nothing here is measured.

python -m benchmarks.jetson_memory > benchmarks/results/jetson_memory.md

weights      parameters x bytes of their type, both towers
activations  what is alive at once in one block, fp16: the residual stream, and the larger of the feed-forward's inner
             layer and of attention with its scores before and after softmax (no fused kernel assumed)
to run       CUDA and TensorRT, weights, the larger plan once more while it is opened, activations at batch 8
to build     `runtime/tensorrt/memory.py`, the larger tower in fp16 with --low-memory; one tower is built at a time
floor        a batch of 1 reads every weight of the image tower once: bytes / 80 % of the board's bandwidth
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.bundle import Axes, Variant
from edgeclip.runtime.memory import PROCESS_BYTES
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.memory import needed_memory
from edgeclip.runtime.tensorrt.record import BuildOptions

GIB = 1 << 30
CUDA_BYTES = GIB  # context, kernels and TensorRT's libraries. Assumed
SYSTEM_BYTES = 0.8 * GIB  # Linux without a desktop; 0.8 GiB more with one. Assumed
VISIBLE = 0.92  # of the memory that a board is sold with: firmware keeps the rest. An Orin Nano of 8 GB shows 7.4 GiB
STREAMED = 0.8  # of the bandwidth that a kernel reaches


@dataclass(frozen=True)
class Model:
    """One image tower with its text tower. Parameters: open_clip's docs/model_profile.csv."""

    name: str
    image: float  # millions of parameters
    text: float
    tokens: int
    width: int
    heads: int
    inner: int  # of the feed-forward

    def activations(self, batch: int) -> float:
        """Bytes in fp16."""
        attention = 4 * self.width + 2 * self.heads * self.tokens
        return 2.0 * batch * self.tokens * (self.width + max(self.inner, attention))

    def weights(self, image_bytes: float) -> tuple[float, float]:
        """Bytes of the image and of the text tower; the text tower stays in fp16, most of it is its table of words."""
        return self.image * 1e6 * image_bytes, self.text * 1e6 * 2

    def to_run(self, image_bytes: float, batch: int = 8) -> float:
        """Bytes at the peak."""
        towers = self.weights(image_bytes)
        return PROCESS_BYTES + CUDA_BYTES + sum(towers) + max(towers) + self.activations(batch)

    def to_build(self) -> int:
        """Bytes at the peak of the larger tower's build."""
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            with graph.open("wb") as stream:
                stream.truncate(int(max(self.weights(2))))  # a file of this size that takes no room
            options = BuildOptions(({"N": (1, 8, 32)},), low_memory=True)
            variant = Variant("image", "image", Axes("fp16"), (graph.name,), (), ())
            library: Any = Library("tensorrt", None, "10.3.0.30")
            return needed_memory(library, graph, variant, options, shared=True)


@dataclass(frozen=True)
class Board:
    """One module."""

    name: str
    memory: int  # GB
    bandwidth: float  # GB/s, in its fastest power mode

    @property
    def free(self) -> float:
        """Bytes that programs can have."""
        return self.memory * GIB * VISIBLE - SYSTEM_BYTES


MODELS = (
    Model("CLIP ViT-B/32", 87.9, 63.4, 50, 768, 12, 3072),
    Model("CLIP ViT-B/16", 86.2, 63.4, 197, 768, 12, 3072),
    Model("CLIP ViT-L/14", 304, 123.7, 257, 1024, 16, 4096),
    Model("CLIP ViT-L/14 at 336", 304, 123.7, 577, 1024, 16, 4096),
    Model("SigLIP B/16", 93, 110, 196, 768, 12, 3072),
    Model("SigLIP SO400M/14 at 384", 428, 450, 729, 1152, 16, 4304),
)
BOARDS = (
    Board("Orin Nano 4", 4, 51),
    Board("Orin Nano 8", 8, 102),
    Board("Orin NX 8", 8, 102),
    Board("Orin NX 16", 16, 102),
    Board("AGX Orin 32", 32, 204.8),
    Board("AGX Orin 64", 64, 204.8),
    Board("Thor 128", 128, 273),
)


def tables() -> str:
    """Both tables, as Markdown."""
    lines = [
        "| Model | weights fp16: image + text | image in int8 | activations, batch 1 / 8 | to run fp16 / int8 | to build |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        image, text = model.weights(2)
        sizes = [image, text, model.weights(1)[0], *(model.activations(batch) for batch in (1, 8))]
        mb = [f"{size / 1e6:.0f}" for size in sizes]
        run, small = (f"{model.to_run(width) / GIB:.1f}" for width in (2, 1))
        lines.append(
            f"| {model.name} | {mb[0]} + {mb[1]} MB | {mb[2]} MB | {mb[3]} / {mb[4]} MB | {run} / {small} GiB | "
            f"{model.to_build() / GIB:.1f} GiB |"
        )
    lines += [
        "",
        "| Board (free) | " + " | ".join(model.name for model in MODELS) + " |",
        "|---" * (len(MODELS) + 1) + "|",
    ]
    for board in BOARDS:
        cells = [_verdict(board, model) for model in MODELS]
        lines.append(f"| {board.name} ({board.free / GIB:.1f} GiB) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(board: Board, model: Model) -> str:
    if board.free < model.to_run(1):
        return "no"
    floor = f"{_floor(board, model):.1f} ms"
    if board.free < model.to_run(2):
        return f"int8 only, {floor}"
    return floor if board.free >= model.to_build() else f"{floor}, build with swap"


def _floor(board: Board, model: Model) -> float:
    """Milliseconds of one picture, fp16."""
    return model.weights(2)[0] / (STREAMED * board.bandwidth * 1e9) * 1e3


if __name__ == "__main__":
    sys.stdout.write(tables())
