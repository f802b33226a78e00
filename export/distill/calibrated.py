"""From a trained student to one that computes as the compressor's int8 graph of it would, and at the end to one whose weights are bytes.

    start = calibrated(student, {"image": pixels, "text": input_ids})     the compressor's smoothing, ranges and biases; nothing is trained yet
    student, ranges = finished(trained)                                   a plain source, and what `compress --ranges` reads

The start gives, up to the order of sums, what `convert(graph, "int8", Request(inputs=...))` gives of the same inputs, and so does the end
with its ranges: both ask the same code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import onnx_ir as ir
import torch

from edgeclip.errors import InputError
from edgeclip.export.compress.curve import Tower
from edgeclip.export.distill.layer_names import Place, output_factors, places, take_factors
from edgeclip.export.linears import Array, Linear, array_of, linears
from edgeclip.export.onnx_graph import trace
from edgeclip.export.precision import ByteType, Request, convert
from edgeclip.export.precision.finished import Finished, read
from edgeclip.export.precision.layers8 import choose, smoothed
from edgeclip.export.precision.ranges import ByteRange, see
from edgeclip.export.targets import PORTABLE
from edgeclip.export.towers import tower_of
from edgeclip.models.clip import Clip
from edgeclip.models.fake_bytes import LARGEST, weight_scale
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.quantised import QuantisedClip, plain
from edgeclip.models.source import Source


@dataclass(frozen=True)
class _Start:
    """One tower, ready to go through bytes."""

    layers: dict[str, Finished]  # by name in the graph
    left: tuple[str, ...]  # why each other one stays float


def calibrated(
    source: Source,
    inputs: Mapping[str, Array],
    *,
    bytes_: ByteType = "uint8",
    saturating: bool = True,
    threads: int | None = None,
) -> Source:
    """The student with its layers going through bytes as the compressor chooses: which, with what ranges, smoothed, biases corrected.

    Args:
        inputs: of each tower that becomes int8, "image" (N, 3, H, W) normalised pixels and "text" (N, L) ids; another one stays float.
        bytes_, saturating: of the target, as in `Request`.
    Returns:
        a source whose model is a QuantisedClip.
    Raises:
        InputError: the model is of another kind, holds experts or numbers that are none, or none of its layers can be quantised.
    """
    check_finishable(source)
    model = copy.deepcopy(source.model)
    assert isinstance(model, Clip)
    model.requires_grad_(False).eval()
    work = replace(source, model=model)
    starts = {
        kind: _start(
            work,
            kind,
            Request(inputs=inputs[kind], saturating=saturating, activations=bytes_, threads=threads),
        )
        for kind in get_args(Tower)
        if kind in inputs and places(getattr(model, kind))
    }
    known = {
        f"{kind}.{place.module}": start.layers[name]
        for kind, start in starts.items()
        for name, place in places(getattr(model, kind)).items()
        if name in start.layers
    }
    if not known:
        why = next(
            (start.left[0] for start in starts.values() if start.left), "its towers are no plain transformers"
        )
        raise InputError(f"{source.spec}: no layer can be finished in int8 ({why}). Leave the finishing out.")
    made = QuantisedClip.of(model, tuple(known), bytes_=bytes_, saturating=saturating)
    for name, layer in made.quantised().items():
        layer.scale.fill_(float(known[name].x.scale))
        layer.zero.fill_(float(known[name].x.zero))
    return replace(source, model=made.requires_grad_(True).eval())


def finished(source: Source) -> tuple[Source, dict[str, dict[str, Finished]]]:
    """The student as a plain CLIP whose quantised weights lie on their bytes, and how its layers are quantised: tower -> layer.

    Raises:
        InputError: the source's model is not on its way to int8.
    """
    model = source.model
    if not isinstance(model, QuantisedClip):
        raise InputError(f"{source.spec}: its layers do not go through bytes; there is nothing to finish.")
    made, towers = plain(model), dict[str, dict[str, Finished]]()
    zeros = np.uint8 if model.config.bytes_ == "uint8" else np.int8
    layers = model.quantised()
    with torch.no_grad():
        for kind in ("image", "text"):
            for name, place in places(getattr(made, kind)).items():
                layer = layers.get(f"{kind}.{place.module}")
                if layer is None:
                    continue
                scale, zero = layer.input_range()
                step = weight_scale(layer.weight, layer.saturating)
                largest = (layer.weight / step).round().clamp(-LARGEST, LARGEST).abs().amax(dim=1)
                found = ByteRange(np.float32(float(scale)), np.array(round(float(zero)), zeros))
                towers.setdefault(kind, {})[name] = Finished(found, largest.cpu().numpy().astype(np.uint8))
    return replace(source, model=made), towers


def check_finishable(source: Source) -> None:
    """Raise InputError for a source that cannot be finished in int8."""
    model = source.model
    if type(model) is not Clip:
        raise InputError(
            f"{source.spec}: a {type(model).__name__} cannot be finished in int8, only a plain CLIP. Compress it as it is."
        )
    if moe_layers(model):
        raise InputError(
            f"{source.spec}: mixtures of experts cannot be finished in int8. Distil a dense student from it."
        )
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise InputError(f"{source.spec}: {name} holds NaN or infinity. Start from another checkpoint.")


def _start(source: Source, kind: Tower, request: Request) -> _Start:
    """What the compressor makes of a tower; its smoothing and its corrected biases go into the source's own weights, in place."""
    inputs = request.inputs
    assert inputs is not None
    assert kind != "detector"
    tower = getattr(source.model, kind)
    ours = places(tower)
    traced = tower_of(source, kind, (PORTABLE.attention,))
    graph, _ = trace(traced, traced.flavours[0])
    names = [layer.name for layer in choose(graph, request).linears if layer.name in ours]
    left = choose(graph, request).report.near_misses
    if not names:
        return _Start({}, left)
    request = replace(request, layers=frozenset(names))
    smooth, chosen = graph.clone(), choose(graph, request)
    seen = see(graph, {str(layer.x.name): -1 for layer in chosen.linears}, inputs, threads=request.threads)
    smoothed(smooth, choose(smooth, request), seen, request, request.activations)
    before = {layer.name: layer for layer in linears(graph)}
    after = {layer.name: layer for layer in linears(smooth)}
    makers = {ours[name].values: before[name].weight.shape[0] for name in names if ours[name].values}
    for name in names:
        free = before[name].weight.shape[1] - makers.get(ours[name].module, 0)
        by = _factors(before[name].weight[:, :free], after[name].weight[:, :free])
        if (by != 1).any():
            take_factors(tower, ours[name], torch.from_numpy(by))
    made = convert(smooth, "int8", replace(request, smoothing=0)).model
    for name in names:
        _correct(tower, ours[name], after[name], made)
    return _Start(read(made), left)


def _factors(before: Array, after: Array) -> Array:
    """(K,) by which the rows of a weight were multiplied."""
    top = np.abs(before).argmax(axis=1)[:, None]
    was, now = (np.take_along_axis(array, top, 1)[:, 0] for array in (before, after))
    by: Array = np.where(was == 0, np.float32(1), now / np.where(was == 0, np.float32(1), was))
    return by.astype(np.float32)


@torch.no_grad()
def _correct(tower: torch.nn.Module, place: Place, layer: Linear, made: ir.Model) -> None:
    """Give a layer the bias that takes rounding's mean error away."""
    factors = output_factors(tower, place, layer.weight)
    new = made.graph.initializers.get(f"{layer.name}.bias")
    if layer.bias is None or new is None:
        return
    old, corrected = array_of(layer.bias), array_of(new)
    assert old is not None
    assert corrected is not None
    module = tower.get_submodule(place.module)
    assert isinstance(module, torch.nn.Linear)
    module.bias.add_(torch.from_numpy(corrected - old) / factors)
