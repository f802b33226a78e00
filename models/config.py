"""What a dual encoder is made of: every number that its weights do not already say. Saved as JSON beside the weights.

The sizes of the canonical towers are here; those of other towers stand beside their modules, see `models/towers.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from edgeclip.models.towers import config_class

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
ImagePool = Literal["cls", "avg", "map", "attentional", "attentional_avg"]
TextPool = Literal["eos", "argmax", "last", "first", "class"]
# of a block: every pair of a token's logits is compared to find its best (64: 4 KB a token); CLIP-MoE has 4
MOST_EXPERTS = 64


class ImageTowerConfig(Protocol):
    """What every image tower's config tells the rest of edgeclip."""

    KIND: ClassVar[str]  # its name in `models/towers.py`

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W), pixels."""

    @property
    def pool(self) -> str:
        """How tokens become one vector, for people; part of the bundle's identity."""


class TextTowerConfig(Protocol):
    """What every text tower's config tells the rest of edgeclip."""

    KIND: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""

    @property
    def context_length(self) -> int:
        """Largest L."""

    @property
    def pool(self) -> str:
        """How tokens become one vector. "eos": at `eos_id`; "argmax": at the largest id."""

    @property
    def eos_id(self) -> int:
        """Read where `pool` is "eos"."""

    def ignores_padding(self, pad_id: int, eos_id: int) -> bool:
        """Whether a text gives the same vector at any length, so that L may be the batch's longest."""


@dataclass(frozen=True)
class MoeConfig:
    """Which blocks of a stack have experts in place of one feed-forward, and how many of them a token takes."""

    experts: tuple[int, ...]  # of each block, first to last; 0: one dense feed-forward
    top_k: int = 2  # a block with fewer experts gives each token to all of them

    def __post_init__(self) -> None:
        counts = set(self.experts)
        if (
            not 1 <= self.top_k <= MOST_EXPERTS
            or not counts - {0}
            or not counts <= {0, *range(2, MOST_EXPERTS + 1)}
        ):
            raise ValueError(
                f"experts: expected 0 or 2-{MOST_EXPERTS} for each block, one of them not 0, and top_k of 1-{MOST_EXPERTS}, "
                f"got {self.experts} and {self.top_k}"
            )


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm residual blocks, shared by both towers."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    moe: MoeConfig | None = None  # None: every block is dense
    head_width: int = 0  # 0: width / heads; else heads x head_width may be narrower than the stream

    @property
    def inner_width(self) -> int:
        """Of queries, keys and values, all heads together."""
        return self.heads * self.head_width or self.width

    def __post_init__(self) -> None:
        if self.moe is not None and len(self.moe.experts) != self.layers:
            raise ValueError(
                f"experts: {len(self.moe.experts)} blocks are named, the stack has {self.layers}"
            )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TransformerConfig:
        """Rebuild from a dict of its fields."""
        moe = data.get("moe")
        return cls(**{**data, "moe": moe and MoeConfig(**{**moe, "experts": tuple(moe["experts"])})})


@dataclass(frozen=True)
class ImageConfig:
    """The image tower: a vision transformer over square patches."""

    KIND: ClassVar[str] = "vit"

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

    KIND: ClassVar[str] = "transformer"

    blocks: TransformerConfig
    vocab_size: int
    context_length: int
    pool: TextPool = "eos"
    # "eos": first position that holds eos_id; "argmax": position of the largest id (OpenCLIP, and Hugging Face
    # configs that carry the legacy eos_token_id 2); "last": the last position, padding included; "first": position 0;
    # "class": a learned token behind the text (CoCa), which hides padding from attention in its own way
    eos_id: int = 49407
    pad_id: int = 0
    causal: bool = True
    mask_padding: bool = False  # True: padding may not be attended to (non-causal towers trained so)
    projection: bool = True
    projection_bias: bool = False

    def ignores_padding(self, pad_id: int, eos_id: int) -> bool:
        """Padding stands behind what is pooled, and is not attended to."""
        if self.pool == "class":
            return pad_id == self.pad_id
        found = self.pool in ("eos", "first") or (self.pool == "argmax" and pad_id <= eos_id)
        return found and (self.causal or self.mask_padding)


@dataclass(frozen=True)
class ClipConfig:
    """Both towers and the width that they share. None: a tower that the model does not have."""

    embed_dim: int
    image: ImageTowerConfig | None
    text: TextTowerConfig | None
    logit_bias: bool = False

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of a picture; None: no image tower."""
        return None if self.image is None else self.image.image_size

    @property
    def pooling(self) -> str:
        """Of both towers, e.g. "cls/eos", and how many experts a token takes where there are any: part of a bundle's identity."""
        towers = (self.image, self.text)
        taken = [_top_k(tower) for tower in towers]
        pools = "/".join(tower.pool if tower else "" for tower in towers)
        return pools + (f" top {'/'.join(map(str, taken))}" if any(taken) else "")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        towers = {
            name: tower and {"kind": tower.KIND, **asdict(tower)}  # type: ignore[call-overload]
            for name, tower in (("image", self.image), ("text", self.text))
        }
        return {"embed_dim": self.embed_dim, **towers, "logit_bias": self.logit_bias}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClipConfig:
        """Rebuild from `to_json`. Raises TypeError on a field that does not exist: no setting is silently unread."""
        own = {
            key: value for key, value in data.items() if key != "extra"
        }  # of an older format, always empty
        image, text = _tower(own["image"], "vit"), _tower(own["text"], "transformer")
        return cls(**{**own, "image": image, "text": text})


def _top_k(tower: object) -> int:
    """Experts that a token takes in a tower's mixtures; 0: it has none."""
    moe = getattr(getattr(tower, "blocks", None), "moe", None)
    return moe.top_k if isinstance(moe, MoeConfig) else 0


def _tower(data: dict[str, Any] | None, default: str) -> Any:
    if data is None:
        return None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    kind = config_class(values.pop("kind", default))
    if "blocks" in values:
        values["blocks"] = TransformerConfig.from_json(values["blocks"])
    return kind(**values)
