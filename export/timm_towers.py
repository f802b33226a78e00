"""Traceable towers of timm's modules.

What differs from timm's own forward, none of which changes the function: a block's parallel convolutions are one, batch norms
and layer scales are folded into the weights beside them, the softmax scale into the query weights, rotary embeddings and
relative positions are constants, and the last block computes only the class token where that alone is pooled.
Shapes: N batch, T tokens, W width, h heads, d head width, C channels.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode

from edgeclip.errors import CheckFailed
from edgeclip.export.clip_towers import Attend, PoolHead
from edgeclip.export.traced import Linear
from edgeclip.models.timm_tower import TimmTower, merge_branches, pool_head

# A layer scale's name in timm's blocks, and the layer whose output it multiplies.
_SCALES = (
    ("ls1", "attn.proj"),
    ("ls2", "mlp.fc2"),
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
    ("gamma", "mlp.fc2"),
    ("layer_scale", "mlp.fc2"),
    ("layer_scale_1", "token_mixer.proj"),
    ("layer_scale_2", "mlp.fc2"),
)
# PyTorch's operator -> what it must be in the graph
_OPERATORS = {
    "native_layer_norm": "LayerNormalization",
    "convolution": "Conv",
    "mean": "ReduceMean",
    "_softmax": "Softmax",
}


@torch.no_grad()
def image_tower(tower: TimmTower) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, H, W) -> (N, D), expected operators).

    Raises:
        CheckFailed: a batch norm is left that cannot be folded, as in a tower whose branches were not merged.
    """
    trunk: Any = merge_branches(tower.trunk).eval()
    made = nn.Sequential(OrderedDict(trunk=trunk, head=copy.deepcopy(tower.head).eval()))
    module: Any
    for module in list(made.modules()):
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # for those that stay timm's: the portable form
        _fold_scales(module)
    pixels = torch.zeros(1, 3, *tower.config.image_size)
    _fold_batch_norms(made, pixels)
    _replace_attentions(trunk)
    for parent, name, child in _children(made):
        if type(child) is nn.Linear:
            setattr(parent, name, Linear(child))
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            setattr(parent, name, _Mean())  # the exporter takes PyTorch's apart
    left = [name for name, module in made.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise CheckFailed(
            f"image tower: {len(left)} batch norms of {tower.config.model} cannot be folded, the first is {left[0]}. "
            "Its parallel branches were not merged, or this model of timm cannot be exported."
        )
    return made, _expected(made, pixels)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that PyTorch computes while it is entered: name, tensors in, what came out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, list[Tensor], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        self.calls.append((func._schema.name.removeprefix("aten::"), tensors, made))
        return made


def _recorded(made: nn.Module, pixels: Tensor) -> list[tuple[str, list[Tensor], Any]]:
    recorder = _Recorder()
    with recorder:
        made(pixels)
    return recorder.calls


def _expected(made: nn.Module, pixels: Tensor) -> dict[str, int]:
    """What the graph must hold: an operator for each that the modules compute, a product with a weight for each linear layer."""
    found = {"BatchNormalization": 0, "linears": 0, **dict.fromkeys(_OPERATORS.values(), 0)}
    weights = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    for name, tensors, _ in _recorded(made, pixels):
        if name in _OPERATORS:
            found[_OPERATORS[name]] += 1
        if name in ("mm", "addmm", "bmm"):
            found["linears"] += tensors[-1].untyped_storage().data_ptr() in weights
    attentions = sum(isinstance(module, Attend) for module in made.modules())
    if attentions == found["Softmax"]:  # all of them in the form that has two flavours
        found["attentions"] = found.pop("Softmax")
    return {**found, "fused_qkv": sum(name.endswith("qkv") for name, _ in made.named_modules())}


def _fold_scales(block: nn.Module) -> None:
    for name, path in _SCALES:
        scale = getattr(block, name, None)
        gain = getattr(scale, "gamma", scale)  # a module around the vector, or the vector itself
        owner, _, last = path.partition(".")
        layer = getattr(getattr(block, owner, None), last, None)
        if isinstance(gain, Tensor) and isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias.mul_(gain.flatten())
            setattr(block, name, nn.Identity() if isinstance(scale, nn.Module) else None)


def _fold_batch_norms(made: nn.Module, pixels: Tensor) -> None:
    """Fold each batch norm into the convolution that feeds it alone, as a run on `pixels` shows. timm's carry their activation."""
    calls = _recorded(made, pixels)
    makers = {id(result): tensors[1] for name, tensors, result in calls if name == "convolution"}
    uses = Counter(id(tensor) for _, tensors, _ in calls for tensor in tensors)
    feeds = {  # weight of a batch norm -> weight of its convolution
        id(tensors[1]): makers[id(tensors[0])]
        for name, tensors, _ in calls
        if name.endswith("batch_norm") and id(tensors[0]) in makers and uses[id(tensors[0])] == 1
    }
    convolutions = {id(module.weight): module for module in made.modules() if isinstance(module, nn.Conv2d)}
    for parent, name, norm in _children(made):
        if isinstance(norm, nn.BatchNorm2d) and id(norm.weight) in feeds:
            convolution = convolutions[id(feeds[id(norm.weight)])]
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            setattr(parent, name, getattr(norm, "act", nn.Identity()))


def _children(made: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    return [(parent, name, child) for parent in made.modules() for name, child in parent.named_children()]


class _Attention(nn.Module):
    """Self-attention: one product for queries, keys and values; rotary embeddings and relative positions are constants."""

    cos: Tensor | None
    sin: Tensor | None
    bias: Tensor | None

    def __init__(self, own: Any, rope: Tensor | None, only_first: bool) -> None:
        super().__init__()
        joined, width = _joined(own), own.proj.in_features
        self.only_first, self.norm = only_first, getattr(own, "norm", nn.Identity())
        cos, sin = (None, None) if rope is None else _rotation(own, joined, rope)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        relative = getattr(own, "rel_pos", None)
        bias = None if relative is None else relative.get_bias()[:, :, : 1 if only_first else None]
        self.register_buffer("bias", bias)  # (1, h, T or 1, T)
        self.qkv = Linear(joined, scaled=width, scale=own.scale)
        self.attend = Attend(own.num_heads)
        self.proj = Linear(own.proj)

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        """(N, T, W) -> (N, T, W), or (N, 1, W)."""
        q, k, v = (self.attend.split(part) for part in self.qkv(x).chunk(3, dim=-1))
        if self.only_first:  # the class token, which is not rotated
            q = q[:, :, :1]
        elif self.cos is not None:
            q = self._rotated(q)
        if self.cos is not None:
            k = self._rotated(k)
        y: Tensor = self.proj(self.norm(self.attend.heads_joined(q, k, v, self.bias)))
        return y

    def _rotated(self, x: Tensor) -> Tensor:
        """(N, h, T, d) -> (N, h, T, d): each pair of channels (i, i + d/2) turned by its position's angle."""
        assert self.cos is not None
        assert self.sin is not None
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([second, first], dim=-1) * self.sin


def _joined(own: Any) -> nn.Linear:
    """Queries, keys and values as one linear layer, whichever of timm's forms they have."""
    parts = [own.qkv] if own.qkv is not None else [own.q_proj, own.k_proj, own.v_proj]
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight.copy_(torch.cat([part.weight for part in parts]))
    biases = [torch.zeros(part.out_features) if part.bias is None else part.bias for part in parts]
    if getattr(own, "q_bias", None) is not None:
        biases = [own.q_bias, own.k_bias, own.v_bias]
    joined.bias.copy_(torch.cat(biases))
    if not joined.bias.any():
        joined.bias = None  # type: ignore[assignment]
    return joined


def _rotation(own: Any, joined: nn.Linear, rope: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, d), the sines with the sign of the turned pair; tokens before the patches are not rotated.

    timm's neighbouring pairs become halves: the channels of queries and keys change places alike, so that no product changes.
    """
    sin, cos = rope.chunk(2, dim=-1)
    d = sin.shape[-1]
    if not getattr(own, "rotate_half", False):
        order = torch.arange(d).view(-1, 2).T.flatten()
        sin, cos = sin[:, order], cos[:, order]
        for tensor in (joined.weight, joined.bias):
            if tensor is not None:
                heads = torch.unflatten(tensor[: 2 * own.num_heads * d], 0, (-1, d))
                heads.copy_(heads[:, order].clone())
    signs = torch.cat([-torch.ones(d // 2), torch.ones(d // 2)])
    rest = torch.zeros(own.num_prefix_tokens, d)
    return torch.cat([rest + 1, cos]), torch.cat([rest, sin * signs])


class _MapAttention(nn.Module):
    """FastViT's: attention over the positions of a feature map, the batch norm before it folded in."""

    def __init__(self, own: Any, norm: Any) -> None:
        super().__init__()
        self.tokens = _Attention(own if norm is None else _after(norm, own), None, only_first=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = self.tokens(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape)


def _after(norm: Any, own: Any) -> Any:
    """The attention with the batch norm before it in its first product."""
    own, gain = copy.deepcopy(own), norm.weight / torch.sqrt(norm.running_var + norm.eps)
    own.qkv = _joined(own)
    shift = own.qkv.weight @ (norm.bias - norm.running_mean * gain)
    own.qkv.bias = nn.Parameter(shift if own.qkv.bias is None else own.qkv.bias + shift)
    own.qkv.weight.mul_(gain)
    return own


class _Mean(nn.Module):
    """(N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class _LastBlock(nn.Module):
    """A residual block for the class token alone."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        """(N, T, W) -> (N, 1, W)."""
        x = x[:, :1] + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _Pool(nn.Module):
    """timm's latent attention pool as SigLIP's head."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        head = pool_head(own)
        assert head is not None
        self.head = PoolHead(head)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, W)."""
        y: Tensor = self.head(x)
        return y[:, 0]


def _replace_attentions(trunk: Any) -> None:
    """Write the attentions that are known in our form; others stay as they are."""
    from timm.layers import Attention, AttentionPoolLatent, AttentionRope
    from timm.models import eva, fastvit, vision_transformer, vision_transformer_relpos

    known = (Attention, AttentionRope, eva.EvaAttention, vision_transformer_relpos.RelPosAttention)
    blocks = (vision_transformer.Block, eva.EvaBlock, vision_transformer_relpos.RelPosBlock)
    rope = None if getattr(trunk, "rope", None) is None else trunk.rope.get_embed()
    only_first = getattr(trunk, "global_pool", None) == "token" and getattr(trunk, "attn_pool", None) is None
    last = trunk.blocks[-1] if only_first and isinstance(trunk.blocks[-1], blocks) else None
    for parent, name, child in _children(trunk):
        if isinstance(child, known) and _plain(child) and (rope is None or rope.ndim == 2):
            setattr(parent, name, _Attention(child, rope, parent is last))
        elif isinstance(child, fastvit.Attention):
            batch_norm = parent.norm if isinstance(parent.norm, nn.BatchNorm2d) else None
            setattr(parent, name, _MapAttention(child, batch_norm))
            if batch_norm is not None:
                parent.norm = nn.Identity()
        elif isinstance(child, AttentionPoolLatent) and pool_head(child) is not None:
            setattr(parent, name, _Pool(child))
    if last is not None and isinstance(last.attn, _Attention):
        trunk.blocks[-1] = _LastBlock(last)


def _plain(own: Any) -> bool:
    """Whether an attention has none of the parts that `_Attention` lacks."""
    identities = isinstance(own.q_norm, nn.Identity) and isinstance(own.k_norm, nn.Identity)
    return identities and getattr(own, "gate", None) is None and getattr(own, "num_kv_groups", 1) == 1
