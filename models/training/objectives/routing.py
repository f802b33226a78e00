"""What is asked of the routers of mixtures of experts: even use, and logits that stay small."""

from __future__ import annotations

import torch
from torch import Tensor

TEXT = (
    0.5  # weight of the text tower's term beside the image tower's, as CLIP-MoE's published training has it
)


def load_balance(
    image_routed: Tensor,
    image_probability: Tensor,
    image_tokens: Tensor,
    image_experts: Tensor,
    text_routed: Tensor,
    text_probability: Tensor,
    text_tokens: Tensor,
    text_experts: Tensor,
) -> Tensor:
    """Give every expert of a mixture the same share of the batch's tokens.

    E * sum of f_e * P_e of each mixture, then the mean over a tower's mixtures: pooled first, mixtures that each use another
    expert alone would pass for even. f_e, the share of tokens that take expert e, moves the probability P_e, which has the gradient.

    Args:
        image_routed: (B, R, E) how many of a picture's tokens took an expert, in each of R mixtures.
        image_probability: (B, R, E) sums over its tokens of the softmax over all experts.
        image_tokens: (B,) how many tokens those are.
        image_experts: (R,) how many experts a mixture has, E at most.
        text_routed, text_probability, text_tokens, text_experts: the texts'; R may be 0 in one of the towers.
    Returns:
        () image + text / 2: each k where use is even, E where one expert takes all; 0 for a tower without mixtures.
    Raises:
        ValueError: shapes do not fit, or there are no mixtures.
    Source: Fedus et al. 2021, arXiv:2101.03961, section 2.2; for k of E and two towers Zhang et al. 2024, arXiv:2409.19291.
    """
    _check(image_probability, image_routed, image_tokens, image_experts)
    _check(text_probability, text_routed, text_tokens, text_experts)
    _check_any(image_experts, text_experts)
    return _balance(image_routed, image_probability, image_tokens, image_experts) + TEXT * _balance(
        text_routed, text_probability, text_tokens, text_experts
    )


def router_z(
    image_router_z: Tensor, image_tokens: Tensor, text_router_z: Tensor, text_tokens: Tensor
) -> Tensor:
    """Keep the routers' logits small, where float32 and the softmax tell them apart.

    Args:
        image_router_z: (B, R) sums over a picture's tokens of logsumexp(logits)^2, in each of R mixtures.
        image_tokens: (B,) how many tokens those are.
        text_router_z, text_tokens: the texts'; R may be 0 in one of the towers.
    Returns:
        () image + text / 2: the mean over tokens and a tower's mixtures; (ln E)^2 where all logits are 0, 0 for a tower without mixtures.
    Raises:
        ValueError: shapes do not fit, or there are no mixtures.
    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, equation 5.
    """
    for sums, tokens in ((image_router_z, image_tokens), (text_router_z, text_tokens)):
        if sums.ndim != 2 or tokens.shape != sums.shape[:1]:
            raise ValueError(f"want (B, R) and (B,), got {tuple(sums.shape)} and {tuple(tokens.shape)}")
    _check_any(image_router_z[0], text_router_z[0])
    return _mean(image_router_z, image_tokens) + TEXT * _mean(text_router_z, text_tokens)


def _balance(routed: Tensor, probability: Tensor, tokens: Tensor, experts: Tensor) -> Tensor:
    if not len(experts):
        return probability.sum()
    seen = tokens.sum()
    share = routed.sum(dim=0) / seen  # (R, E), k in sum
    return (experts * (share * probability.sum(dim=0) / seen).sum(dim=-1)).mean()


def _mean(sums: Tensor, tokens: Tensor) -> Tensor:
    return (sums.sum(dim=0) / tokens.sum()).mean() if sums.shape[1] else sums.sum()


def _check(probability: Tensor, routed: Tensor, tokens: Tensor, experts: Tensor) -> None:
    b, r = probability.shape[:2]
    if routed.shape != probability.shape or tokens.shape != (b,) or experts.shape != (r,):
        shapes = [tuple(x.shape) for x in (routed, probability, tokens, experts)]
        raise ValueError(f"want (B, R, E), (B, R, E), (B,), (R,), got {', '.join(map(str, shapes))}")


def _check_any(*mixtures: Tensor) -> None:
    if not torch.cat(mixtures).numel():
        raise ValueError("want mixtures in at least one tower, got none")
