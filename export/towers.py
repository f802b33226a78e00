"""The traceable forward of each model class, beside the source model and never inside it.

A tower of pictures or texts takes what the bundle's contract says and gives unit rows: pixels (N, 3, H, W) float32 or
input_ids (N, L) int32 -> embeddings (N, D) float32. Every other kind of tower says itself what its ports are (form.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeclip.bundle import Port
from edgeclip.errors import InputError, SourceError
from edgeclip.export import (
    clip_towers,
    detector_towers,
    encoder_towers,
    nano_towers,
    region_towers,
    resnet_towers,
    routing_towers,
    timm_towers,
    token_merging,
)
from edgeclip.export.experts import DENSE, ExpertForm
from edgeclip.export.form import EXAMPLE_BATCH, Form, unit
from edgeclip.export.routing import experts_of
from edgeclip.export.targets import FLAVOURS, PORTABLE, Flavour
from edgeclip.models.clip import ImageTower, TextTower
from edgeclip.models.detector import Detector
from edgeclip.models.nano import NanoImage, NanoText
from edgeclip.models.nano_detector import NanoDetector
from edgeclip.models.pooled_vit import PooledVitTower
from edgeclip.models.prompter import AskBoxes, AskTexts, ImageTokens
from edgeclip.models.quantised import QuantisedClip
from edgeclip.models.regions import DenseMap, RoiPool
from edgeclip.models.resnet import ResNetTower
from edgeclip.models.source import Source
from edgeclip.models.t5 import T5Tower
from edgeclip.models.text_encoder import TextEncoderTower
from edgeclip.models.timm_tower import TimmTower

Kind = Literal["image", "text", "detector", "tokens", "regions", "grounding"]
KINDS: tuple[Kind, ...] = ("image", "text", "detector", "tokens", "regions", "grounding")

# Tower class -> its traceable form: (tower) -> (module without the norm of its rows, operators expected in its graph). Those
# expected are counted exactly; "attentions" among them says that the tower has two flavours.
TOWERS: Mapping[type[nn.Module], Callable[[Any], tuple[nn.Module, dict[str, int]]]] = {
    ImageTower: clip_towers.image_tower,
    TextTower: clip_towers.text_tower,
    PooledVitTower: encoder_towers.pooled_vit_tower,
    TextEncoderTower: encoder_towers.encoder_tower,
    T5Tower: encoder_towers.t5_tower,
    ResNetTower: resnet_towers.image_tower,
    TimmTower: timm_towers.image_tower,
    NanoImage: nano_towers.image_tower,
    NanoText: nano_towers.text_tower,
}

# Those that can merge tokens -> (tower, tokens merged away in each block) -> as above.
MERGING: Mapping[type[nn.Module], Callable[[Any, int], tuple[nn.Module, dict[str, int]]]] = {
    ImageTower: token_merging.image_tower,
    PooledVitTower: encoder_towers.pooled_vit_tower,
}

# Those that may have mixtures of experts -> (tower, how they are written) -> as above.
WITH_EXPERTS: Mapping[type[nn.Module], Callable[[Any, ExpertForm], tuple[nn.Module, dict[str, int]]]] = {
    ImageTower: clip_towers.image_tower,
    TextTower: clip_towers.text_tower,
}

# The same -> (tower) -> (module that gives what each expert counts for each token, operators expected in its graph).
ROUTING: Mapping[type[nn.Module], Callable[[Any], tuple[nn.Module, dict[str, int]]]] = {
    ImageTower: routing_towers.image_routing,
    TextTower: routing_towers.text_routing,
}

# Towers of the other kinds -> (source) -> their form.
FORMS: Mapping[type[nn.Module], Callable[[Source], Form]] = {
    Detector: detector_towers.owl,
    NanoDetector: nano_towers.detector,
    DenseMap: region_towers.dense_map,
    ImageTokens: region_towers.image_tokens,
    RoiPool: region_towers.roi_pool,
    AskBoxes: region_towers.ask_boxes,
    AskTexts: region_towers.ask_texts,
}


class UnitRows(nn.Module):
    """A tower and the L2 norm of its rows, computed in fp32 whatever the tower's precision is."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """-> (N, D) float32, each row of L2 norm 1."""
        return unit(self.tower(x))


@dataclass(frozen=True)
class TracedTower:
    """One tower ready to be traced."""

    kind: Kind
    module: nn.Module
    examples: tuple[Tensor, ...]  # a batch of two, in the order of `inputs`
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]  # in the order in which the module gives them
    expected: Mapping[str, int]  # what its graph must hold, see onnx_graph.count
    flavours: tuple[Flavour, ...]


def towers_of(source: Source) -> tuple[Kind, ...]:
    """The towers that a source has."""
    return tuple(kind for kind in KINDS if getattr(source.model, kind, None) is not None)


def tower_of(
    source: Source,
    kind: Kind,
    flavours: tuple[str, ...] = tuple(FLAVOURS),
    merging: int = 0,
    experts: ExpertForm = DENSE,
) -> TracedTower:
    """Build a tower's traceable forward. A tower without attention has one flavour: the portable one.

    Args:
        merging: tokens merged away in each block of the image tower; 0: none.
        experts: how mixtures are written, where the tower of pictures or texts has them and merges no tokens; else they are dense.
    Raises:
        SourceError: the model has no such tower, or no traceable forward is known for its class.
        InputError: merging in a tower that has no tokens to merge.
    """
    if isinstance(source.model, QuantisedClip):
        raise SourceError(
            f"{source.spec}: is on its way to int8, its weights are not on their bytes yet. Export the folder `model` that finishing leaves."
        )
    tower = getattr(source.model, kind, None)
    if kind not in ("image", "text"):
        form = _known(FORMS, tower, source, kind)(source)
        chosen = _chosen(flavours, form.expected)
        return TracedTower(kind, form.module, form.examples, form.inputs, form.outputs, form.expected, chosen)
    make = _known(TOWERS, tower, source, kind)
    port, example = _taken(source, kind)
    if merging:
        traceable, expected = _merging(source, merging)
    elif tower is not None and experts_of(tower) is not None:
        traceable, expected = WITH_EXPERTS[type(tower)](tower, experts)
    else:
        traceable, expected = make(tower)
    output = Port("embeddings", "float32", ("N", source.embedding_dim))
    module = UnitRows(traceable).eval()
    return TracedTower(kind, module, (example,), (port,), (output,), expected, _chosen(flavours, expected))


def routing_of(source: Source, kind: Kind) -> TracedTower:
    """The traceable forward of a tower with mixtures that gives their shares (N, R, T, E), see `Axes.head`; in the portable flavour."""
    tower = getattr(source.model, kind)
    experts = experts_of(tower)
    assert experts is not None
    module, expected = ROUTING[type(tower)](tower)
    port, example = _taken(source, kind)
    tokens = tower.config.tokens if isinstance(tower, ImageTower) else port.shape[1]
    output = Port("shares", "float32", ("N", len(experts.blocks), tokens, max(experts.counts)))
    return TracedTower(kind, module.eval(), (example,), (port,), (output,), expected, (PORTABLE,))


def _taken(source: Source, kind: Kind) -> tuple[Port, Tensor]:
    """What a tower of pictures or texts takes, and an example of it."""
    if kind == "image":
        assert source.preprocessing is not None
        height, width = source.preprocessing.size
        port = Port("pixels", "float32", ("N", 3, height, width))
        return port, torch.zeros(EXAMPLE_BATCH, 3, height, width)
    assert source.text is not None
    length = source.text.context_length
    port = Port("input_ids", "int32", ("N", "L" if source.text.dynamic_length else length))
    return port, torch.zeros(EXAMPLE_BATCH, length, dtype=torch.int32)


def _known(
    table: Mapping[type[nn.Module], Any], tower: Any, source: Source, kind: Kind
) -> Callable[[Any], Any]:
    if type(tower) not in table:
        names = ", ".join(cls.__name__ for cls in table)
        raise SourceError(
            f"{source.spec}: cannot export {type(tower).__name__} as {kind} tower, expected one of {names}."
        )
    found: Callable[[Any], Any] = table[type(tower)]
    return found


def _chosen(names: tuple[str, ...], expected: Mapping[str, int]) -> tuple[Flavour, ...]:
    if not expected.get("attentions"):
        return (Flavour("none", PORTABLE.opset, PORTABLE.ir_version, PORTABLE.requires),)
    return tuple(FLAVOURS[name] for name in names)


def check_merging(source: Source) -> None:
    """Raise InputError for an image tower that has no tokens to merge."""
    if type(source.model.image) not in MERGING:
        raise InputError(
            f"{source.spec}: --token-merging needs a plain vision transformer, its image tower is a "
            f"{type(source.model.image).__name__}. Export it without."
        )


def _merging(source: Source, merging: int) -> tuple[nn.Module, dict[str, int]]:
    check_merging(source)
    tower = source.model.image
    assert tower is not None
    return MERGING[type(tower)](tower, merging)
