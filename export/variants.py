"""The variants of one tower: each flavour, as it is, in each form of its experts and with tokens merged, that takes floats or bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from edgeclip.bundle import Axes, Experts, Preprocessing, Variant
from edgeclip.errors import InputError
from edgeclip.export.capacity import capacities, check_drop, dropping, factor, room_for_all
from edgeclip.export.experts import DENSE, ExpertForm
from edgeclip.export.heads import detect_prompts
from edgeclip.export.onnx_graph import capture, write
from edgeclip.export.passes import Pass, PassReport, store_fp16
from edgeclip.export.routing import Routing, experts_of
from edgeclip.export.steps import Steps
from edgeclip.export.targets import PORTABLE, expert_forms_for, why
from edgeclip.export.tensorrt_rules import required
from edgeclip.export.towers import Kind, TracedTower, check_merging, routing_of, tower_of, towers_of
from edgeclip.export.uint8_input import take_uint8, uint8_port
from edgeclip.export.weights import PIXELS, Kept, save_graphs
from edgeclip.models.source import Source

if TYPE_CHECKING:
    from edgeclip.export.api import ExportSettings

Array = NDArray[Any]

GRAPHS = "graphs"
_CHUNK = 16  # samples a call
ROOMY = "-roomy"  # added to the id of a graph in which nothing is dropped


@dataclass(frozen=True)
class Asked:
    """What the graphs will be compared on, and what the source's routers said of it."""

    inputs: Mapping[str, Array]  # by tower: (N, 3, H, W) pixels, (M, L) ids
    golden: Mapping[str, Array]  # by tower: the same of those that travel in the bundle
    routings: Mapping[str, Routing] = field(default_factory=dict)  # by tower, of those with mixtures


@dataclass(frozen=True)
class Rows:
    """What PyTorch gives with the same losses as a variant has: merged tokens, or choices that find no place."""

    rows: Array  # (N, D)
    near: Array | None = (
        None  # (N,) bool: samples in which a rounding would lose something else; None: not known
    )


@dataclass
class Made:
    """What was written of some towers."""

    variants: list[Variant] = field(default_factory=list)  # in the manifest's order
    passes: dict[str, list[PassReport]] = field(default_factory=dict)  # by variant
    lossy: dict[str, Rows] = field(default_factory=dict)  # by variant that merges tokens or drops choices
    golden: dict[str, Array] = field(
        default_factory=dict
    )  # what those say of the golden inputs, by array name
    # graphs that are compared and then removed: the form "capacity" once more, with room for all
    trials: list[Variant] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)  # why experts were written as they were, one line each


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
    expert_forms_for(settings.targets, settings.moe)
    check_drop(settings.moe_drop)
    if settings.moe and not any(
        experts_of(getattr(source.model, kind, None)) for kind in ("image", "text", "tokens")
    ):
        raise InputError(
            f"--moe {','.join(settings.moe)}: {source.spec} has no mixtures of experts. Export it without."
        )


@dataclass(frozen=True)
class Graph:
    """One graph of one tower, not yet written."""

    tower: TracedTower  # as it is at its ports
    axes: Axes
    requires: dict[str, str]
    model: ir.Model
    experts: Experts | None = None
    trial: str = ""  # added to the id of a graph that is compared and removed

    @property
    def id(self) -> str:
        """Of its variant."""
        return self.axes.name(self.tower.kind) + self.trial


@dataclass(frozen=True)
class Version:
    """One way in which a tower is traced."""

    axes: Axes  # what differs from the plain one
    experts: Experts | None = None
    trial: str = ""

    @property
    def form(self) -> ExpertForm:
        """How its mixtures are written."""
        if self.experts is None or self.axes.moe == "none":
            return DENSE
        found = dict(zip(self.experts.blocks, self.experts.capacities, strict=False))
        return ExpertForm(self.axes.moe, found)

    @property
    def words(self) -> str:
        """For people: what is traced."""
        experts = {"none": "", "dense": ", every expert for every token", "gather": ", experts for those that chose them",
                   "capacity": ", experts for so many tokens"}[self.axes.moe]  # fmt: skip
        merged = f", {self.axes.token_merging} tokens merged a block" if self.axes.token_merging else ""
        return experts + merged + (", with room for all" if self.trial else "")


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
    asked: Asked,
) -> None:
    """Trace towers of one group, each once for each version of it, and write their graphs.

    Args:
        made: what is written is added here.
        folder: of the bundle; graphs go into its folder GRAPHS and share their weights.
        steps: times what is done, by name.
        asked: on which graphs that lose something will be compared.
    """
    kept = Kept()  # what is traced again has its weights again: of ViT-L/14 with 4 experts 3 GB for each form
    graphs = []
    for kind in kinds:
        for graph in _graphs(made, source, kind, flavours, settings, steps, asked):
            kept.take(graph.model)
            graphs.append(graph)
    with steps(f"write the {' and '.join(kinds)} tower{'s' if len(kinds) > 1 else ''}"):
        named = [(graph.id, graph.model) for graph in graphs]
        files = save_graphs(named, folder / GRAPHS, kinds[0], share=len(kinds) > 1)
    for graph in graphs:
        paths = tuple(f"{GRAPHS}/{file}" for file in files[graph.id])
        ports = graph.tower.inputs, graph.tower.outputs
        variant = Variant(
            graph.id, graph.tower.kind, graph.axes, paths, *ports, graph.requires, experts=graph.experts
        )
        (made.trials if graph.trial else made.variants).append(variant)


def _graphs(
    made: Made,
    source: Source,
    kind: Kind,
    flavours: tuple[str, ...],
    settings: ExportSettings,
    steps: Steps,
    asked: Asked,
) -> Iterator[Graph]:
    """Of one tower, in the manifest's order."""
    inputs: tuple[Literal["float32", "uint8"], ...] = ("float32",)
    if settings.uint8 and kind in PIXELS:
        inputs = ("float32", "uint8")
    for version in _versions(made, source, kind, settings, asked):
        names = flavours[:1] if version.trial else flavours
        tower = tower_of(source, kind, names, version.axes.token_merging, version.form)
        with steps(f"trace the {kind} tower{version.words}"):
            captured = capture(tower)
            version, rows = _losses(made, version, tower, kind, asked)
        for dtype in inputs[:1] if version.trial else inputs:
            for flavour in tower.flavours:
                axes = replace(
                    version.axes,
                    precision=settings.store,
                    attention=flavour.attention,
                    opset=flavour.opset,
                    input=dtype,
                )
                form, extra = _form(source, tower, dtype, settings)
                name = axes.name(kind) + version.trial
                model, made.passes[name] = write(captured, form, flavour, extra)
                requires = {**flavour.requires, "tensorrt": required(model)}
                if rows is not None:
                    made.lossy[name] = rows
                graph = Graph(_ports(form), axes, requires, model, version.experts, version.trial)
                yield graph
                if kind == "detector":
                    yield _with_prompts(graph, source.embedding_dim)
        del captured, tower, form, model, graph  # and their weights, before the next version brings its own
    if kind in asked.routings:
        yield _routing(made, source, kind, settings, steps, asked)


def _versions(
    made: Made, source: Source, kind: Kind, settings: ExportSettings, asked: Asked
) -> Iterator[Version]:
    """What a tower is traced as, in the manifest's order; why, one line each, goes to `made`."""
    experts = experts_of(getattr(source.model, kind, None))
    merging = settings.token_merging if kind == "image" else ()
    if experts is None:
        yield from (Version(Axes(token_merging=r)) for r in (0, *merging))
        return
    routing = asked.routings.get(kind)  # None of a region encoder, which is dense
    forms = expert_forms_for(settings.targets, settings.moe) if routing else ("dense",)
    for name in forms:
        reason = (
            "named by --moe" if settings.moe and routing else why(name, experts.top_k, max(experts.counts))
        )
        own = experts
        if name == "capacity":
            assert routing is not None
            own = replace(experts, capacities=capacities(routing, settings.moe_drop))
            reason += f" ({factor(own, routing):.2f} times what an average sample needs)"
        made.forms.append(f"{kind} tower, {name}: {reason}")
        yield Version(Axes(moe=name), own)
        if name == "capacity":
            assert routing is not None
            yield Version(Axes(moe=name), replace(experts, capacities=room_for_all(routing)), ROOMY)
    yield from (Version(Axes(token_merging=r, moe="dense"), experts) for r in merging)


def _losses(
    made: Made, version: Version, tower: TracedTower, kind: Kind, asked: Asked
) -> tuple[Version, Rows | None]:
    """What a version that loses something gives in PyTorch; None: it loses nothing. The version says then how much it drops."""
    axes = version.axes
    if version.trial or not (axes.token_merging or axes.moe == "capacity"):
        return version, None
    experts = version.experts if axes.moe == "capacity" else None
    if (golden := asked.golden.get(kind)) is not None:
        rows, _ = _lossy_rows(tower, golden, experts)
        if rows.near is not None:  # another device may drop another token there: not replayed
            rows.rows[rows.near] = np.nan
        what = f"merge{axes.token_merging}" if axes.token_merging else axes.moe
        made.golden[f"{kind}_embeddings/{what}"] = rows.rows
    if (inputs := asked.inputs.get(kind)) is None:
        return version, None
    rows, dropped = _lossy_rows(tower, inputs, experts)
    if experts is not None:
        version = replace(version, experts=replace(experts, dropped=dropped))
    return version, rows


def _lossy_rows(tower: TracedTower, inputs: Array, experts: Experts | None) -> tuple[Rows, float]:
    """What PyTorch gives of a version that loses something, and the share of choices that it drops."""
    if experts is None:
        return Rows(_rows(tower, inputs)), 0.0
    with dropping(tower.module, experts) as drops:
        rows = _rows(tower, inputs)
    return Rows(rows, drops.near), drops.share


def _routing(
    made: Made, source: Source, kind: Kind, settings: ExportSettings, steps: Steps, asked: Asked
) -> Graph:
    """What each expert counts for each token, as a graph."""
    tower = routing_of(source, kind)
    axes = Axes(settings.store, PORTABLE.attention, PORTABLE.opset, head="routing", moe="dense")
    with steps(f"trace the routing of the {kind} tower"):
        _, extra = _form(source, tower, "float32", settings)
        model, made.passes[axes.name(kind)] = write(capture(tower), tower, PORTABLE, extra)
    if (golden := asked.golden.get(kind)) is not None:
        made.golden[f"{kind}_routing"] = _rows(tower, golden)
    requires = {**PORTABLE.requires, "tensorrt": required(model)}
    return Graph(_ports(tower), axes, requires, model, experts_of(getattr(source.model, kind)))


def _ports(tower: TracedTower) -> TracedTower:
    """What a written graph still needs of its tower: all but the module and its weights."""
    return replace(tower, module=nn.Identity(), examples=())


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
