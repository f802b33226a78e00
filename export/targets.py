"""What a graph may be written for: the two attention flavours, and the targets that a user can name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeclip.errors import InputError

Attention = Literal["decomposed", "op", "none"]


@dataclass(frozen=True)
class Flavour:
    """One way to write a tower as ONNX."""

    attention: Attention
    opset: int
    ir_version: int
    requires: Mapping[str, str] = field(default_factory=dict)  # of the program that opens the graph


# In the order that a manifest lists them: the runtime takes the first that opens.
FLAVOURS: Mapping[str, Flavour] = {
    "decomposed": Flavour("decomposed", 20, 10, {"onnxruntime": "1.23", "ir": "10"}),
    "op": Flavour("op", 23, 11, {"onnxruntime": "1.23", "ir": "11"}),
}

PORTABLE = FLAVOURS["decomposed"]  # what is traced; the others are written from it

# Target -> flavours. The portable flavour is plain MatMul and Softmax at opset 20: TensorRT 10.3 (JetPack 6) and every
# onnxruntime from 1.23 read it. The Attention operator is understood by TensorRT's parser from 10.14.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "portable": ("decomposed",),
    "onnxruntime": ("decomposed", "op"),
    "tensorrt10.3": ("decomposed",),
    "tensorrt10.16": ("decomposed", "op"),
    "all": tuple(FLAVOURS),
}


def flavours_for(targets: Iterable[str]) -> tuple[str, ...]:
    """The flavours that several targets need together, in FLAVOURS' order. Raises InputError for an unknown target."""
    wanted: set[str] = set()
    for target in targets:
        if target not in TARGETS:
            raise InputError(f"target {target!r}: unknown. Choose from {', '.join(TARGETS)}.")
        wanted.update(TARGETS[target])
    if not wanted:
        raise InputError(f"no target. Choose from {', '.join(TARGETS)}.")
    return tuple(name for name in FLAVOURS if name in wanted)
