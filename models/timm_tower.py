"""Image towers that are timm's own modules: ConvNeXt, FastViT (MobileCLIP), ViTamin, EVA, Perception Encoder and their like.

timm is imported when such a tower is built, and never for any other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeclip.errors import MissingExtraError
from edgeclip.models.clip import MapHead
from edgeclip.models.config import Activation, TransformerConfig

Projection = Literal["linear", "mlp", "none", "classifier"]


@dataclass(frozen=True)
class TimmConfig:
    """A trunk by timm's name for it, and the head that OpenCLIP puts on it."""

    KIND: ClassVar[str] = "timm"

    model: str  # timm's name, e.g. "convnext_base"
    image_size: tuple[int, int]  # (H, W), pixels
    pool: str = ""  # "cls", "avg", "map" or as timm calls it; for people, `timm_pool` decides
    timm_pool: str = (
        "avg"  # what timm is asked for; "abs_attn", "rot_attn": OpenCLIP's own; "": the trunk's default
    )
    projection: Projection = "linear"  # "classifier": the trunk's own last layer makes the embedding
    projection_bias: bool = False
    merged: bool = False  # True: the weights hold each block's parallel branches as one convolution


class TimmTower(nn.Module):
    """Pixels to one embedding per picture by a trunk of timm. Names of tensors are OpenCLIP's."""

    def __init__(self, config: TimmConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        trunk = make_trunk(config, embed_dim)
        self.trunk = merge_branches(trunk) if config.merged else trunk
        self.head = _head(config, trunk, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, D), not yet of unit length."""
        rows: Tensor = self.head(self.trunk(pixels))
        return rows


def timm() -> ModuleType:
    """The timm package. Raises MissingExtraError where it is not installed."""
    try:
        import timm as package
        import timm.utils
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = " ".join(str(error).split())[:120]
        raise MissingExtraError(
            f"this image tower is a model of timm, which cannot be imported ({reason}). "
            "pip install 'edgeclip[export]', and a torchvision that was built for the torch that is installed."
        ) from error
    found: ModuleType = package
    return found


def make_trunk(config: TimmConfig, embed_dim: int) -> Any:
    """timm's module as OpenCLIP asks for it, on PyTorch's default device, with random weights.

    Raises:
        ValueError: timm has no such model. A name that would make timm fetch one from the Hub is none either.
    """
    if not timm().is_model(config.model) or ":" in config.model:
        raise ValueError(f"timm {timm().__version__} has no model of that name")
    own_pool = config.timm_pool in ("abs_attn", "rot_attn")
    if config.projection in ("linear", "mlp") or own_pool:
        trunk = timm().create_model(config.model)
        trunk.reset_classifier(
            0, **({"global_pool": "" if own_pool else config.timm_pool} if config.timm_pool else {})
        )
        return trunk
    classes = embed_dim if config.projection == "classifier" else 0
    found: Any = timm().create_model(config.model, num_classes=classes, global_pool=config.timm_pool)
    return found


def _head(config: TimmConfig, trunk: Any, embed_dim: int) -> nn.Sequential:
    from timm import layers

    head, width = nn.Sequential(), trunk.num_features
    if config.timm_pool == "abs_attn":
        side = trunk.default_cfg["pool_size"]
        head.add_module("pool", layers.AttentionPool2d(width, out_features=embed_dim, feat_size=side))
    if config.timm_pool == "rot_attn":
        head.add_module("pool", layers.RotAttentionPool2d(width, out_features=embed_dim))
    width = embed_dim if len(head) else width
    if config.projection == "linear":
        head.add_module("proj", nn.Linear(width, embed_dim, bias=config.projection_bias))
    if config.projection == "mlp":
        biases = (True, config.projection_bias)
        head.add_module("mlp", layers.Mlp(width, 2 * embed_dim, embed_dim, bias=biases))
    return head


def pool_name(tower: TimmTower) -> str:
    """How a tower pools, under our name for it where there is one."""
    head = getattr(tower.trunk, "head", None)
    own: Any = getattr(tower.trunk, "global_pool", None) or getattr(head, "global_pool", "")
    name = str(getattr(own, "pool_type", own)) or tower.config.timm_pool
    return {"token": "cls"}.get(name, name)


def merge_branches(trunk: nn.Module) -> nn.Module:
    """A copy whose parallel training branches are one convolution each, by timm's own arithmetic; once merged, a plain copy."""
    merged = any(getattr(module, "reparam_conv", None) is not None for module in trunk.modules())
    with torch.no_grad():
        made: nn.Module = copy.deepcopy(trunk) if merged else timm().utils.reparameterize_model(trunk)
    return made


def pool_head(own: Any) -> MapHead | None:
    """timm's latent attention pool as ours, sharing its tensors; None if it has parts that ours lacks."""
    activation = activation_of(own.mlp.act) if own.mlp is not None else None
    plain = own.pos_embed is None and own.latent_len == 1 and own.latent.shape[-1] == own.kv.in_features
    plain = plain and all(isinstance(part, nn.Identity) for part in (own.q_norm, own.k_norm))
    if (
        not plain
        or activation is None
        or type(own.q) is not nn.Linear
        or not isinstance(own.norm, nn.LayerNorm)
    ):
        return None
    width, hidden = own.kv.in_features, own.mlp.fc1.out_features
    with torch.device("meta"):
        head = MapHead(TransformerConfig(width, 0, own.num_heads, hidden, activation, own.norm.eps))
    head.probe, head.q, head.kv, head.out, head.norm = own.latent, own.q, own.kv, own.proj, own.norm
    head.mlp.fc1, head.mlp.fc2 = own.mlp.fc1, own.mlp.fc2
    return head


def activation_of(module: nn.Module) -> Activation | None:
    """Our name of an activation module; None for one that we have none for."""
    from timm.layers import GELU, GELUTanh

    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return "gelu" if isinstance(module, GELU) else "gelu_tanh" if isinstance(module, GELUTanh) else None
