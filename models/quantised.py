"""A CLIP on its way to int8: some of its linear layers compute with what bytes leave of their inputs and weights.

It is trained, scored, saved and loaded like any other. What is exported is a plain CLIP with weights on the bytes' grid: export/distill/qat.py
makes the one and, at the end, the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import nn

from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig
from edgeclip.models.fake_bytes import ByteType, QuantisedLinear

_C = TypeVar("_C", bound=Clip)


@dataclass(frozen=True)
class QuantisedConfig(ClipConfig):
    """A CLIP, and which of its layers go through bytes."""

    layers: tuple[str, ...] = ()  # names of modules, e.g. image.blocks.0.attention.qkv
    bytes_: ByteType = "uint8"  # of the layers' inputs; "int8" is symmetric, as TensorRT reads it
    saturating: bool = True  # weights' bytes are such that 16 bits hold two products, see fake_bytes.py

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        own = {"layers": list(self.layers), "bytes_": self.bytes_, "saturating": self.saturating}
        return {**super().to_json(), **own}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantisedConfig:
        """Rebuild from `to_json`. Raises TypeError on a field that does not exist, KeyError on one that is missing."""
        made = super().from_json({**data, "layers": tuple(data["layers"])})
        assert isinstance(made, cls)
        return made


class QuantisedClip(Clip):
    """A CLIP with a QuantisedLinear in place of every layer that the config names.

    Raises:
        ValueError: a name is of no linear layer.
    """

    config: QuantisedConfig

    def __init__(self, config: QuantisedConfig) -> None:
        super().__init__(config)
        self._quantise()

    @classmethod
    def of(cls, model: Clip, layers: Sequence[str], *, bytes_: ByteType, saturating: bool) -> QuantisedClip:
        """The same weights, not copies; `model` itself must not be used any more. Ranges are still to be set."""
        config = {field.name: getattr(model.config, field.name) for field in fields(ClipConfig)}
        own = QuantisedConfig(**config, layers=tuple(layers), bytes_=bytes_, saturating=saturating)
        made = _holding(cls, own, model)
        made._quantise()
        return made

    def quantised(self) -> dict[str, QuantisedLinear]:
        """The layers by name, in the config's order."""
        found = {name: self.get_submodule(name) for name in self.config.layers}
        return {name: layer for name, layer in found.items() if isinstance(layer, QuantisedLinear)}

    def ranges(self) -> tuple[str, ...]:
        """Names of the parameters that say how inputs become bytes."""
        return tuple(f"{name}.range" for name in self.config.layers)

    def _quantise(self) -> None:
        for name in self.config.layers:
            where, _, last = name.rpartition(".")
            layer = self.get_submodule(name)
            if type(layer) is not nn.Linear:
                raise ValueError(f"layers: {name} is a {type(layer).__name__}, not a linear layer")
            made = QuantisedLinear.of(layer, bytes_=self.config.bytes_, saturating=self.config.saturating)
            setattr(self.get_submodule(where), last, made)


@torch.no_grad()
def plain(model: QuantisedClip) -> Clip:
    """A Clip of its own, on the CPU, with what the weights' bytes stand for: rounding these again changes nothing."""
    config = {field.name: getattr(model.config, field.name) for field in fields(ClipConfig)}
    copied = copy.deepcopy(model).cpu()
    for name, layer in copied.quantised().items():
        where, _, last = name.rpartition(".")
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        linear.weight = nn.Parameter(layer.rounded_weight())
        linear.register_parameter("bias", layer.bias)
        setattr(copied.get_submodule(where), last, linear)
    made = _holding(Clip, ClipConfig(**config), copied)
    return made.eval()


def _holding(kind: type[_C], config: ClipConfig, model: Clip) -> _C:
    """A model of a class with the parts of another."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.config = config
    made.image, made.text = model.image, model.text
    made.logit_scale, made.logit_bias = model.logit_scale, model.logit_bias
    return made
