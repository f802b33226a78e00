"""What a canonical CLIP is made of: every number that its weights do not already say. Saved as JSON beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
ImagePool = Literal["cls", "avg", "map", "attentional", "attentional_avg"]
TextPool = Literal["eos", "argmax", "last", "first"]


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm residual blocks, shared by both towers."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class ImageConfig:
    """The image tower: a vision transformer over square patches."""

    blocks: TransformerConfig
    image_size: tuple[int, int]  # (H, W), pixels
    patch_size: int
    pool: ImagePool = "cls"
    # "cls": class token; "avg": mean of the patch tokens; "map": SigLIP's attention head with its own feed-forward;
    # "attentional": OpenCLIP's attention pooler (learned queries, CoCa style), its first query; "attentional_avg": the
    # mean of the other queries
    class_token: bool = True
    patch_bias: bool = False
    position_embedding: bool = True
    norm_pre: bool = True  # LayerNorm before the first block
    norm_post: bool = True  # LayerNorm after the last block, before the projection
    # True: pool, then norm_post (CLIP's class token); False: norm_post on all tokens, then pool
    norm_after_pool: bool = True
    projection: bool = True  # False: the pooled width is the embedding width
    projection_bias: bool = False
    pool_queries: int = 0  # attention pooler only
    pool_heads: int = 0  # attention pooler only
    pool_width: int = 0  # attention pooler only: width after the pooler

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per side, (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the token sequence, class token included."""
        rows, columns = self.grid
        return rows * columns + int(self.class_token)


@dataclass(frozen=True)
class TextConfig:
    """The text tower: token and position embeddings, the same blocks, one pooled position."""

    blocks: TransformerConfig
    vocab_size: int
    context_length: int
    pool: TextPool = "eos"
    # "eos": first position that holds eos_id; "argmax": position of the largest id (OpenCLIP, and Hugging Face
    # configs that carry the legacy eos_token_id 2); "last": the last position, padding included; "first": position 0
    eos_id: int = 49407
    pad_id: int = 0
    causal: bool = True
    mask_padding: bool = False  # True: padding may not be attended to (non-causal towers trained so)
    projection: bool = True
    projection_bias: bool = False


@dataclass(frozen=True)
class ClipConfig:
    """Both towers and the width that they share."""

    embed_dim: int
    image: ImageConfig
    text: TextConfig
    logit_bias: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClipConfig:
        """Rebuild from `to_json`. Raises TypeError on a field that does not exist: no setting is silently unread."""
        image, text = dict(data["image"]), dict(data["text"])
        image["blocks"] = TransformerConfig(**image["blocks"])
        image["image_size"] = tuple(image["image_size"])
        text["blocks"] = TransformerConfig(**text["blocks"])
        return cls(**{**data, "image": ImageConfig(**image), "text": TextConfig(**text)})
