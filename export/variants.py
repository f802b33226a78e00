"""The variants of one tower: each flavour, as it is and with tokens merged, that takes floats or bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeclip.bundle import Axes, Preprocessing, Variant
from edgeclip.errors import InputError
from edgeclip.export.heads import detect_prompts
from edgeclip.export.onnx_graph import capture, write
from edgeclip.export.passes import Pass, PassReport, store_fp16
from edgeclip.export.steps import Steps
from edgeclip.export.tensorrt_rules import required
from edgeclip.export.towers import Kind, TracedTower, check_merging, tower_of, towers_of
from edgeclip.export.uint8_input import take_uint8, uint8_port
from edgeclip.export.weights import PIXELS, save_graphs
from edgeclip.models.source import Source

if TYPE_CHECKING:
    from edgeclip.export.api import ExportSettings

Array = NDArray[Any]

GRAPHS = "graphs"
_CHUNK = 16  # samples a call


@dataclass
class Made:
    """What was written of some towers."""

    variants: list[Variant] = field(default_factory=list)  # in the manifest's order
    passes: dict[str, list[PassReport]] = field(default_factory=dict)  # by variant
    # by variant with merged tokens: (N, D) that PyTorch gives with the same merges
    merged: dict[str, Array] = field(default_factory=dict)
    golden: dict[int, Array] = field(
        default_factory=dict
    )  # by number of merged tokens: the golden pictures' rows


def check_wishes(source: Source, settings: ExportSettings) -> None:
    """Refuse, before minutes of work, what the source cannot be written as. Raises InputError."""
    if source.preprocessing is None and (settings.uint8 or settings.token_merging):
        wish = "--uint8" if settings.uint8 else "--token-merging"
        raise InputError(f"{wish}: {source.spec} has no image tower. Export it without.")
    if settings.token_merging and source.model.image is None:
        raise InputError(f"--token-merging: {source.spec} has no image tower. Export it without.")
    bad = [r for r in settings.token_merging if r < 1]
    if bad or len(set(settings.token_merging)) < len(settings.token_merging):
        given = ", ".join(map(str, settings.token_merging))
        raise InputError(f"--token-merging: expected different numbers of 1 or more, got {given}.")
    if settings.token_merging:
        check_merging(source)


@dataclass(frozen=True)
class Graph:
    """One graph of one tower, not yet written."""

    tower: TracedTower  # as it is at its ports
    axes: Axes
    requires: dict[str, str]
    model: ir.Model


def groups_of(source: Source) -> list[tuple[Kind, ...]]:
    """A source's towers as they share weights files: those of pictures may have their layers in common."""
    kinds = towers_of(source)
    pictures = tuple(kind for kind in kinds if kind in PIXELS)
    return [*([pictures] if pictures else []), *((kind,) for kind in kinds if kind not in PIXELS)]


def write_towers(
    made: Made,
    source: Source,
    kinds: tuple[Kind, ...],
    flavours: tuple[str, ...],
    folder: Path,
    settings: ExportSettings,
    steps: Steps,
    pixels: Array | None,
    golden: Array | None,
) -> None:
    """Trace towers of one group, each once for each number of merged tokens, and write their graphs.

    Args:
        made: what is written is added here.
        folder: of the bundle; graphs go into its folder GRAPHS and share their weights.
        steps: times what is done, by name.
        pixels: (N, 3, H, W) samples on which a graph with merged tokens will be compared.
        golden: (M, 3, H, W) those that travel in the bundle.
    """
    graphs = [
        graph
        for kind in kinds
        for graph in _graphs(made, source, kind, flavours, settings, steps, pixels, golden)
    ]
    with steps(f"write the {' and '.join(kinds)} tower{'s' if len(kinds) > 1 else ''}"):
        named = [(graph.axes.name(graph.tower.kind), graph.model) for graph in graphs]
        files = save_graphs(named, folder / GRAPHS, kinds[0], share=len(kinds) > 1)
    for graph in graphs:
        kind, name = graph.tower.kind, graph.axes.name(graph.tower.kind)
        paths = tuple(f"{GRAPHS}/{file}" for file in files[name])
        ports = graph.tower.inputs, graph.tower.outputs
        made.variants.append(Variant(name, kind, graph.axes, paths, *ports, graph.requires))


def _graphs(
    made: Made,
    source: Source,
    kind: Kind,
    flavours: tuple[str, ...],
    settings: ExportSettings,
    steps: Steps,
    pixels: Array | None,
    golden: Array | None,
) -> Iterator[Graph]:
    """Of one tower, in the manifest's order."""
    inputs: tuple[Literal["float32", "uint8"], ...] = ("float32",)
    if settings.uint8 and kind in PIXELS:
        inputs = ("float32", "uint8")
    for merging in (0, *(settings.token_merging if kind == "image" else ())):
        tower = tower_of(source, kind, flavours, merging)
        with steps(f"trace the {kind} tower" + (f", {merging} tokens merged a block" if merging else "")):
            captured = capture(tower)
            rows = _rows(tower, pixels) if merging and pixels is not None else None
            if merging and golden is not None:
                made.golden[merging] = _rows(tower, golden)
        for dtype in inputs:
            for flavour in tower.flavours:
                axes = Axes(
                    settings.store, flavour.attention, flavour.opset, token_merging=merging, input=dtype
                )
                form, extra = _form(source, tower, dtype, settings)
                model, made.passes[axes.name(kind)] = write(captured, form, flavour, extra)
                requires = {**flavour.requires, "tensorrt": required(model)}
                if rows is not None:
                    made.merged[axes.name(kind)] = rows
                graph = Graph(form, axes, requires, model)
                yield graph
                if kind == "detector":
                    yield _with_prompts(graph, source.embedding_dim)


def _with_prompts(graph: Graph, dim: int) -> Graph:
    """A detector's graph once more, with prompts as an input."""
    model = graph.model.clone()
    inputs, outputs = detect_prompts(model, dim)
    tower = replace(graph.tower, inputs=(*graph.tower.inputs, *inputs), outputs=outputs)
    requires = {**graph.requires, "tensorrt": required(model)}
    return Graph(tower, replace(graph.axes, head="prompts"), requires, model)


def preprocessing_of(source: Source, kind: Kind) -> Preprocessing | None:
    """How pictures are prepared for a source's tower; as `Manifest.preprocessing_of`."""
    own = source.detection.preprocessing if kind == "detector" and source.detection else None
    return own or source.preprocessing


def _form(
    source: Source, tower: TracedTower, dtype: str, settings: ExportSettings
) -> tuple[TracedTower, tuple[Pass, ...]]:
    """The tower as it will be at its ports, and the passes that make it so."""
    stored: tuple[Pass, ...] = (store_fp16,) if settings.store == "fp16" else ()
    if dtype == "float32":
        return tower, stored
    spec = preprocessing_of(source, tower.kind)
    assert spec is not None
    form = replace(tower, inputs=(uint8_port(spec), *tower.inputs[1:]))
    return form, (take_uint8(spec), *stored)


def _rows(tower: TracedTower, pixels: Array) -> Array:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        parts = [
            tower.module(torch.from_numpy(pixels[i : i + _CHUNK])).numpy()
            for i in range(0, len(pixels), _CHUNK)
        ]
    return np.concatenate(parts)
