"""int8 as a student was trained for it: the ranges of its layers' inputs, and the bytes that its weights lie on.

    finished.safetensors      <tower>/<layer>/scale     () float32     of the layer's input
                              <tower>/<layer>/zero      () uint8 or int8: its type is that of the bytes
                              <tower>/<layer>/largest   (M,) uint8     the largest byte of each output

Nothing is searched, smoothed or corrected here: weights are on their grid already, and biases were trained with the rest. An output's scale
follows from its largest weight, which is the byte `largest`, so that an export may fold factors into outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edgeclip.errors import InputError
from edgeclip.export.linears import Array, Linear, array_of, convolutions, linears
from edgeclip.export.passes import PassReport
from edgeclip.export.precision.products import Inputs, integer_product
from edgeclip.export.precision.ranges import ByteRange
from edgeclip.export.precision.weights8 import LARGEST, PAIR, Bytes, largest_pair
from edgeclip.files import write_file

FORMAT = "edgeclip.finished 1"  # one entry, for safetensors writes several in any order
NAME = "finished.safetensors"
OFF_GRID = (
    0.1  # of a byte. A weight of another student lies anywhere; one stored as fp16 moves by 0.06 at most
)
_ANOTHER = (
    "They belong to another student: compress the bundle that was exported from the one beside this file."
)


@dataclass(frozen=True)
class Finished:
    """One layer."""

    x: ByteRange  # of its input
    largest: Array  # (M,) uint8: the largest byte of each output's weights


Towers = Mapping[str, Mapping[str, Finished]]  # tower -> layer (linears.Linear.name) -> how it is quantised


def write(
    model: ir.Model, layers: Mapping[str, Finished], only: frozenset[str] | None, saturating: bool
) -> list[PassReport]:
    """Quantise the layers of a graph as they were finished, in place; all others stay float.

    Args:
        only: of the layers' names; None: all.
        saturating: as in Request.
    Raises:
        InputError: a layer is not in the graph, its weights are off the grid, or too large for what the target can sum.
    """
    found = {layer.name: layer for layer in linears(model)}
    if missing := sorted(layers.keys() - found.keys()):
        raise InputError(f"ranges: the graph has no layer {missing[0]!r}. {_ANOTHER}")
    if only is not None and (unknown := only - layers.keys()):
        raise InputError(
            f"layers: {min(unknown)!r} was not finished in int8. There are {', '.join(sorted(layers)[:3])}."
        )
    inputs = Inputs(model.graph)
    chosen = [name for name in found if name in layers and (only is None or name in only)]
    for name in chosen:
        layer, known = found[name], layers[name]
        bytes_ = on_grid(layer, known)
        if saturating and (pair := largest_pair(bytes_.q)) > PAIR:
            raise InputError(
                f"ranges: {name} was finished for processors that sum products of bytes in 32 bits: two of its weights have {pair}, "
                f"{PAIR} is the most here. Finish the student for narrow sums."
            )
        x = inputs.through_bytes(layer.x, known.x)
        if (other := inputs.known(layer.x)) is not None and other != known.x:
            raise InputError(
                f"ranges: {name} reads the same value as another layer in another range. {_ANOTHER}"
            )
        integer_product(model.graph, layer, x, bytes_)
    left = [name for name in [*found, *(layer.name for layer in convolutions(model))] if name not in chosen]
    return [
        PassReport("int8", len(chosen), tuple(f"{name}: float, as the student was finished" for name in left))
    ]


def on_grid(layer: Linear, known: Finished) -> Bytes:
    """A layer's bytes. Raises InputError for weights that lie beside the grid."""
    if known.largest.shape != (layer.weight.shape[1],):
        raise InputError(
            f"ranges: {layer.name} has {layer.weight.shape[1]} outputs, not {len(known.largest)}. {_ANOTHER}"
        )
    top = np.abs(layer.weight).max(axis=0)
    scale = np.where(known.largest > 0, top / np.maximum(known.largest, 1).astype(np.float32), 1).astype(
        np.float32
    )
    scale[scale == 0] = 1
    ratio = layer.weight / scale
    q = np.rint(ratio)
    if not np.isfinite(ratio).all() or np.abs(ratio - q).max() > OFF_GRID or np.abs(q).max() > LARGEST:
        raise InputError(f"ranges: the weights of {layer.name} are not on the grid of its bytes. {_ANOTHER}")
    return Bytes(q.astype(np.int8), scale)


def read(model: ir.Model) -> dict[str, Finished]:
    """How the linear layers of a graph with static int8 are quantised: layer -> its range and bytes."""
    found: dict[str, Finished] = {}
    for node in model.graph:
        if node.op_type != "MatMul" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        x, weight = node.inputs[0].producer(), node.inputs[1].producer()
        if x is None or weight is None or (x.op_type, weight.op_type) != ("DequantizeLinear",) * 2:
            continue
        q, scale, zero = array_of(weight.inputs[0]), array_of(x.inputs[1]), array_of(x.inputs[2])
        assert q is not None
        assert scale is not None
        assert zero is not None
        largest = np.abs(q.astype(np.int16)).max(axis=0).astype(np.uint8)
        name = str(weight.inputs[0].name).removesuffix(".int8")  # type: ignore[union-attr]
        found[name] = Finished(ByteRange(np.float32(scale), zero), largest)
    return found


def save_ranges(path: Path, towers: Towers) -> None:
    """Write the file, whole or not at all."""
    arrays = {
        f"{tower}/{name}/{part}": np.asarray(value)
        for tower, layers in towers.items()
        for name, known in layers.items()
        for part, value in (("scale", known.x.scale), ("zero", known.x.zero), ("largest", known.largest))
    }
    write_file(path, save(arrays, metadata={"format": FORMAT}))


def load_ranges(path: Path) -> dict[str, dict[str, Finished]]:
    """Read the file. Raises InputError if it is missing, damaged, or of another kind."""
    towers: dict[str, dict[str, Finished]] = {}
    try:
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
            if said.get("format") != FORMAT:
                raise ValueError(f"its format is {said.get('format')!r}")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        for key in arrays:
            tower, name, part = key.split("/")
            if part == "scale":
                towers.setdefault(tower, {})[name] = _checked(
                    *(arrays[f"{tower}/{name}/{end}"] for end in ("scale", "zero", "largest"))
                )
        if not towers:
            raise ValueError("it names no layer")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{path}: expected the ranges that finishing leaves ({NAME}), cannot read it ({error})."
        ) from error
    return towers


def _checked(scale: Array, zero: Array, largest: Array) -> Finished:
    if scale.shape or scale.dtype != np.float32 or not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"a scale is {scale}")
    if zero.shape or zero.dtype not in (np.uint8, np.int8) or (zero.dtype == np.int8 and zero != 0):
        raise ValueError(f"a zero point is {zero} {zero.dtype}")
    if largest.ndim != 1 or largest.dtype != np.uint8 or (largest > LARGEST).any():
        raise ValueError("a layer's largest bytes are none")
    return Finished(ByteRange(np.float32(scale), zero), largest)
