"""What fewer experts cost: every number that a block may keep, dropped by use or merged by likeness, beside the whole model.

Experts are counted on the one half of the samples, embeddings compared on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeclip.bundle import Fidelity
from edgeclip.errors import InputError
from edgeclip.export.compress.data import MIN_SAMPLES, halves
from edgeclip.models.expert_use import ExpertsSeen, Tower, expert_use
from edgeclip.models.feed_forward import MoeMlp, moe_layers
from edgeclip.models.fewer_experts import Fewer, check_mixtures, merged, pruned
from edgeclip.models.source import DualEncoder, Source
from edgeclip.runtime.fidelity import measure

Way = Literal["whole", "dropped", "merged"]
WAYS: Mapping[Way, Callable[..., Fewer]] = {"dropped": pruned, "merged": merged}
_BATCH = 8


@dataclass(frozen=True)
class Sizes:
    """Of a model, both towers together."""

    parameters: int  # stored
    active: int  # that one token meets: of each mixture its router and top_k experts
    fp32_bytes: int  # of the weights
    int8_bytes: int  # with the linear layers of the blocks in bytes and routers in fp32, as `edgeclip compress` leaves them


@dataclass(frozen=True)
class ExpertPoint:
    """One model on the curve."""

    way: Way
    keep: int  # experts of a block at most
    sizes: Sizes
    fidelity: Mapping[Tower, Fidelity]  # to the whole model, of each tower with mixtures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def expert_curve(
    source: Source, samples: Mapping[Tower, Tensor], tell: Callable[[str], None] = lambda step: None
) -> tuple[dict[str, ExpertsSeen], list[ExpertPoint]]:
    """Measure every smaller model.

    Args:
        samples: tower -> its inputs, for each tower with mixtures.
        tell: called with what is measured next.
    Returns:
        what was seen of the mixtures on the half that is counted; the points, the whole model first.
    Raises:
        InputError: too few samples, or a source without mixtures.
        CheckFailed: a model gives the same embedding for every sample.
    """
    layers = check_mixtures(source)
    for tower, inputs in samples.items():
        if len(inputs) < MIN_SAMPLES:
            raise InputError(
                f"{tower}: at least {MIN_SAMPLES} samples are needed (half are counted, half compared), found {len(inputs)}."
            )
    which = {tower: halves(len(inputs)) for tower, inputs in samples.items()}
    tell("count what is chosen")
    seen = expert_use(source.model, {t: x[which[t]["calibration"]] for t, x in samples.items()})
    held = {tower: inputs[which[tower]["held_out"]] for tower, inputs in samples.items()}
    want = _rows(source.model, held)
    most = max(len(layer.experts) for layer in layers.values())

    def point(way: Way, keep: int, model: DualEncoder) -> ExpertPoint:
        rows = want if model is source.model else _rows(model, held)
        return ExpertPoint(way, keep, sizes_of(model), {t: measure(want[t], rows[t]) for t in want})

    points = [point("whole", most, source.model)]
    for keep in range(most - 1, 0, -1):
        for way, fewer in WAYS.items():
            tell(f"{way}, {keep} of {most} kept")
            points.append(point(way, keep, fewer(source, seen, keep=keep).source.model))
    return seen, points


def sizes_of(model: nn.Module) -> Sizes:
    """How large a model is."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    idle = saved = 0
    for layer in moe_layers(model).values():
        each = sum(parameter.numel() for parameter in layer.experts[0].parameters())
        idle += each * (len(layer.experts) - layer.top_k)
    routers = {id(layer.router) for layer in model.modules() if isinstance(layer, MoeMlp)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".blocks." in name and id(module) not in routers:
            # three bytes less a weight; a scale and a zero point for each output
            saved += 3 * module.weight.numel() - 5 * module.out_features
    return Sizes(stored, stored - idle, 4 * stored, 4 * stored - saved)


def _rows(model: DualEncoder, inputs: Mapping[Tower, Tensor]) -> dict[Tower, NDArray[Any]]:
    """Unit rows of each tower."""
    found: dict[Tower, NDArray[Any]] = {}
    for tower, samples in inputs.items():
        encode = model.encode_image if tower == "image" else model.encode_text
        with torch.no_grad():
            parts = [encode(samples[i : i + _BATCH]).numpy() for i in range(0, len(samples), _BATCH)]
        rows = np.concatenate(parts)
        found[tower] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found
