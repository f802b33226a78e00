"""An open-vocabulary detector: a dense CLIP image tower with a box head and a class head that compares with any embedding.

Each patch token is a region: it says where its object is, what it looks like (an embedding in the space of the texts), and how a
cosine with that embedding becomes a logit. Sources: Minderer et al. 2022 (OWL-ViT), arXiv:2205.06230; Minderer et al. 2023
(OWLv2, which adds the objectness), arXiv:2306.09683; facts of the layout follow transformers' `OwlViTForObjectDetection`.
Shapes: N pictures, Q regions (patches, row by row), W tower width, D embedding width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.clip import ImageTower, TextTower
from edgeclip.models.config import ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.feed_forward import activate
from edgeclip.models.source import DualEncoder

_EPS = 1e-4  # of the grid's logits: a corner at the border has none


class Regions(NamedTuple):
    """What a detector says of each picture. A label's logit is `scales` x cosine + `biases`."""

    boxes: Tensor  # (N, Q, 4) xyxy, 0-1 of the input's sides; may reach beyond
    embeddings: Tensor  # (N, Q, D), not yet of unit length
    scales: Tensor  # (N, Q)
    biases: Tensor  # (N, Q)
    objectness: Tensor | None  # (N, Q) in 0-1; None: the model has none


@dataclass(frozen=True)
class DetectorConfig:
    """Every size of a detector. Its image tower neither pools nor projects."""

    KIND: ClassVar[str] = "owl"

    image: ImageConfig
    embed_dim: int  # D
    objectness: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W), pixels."""
        return self.image.image_size


@dataclass(frozen=True)
class DetectorModelConfig:
    """A detector and the text tower that asks it."""

    detector: DetectorConfig
    text: TextConfig

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.detector.embed_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of a picture."""
        return self.detector.image_size

    @property
    def pooling(self) -> str:
        """Part of a bundle's identity: every patch for itself, texts as their tower pools them."""
        return f"patches/{self.text.pool}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DetectorModelConfig:
        """Rebuild from `to_json`. Raises TypeError on a field that does not exist."""
        detector, text = dict(data["detector"]), dict(data["text"])
        image = dict(detector["image"])
        image["blocks"] = TransformerConfig.from_json(image["blocks"])
        image["image_size"] = tuple(image["image_size"])
        detector["image"] = ImageConfig(**image)
        text["blocks"] = TransformerConfig.from_json(text["blocks"])
        return cls(**{**data, "detector": DetectorConfig(**detector), "text": TextConfig(**text)})


class RegionHead(nn.Module):
    """Three linear layers with GELU between them: (N, Q, W) -> (N, Q, outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.fc3 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(activate(self.fc2(activate(self.fc1(x), "gelu")), "gelu"))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """(N, 3, H, W) normalised pixels -> Regions, one for each patch."""

    box_bias: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        assert config.image.class_token, "each patch is multiplied with it"
        assert config.image.pool == "cls"
        assert not config.image.projection
        self.config = config
        width = config.image.blocks.width
        self.trunk = ImageTower(config.image, width)
        self.norm = nn.LayerNorm(width, eps=config.image.blocks.norm_eps)
        self.box_head = RegionHead(width, 4)
        self.objectness_head = RegionHead(width, 1) if config.objectness else None
        self.embedding = nn.Linear(width, config.embed_dim)
        self.scale, self.shift = nn.Linear(width, 1), nn.Linear(width, 1)
        self.register_buffer("box_bias", grid_bias(config.image.grid), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, Q, W): each patch token times the class token, normalised."""
        x = self.trunk.tokens(pixels)
        if self.trunk.norm_post is not None:
            x = self.trunk.norm_post(x)
        return self.norm(x[:, 1:] * x[:, :1])  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Regions:
        x = self.features(pixels)
        scales = F.elu(self.scale(x)[..., 0]) + 1
        objectness = None
        if self.objectness_head is not None:
            objectness = torch.sigmoid(
                self.objectness_head(x.detach())[..., 0]
            )  # OWLv2: trains the head, not the tower
        return Regions(
            boxes=corners(torch.sigmoid(self.box_head(x) + self.box_bias)),
            embeddings=self.embedding(x),
            scales=scales,
            biases=scales * self.shift(x)[..., 0],
            objectness=objectness,
        )


class DetectorModel(DualEncoder):
    """A detector and the text tower that shares its space. Each region has its own scale and bias; that of the towers is 1 and none."""

    def __init__(self, config: DetectorModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = None
        self.detector = Detector(config.detector)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.zeros(()))  # its logarithm
        self.logit_bias = None

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """A region's labels do not compete."""
        return "sigmoid"

    def logits(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """(N, 3, H, W) and (P, L) -> (N, Q, P) logits of every region for every text."""
        regions: Regions = self.detector(pixels)
        unit = F.normalize(regions.embeddings, dim=-1)
        cosines = unit @ F.normalize(self.encode_text(input_ids), dim=-1).T
        return regions.scales[..., None] * cosines + regions.biases[..., None]


def grid_bias(grid: tuple[int, int]) -> Tensor:
    """(Q, 4) float32 logits of (cx, cy, w, h): a region starts at its patch's far corner, a patch in size, as OWL was trained."""
    rows, columns = grid
    y, x = torch.meshgrid(
        torch.arange(1, rows + 1) / rows, torch.arange(1, columns + 1) / columns, indexing="ij"
    )
    where = torch.stack([x, y, torch.full_like(x, 1 / columns), torch.full_like(y, 1 / rows)], dim=-1)
    return (torch.log(where + _EPS) - torch.log1p(-where + _EPS)).view(-1, 4)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) (cx, cy, w, h) -> xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)
