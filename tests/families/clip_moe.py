"""CLIP-MoE: its layout and arithmetic once more, in PyTorch's own attention and explicit loops, since its repository has no licence.

Written from the names and formulas that the public file states (OpenSparseLLMs/CLIP-MoE, clipmoe/model_clipmoe.py at commit
971b29f14948b4e6ba5f4eff3a28cf8fcb31540a) and without a line of edgeclip's models. Ids and pixels are held against open_clip's tokenizer
and transform, which are OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoints import clip_vocabulary, roughen
from tests.families import Size, Write, Written

# name -> image width, patch, picture side, text width, embedding width
WIDTHS = {
    "B/16": (768, 16, 224, 512, 512),
    "L/14": (1024, 14, 224, 768, 768),
    "tiny": (64, 16, 32, 64, 32),
}
DEPTHS = {"B/16": (12, 12), "L/14": (24, 12)}
LENGTH = 248


class Expert(nn.Module):
    """One feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        out: Tensor = self.c_proj(hidden / (1 + torch.exp(-1.702 * hidden)))
        return out


class ReferenceBlock(nn.Module):
    """Pre-norm attention and feed-forward, or `experts` of these and a gate."""

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.top_k = top_k
        if experts:
            self.experts = nn.ModuleList(Expert(width) for _ in range(experts))
            self.gate = nn.Linear(width, experts, bias=False)
        else:
            self.mlp = Expert(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self._feed_forward(self.ln_2(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "gate"):
            out: Tensor = self.mlp(x)
            return out
        shares = torch.softmax(self.gate(x), dim=-1)
        best, places = shares.topk(min(self.top_k, shares.shape[-1]), dim=-1)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):  # every token through every expert
            taken = torch.where(places == e, best, 0.0).sum(dim=-1, keepdim=True)
            y = y + taken / best.sum(dim=-1, keepdim=True) * expert(x)
        return y


class ReferenceStack(nn.Module):
    """Blocks, the last ones with experts."""

    def __init__(self, width: int, experts: Sequence[int], top_k: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ReferenceBlock(width, count, top_k) for count in experts)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ReferenceVisual(nn.Module):
    """Pictures to embeddings."""

    def __init__(
        self, width: int, patch: int, side: int, embed: int, experts: Sequence[int], top_k: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) * width**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = ReferenceStack(width, experts, top_k)
        self.proj = nn.Parameter(torch.randn(width, embed) * width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_embedding.repeat(len(patches), 1, 1), patches], dim=1)
        tokens = self.transformer(self.ln_pre(tokens + self.positional_embedding))
        rows: Tensor = self.ln_post(tokens[:, 0]) @ self.proj
        return rows


class Reference(nn.Module):
    """A CLIP-MoE. `experts`: of the image's blocks and of the text's, 0 for a dense one."""

    def __init__(
        self,
        size: str,
        experts: tuple[Sequence[int], Sequence[int]],
        *,
        top_k: int = 2,
        vocab: int = 49408,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        width, patch, side, text_width, embed = WIDTHS[size]
        self.visual = ReferenceVisual(width, patch, side, embed, experts[0], top_k)
        self.transformer = ReferenceStack(text_width, experts[1], top_k)
        self.token_embedding = nn.Embedding(vocab, text_width)
        self.token_embedding.weight.data *= 0.02
        self.positional_embedding = nn.Parameter(torch.randn(length, text_width) * 0.01)
        self.positional_embedding_res = nn.Parameter(torch.randn(length, text_width) * 0.01)
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, embed) * text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D)."""
        rows: Tensor = self.visual(pixels)
        return rows

    def encode_text(self, ids: Tensor) -> Tensor:
        """(N, L) -> (N, D)."""
        length = ids.shape[1]
        early = (torch.arange(length) < 20)[:, None]
        position = torch.where(
            early, self.positional_embedding[:length], self.positional_embedding_res[:length]
        )
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + position, mask))
        rows: Tensor = x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection
        return rows


def write_clip_moe(
    path: Path,
    size: str = "tiny",
    experts: tuple[Sequence[int], Sequence[int]] = ((0, 4), (3, 3)),
    *,
    top_k: int = 2,
    vocab: int = 714,
    length: int = LENGTH,
) -> Reference:
    """A file of that layout, safetensors or a pickle by its suffix, and for a small vocabulary its merges. -> the model."""
    torch.manual_seed(0)
    model = Reference(size, experts, top_k=top_k, vocab=vocab, length=length).eval().requires_grad_(False)
    roughen(model)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):  # logits of some size, so that a token's best experts are clear
            parameter.mul_(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    (path.parent / "merges.txt").write_text(_merges(vocab), encoding="utf-8")
    return model


@cache
def _merges(vocab: int) -> str:
    """OpenAI's merges, cut to a vocabulary of `vocab` tokens, as a merges.txt."""
    _, pairs = clip_vocabulary(vocab - 514)
    return "\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]) + "\n"


def tokenize(texts: Sequence[str]) -> NDArray[np.int64]:
    """Ids at the full length by open_clip's tokenizer, with the marks that OpenAI's has in place of its own.

    But for one thing: a mark right behind another sign, as in "&<|endoftext|>", is a mark, as in transformers; there it is pieces.
    """
    import open_clip
    import regex

    tokenizer = open_clip.SimpleTokenizer(context_length=LENGTH)
    head, signs, tail = tokenizer.pat.pattern.rpartition(r"[^\s\p{L}\p{N}]")
    tokenizer.pat = regex.compile(
        f"{head}(?:{signs}){tail}", regex.IGNORECASE
    )  # each sign by itself, for what follows
    for own, openai in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        tokenizer.encoder[openai] = tokenizer.encoder.pop(own)
        tokenizer.cache[openai] = openai
        del tokenizer.cache[own]
        mark, signs = regex.escape(openai), r"[^\s\p{L}\p{N}]"
        pattern = tokenizer.pat.pattern.replace(own, mark).replace(signs, f"(?!{mark}){signs}")
        tokenizer.pat = regex.compile(pattern, regex.IGNORECASE)
    return np.array(tokenizer(list(texts)))


def prepare(side: int) -> Callable[[Image.Image], NDArray[np.float32]]:
    """Pixels as OpenAI's transform makes them."""
    from open_clip.transform import image_transform

    transform = image_transform(side, is_train=False)

    def pixels(picture: Image.Image) -> NDArray[np.float32]:
        made: Tensor = transform(picture)
        return made.numpy()

    return pixels


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        sizes = "tiny" if size == "tiny" else name
        depth = {"tiny": (1, 2), "real": (2, 2), "full": DEPTHS[name]}[size]
        experts = [4] * depth[0], [4] * depth[1]
        path = folder / "clip-moe-4-2.safetensors"
        model = write_clip_moe(path, sizes, experts, vocab=714 if size == "tiny" else 49408)
        return Written(
            str(path),
            model.encode_image,
            model.encode_text,
            tokenize if size != "tiny" else None,
            prepare(WIDTHS[sizes][2]),
        )

    return write


MODELS = {f"clip-moe-{name}": _write(name) for name in ("B/16", "L/14")}
