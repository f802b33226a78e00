"""A trained model as the exporter takes it, whatever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from edgeclip.bundle.manifest import Detection, Licence, Preprocessing, TextSettings
from edgeclip.errors import SourceError


class DualEncoder(nn.Module):
    """What every source model offers. `logit_scale` holds the logarithm; outputs are not yet of unit length.

    A model that finds or asks regions has more towers, each an attribute of its own that others lack: `detector`
    (models/detector.py), and `tokens` with `regions` and `grounding`, which ask what it gives.
    """

    image: nn.Module | None  # (N, 3, H, W) normalised pixels -> (N, D)
    text: nn.Module | None  # (N, L) integer ids -> (N, D)
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    # how the weights' names begin that were learned on towers that stay as they are: no part of the embeddings' identity
    apart: ClassVar[tuple[str, ...]] = ()

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What makes scores of logits."""
        return "softmax" if self.logit_bias is None else "sigmoid"

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, D). Raises SourceError for a model without an image tower."""
        return self._run("image", pixels)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """(N, L) ids -> (N, D). Raises SourceError for a model without a text tower."""
        return self._run("text", input_ids)

    def _run(self, name: str, inputs: Tensor) -> Tensor:
        tower = getattr(self, name)
        if tower is None:
            raise SourceError(f"this model has no {name} tower.")
        rows: Tensor = tower(inputs)
        return rows


@dataclass(frozen=True)
class Request:
    """What the user asked for, handed whole to every loader."""

    spec: str  # as the user named the source, e.g. "hf:openai/clip-vit-base-patch32"
    revision: str | None = None  # branch, tag or commit of a Hub repository; None = its main branch
    allow_pickle: bool = False  # read .bin and .pt files too (tensors only)
    tokenizer: Path | None = None  # vocabulary file to take instead of the source's own


@dataclass(frozen=True)
class Source:
    """A loaded source: the model in eval mode, fp32, and everything a bundle must know about it."""

    spec: str  # as the user named it, e.g. "hf:openai/clip-vit-base-patch32"
    name: str  # short, for folders and reports, e.g. "clip-vit-base-patch32"
    family: str  # "clip", "siglip", "openclip", "nano"
    model: DualEncoder
    embedding_dim: int
    activation: Literal["softmax", "sigmoid"]
    preprocessing: Preprocessing | None  # None: no image tower
    text: TextSettings | None  # None: no text tower
    tokenizer_json: bytes  # empty without a text tower
    pooling: str  # e.g. "cls/eos", part of the bundle's identity
    licence: Licence
    digest: str  # SHA-256 over the weight file(s)
    templates: tuple[str, ...] = ("{}",)
    detection: Detection | None = None  # how a detector's outputs become detections; None: no detector
