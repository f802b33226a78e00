"""CLIP-MoE's checkpoints: one file in OpenAI's names whose blocks may hold experts and a gate, for texts of 248 tokens.

Its sizes, the number of experts of each block too, follow from the tensors. How many of them a token takes does not: 2, as published,
or what a `clip_moe.json` beside the file says, e.g. {"top_k": 1}.
Facts of the layout were read from OpenSparseLLMs/CLIP-MoE, clipmoe/model_clipmoe.py at commit 971b29f14948b4e6ba5f4eff3a28cf8fcb31540a;
Long-CLIP's, which lacks the experts, from beichenzbc/Long-CLIP, model/model_longclip.py at commit
4e6f5dab40404df13749f5982d517dbecfc67e52. So are the dense models of CLIP-MoE's training stages laid out.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import torch

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TextConfig, TransformerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import (
    Rule,
    Weights,
    fill,
    paired,
    read_json,
    read_weights,
    renamed,
)
from edgeclip.models.loaders.openclip import OPENAI_ONLY, transformer, vit
from edgeclip.models.loaders.openclip.config import read_preprocessing
from edgeclip.models.loaders.openclip.texts import read_text
from edgeclip.models.loaders.tokenizer import OPENAI_MARKS
from edgeclip.models.source import Request, Source

log = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors",)
PICKLES = ("*.pt", "*.pth", "*.bin")
SHARDS: tuple[str, ...] = ()
SETTINGS = "clip_moe.json"
TOP_K = 2  # of the published checkpoints
HEAD_WIDTH = 64
# First positions, as CLIP had them; those behind stand in a second table, `positional_embedding_res`.
KEPT = 20

# Stand at the head of the file in every container, pickles too, which are not opened for it.
_MARKS = (b"positional_embedding_res", b"visual.transformer.resblocks.0.")
_HEAD_BYTES = 1 << 22


def claims(path: Path) -> bool:
    """Whether a file is one of these, by the names in its head."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return all(mark in head for mark in _MARKS)


def matches(folder: Path) -> bool:
    """Whether the folder holds such a file."""
    return bool(_files(folder))


def load(folder: Path, name: str, request: Request) -> Source:
    """Load the one such file of a folder.

    Raises:
        SourceError: there are several; or as `load_file`.
    """
    paths = _files(folder)
    if len(paths) > 1:
        raise SourceError(
            f"{folder}: holds {len(paths)} checkpoints ({', '.join(path.name for path in paths)}). Name one of the files."
        )
    return load_file(paths[0], request, name)


def load_file(path: Path, request: Request, name: str = "", folder: Path | None = None) -> Source:
    """Load one file.

    Args:
        name: of the source; "" = the file's.
        folder: where its model card, vocabulary and settings lie; None = beside it.
    Raises:
        SourceError: a pickle that is not allowed, a damaged file, or tensors that are not laid out so.
    """
    folder = folder or path.parent
    top_k = _top_k(folder / SETTINGS)
    weights = _one_position_table(read_weights(path, allow_pickle=request.allow_pickle))
    weights = renamed(weights, {r"^(?!visual\.|logit_scale$)": "text."})
    image, text = _image(weights, top_k), _text(weights, top_k)
    _, embed_dim = _shape(weights, "text.text_projection", 2)
    config = ClipConfig(embed_dim, image, text)
    rules = {
        **vit.rules(image, weights),
        **transformer.rules(text, weights),
        **_expert_rules("image", "visual", image.blocks),
        **_expert_rules("text", "text", text.blocks),
    }
    model = fill(lambda: Clip(config), weights, rules, lambda key: key.removeprefix("text.") in OPENAI_ONLY)
    common.check_scale(model, weights.where)
    if (image.blocks.moe or text.blocks.moe) and not (folder / SETTINGS).is_file():
        log.warning(
            "%s: how many experts a token takes is not in the file: taking %d, as published", path, TOP_K
        )
    tokenizer_json, settings = read_text(folder, {}, text, request, weights.where, OPENAI_MARKS)
    return common.make_source(
        request,
        name or path.stem,
        "clip-moe",
        model,
        preprocessing=read_preprocessing({}, image.image_size, weights.where),
        text=settings,
        tokenizer_json=tokenizer_json,
        licence=common.read_licence(folder),
        digest=weights.digest,
    )


def _files(folder: Path) -> list[Path]:
    paths = (path for pattern in (*WEIGHTS, *PICKLES) for path in sorted(folder.glob(pattern)))
    return [path for path in paths if path.is_file() and claims(path)]


def _top_k(path: Path) -> int:
    stated = read_json(path) if path.is_file() else {"top_k": TOP_K}
    found = stated.get("top_k")
    if set(stated) != {"top_k"} or type(found) is not int or found < 1:
        raise SourceError(f'{path}: expected {{"top_k": 1}} or more, got {stated!r}.')
    return found


def _one_position_table(weights: Weights) -> Weights:
    """Each row from the table that the model reads it from."""
    first, rest = "positional_embedding", "positional_embedding_res"
    if _shape(weights, first, 2) != _shape(weights, rest, 2):
        raise SourceError(f"{weights.where}: {first} and {rest} differ in shape. The file is damaged.")
    tensors = dict(weights.tensors)
    tensors[first] = torch.cat([tensors[first][:KEPT], tensors.pop(rest)[KEPT:]])
    return Weights(weights.where, tensors, weights.digest)


def _image(weights: Weights, top_k: int) -> ImageConfig:
    width, _, patch, _ = _shape(weights, "visual.conv1.weight", 4)
    tokens, _ = _shape(weights, "visual.positional_embedding", 2)
    side = math.isqrt(max(tokens - 1, 0))
    if side < 1 or side * side != tokens - 1:
        raise SourceError(
            f"{weights.where}: visual.positional_embedding has {tokens} rows, expected a square of patches and one more."
        )
    return ImageConfig(
        blocks=_blocks(weights, "visual.", width, top_k),
        image_size=(side * patch, side * patch),
        patch_size=patch,
    )


def _text(weights: Weights, top_k: int) -> TextConfig:
    length, width = _shape(weights, "text.positional_embedding", 2)
    rows, _ = _shape(weights, "text.token_embedding.weight", 2)
    return TextConfig(
        blocks=_blocks(weights, "text.", width, top_k), vocab_size=rows, context_length=length, pool="argmax"
    )


def _blocks(weights: Weights, tower: str, width: int, top_k: int) -> TransformerConfig:
    where = f"{weights.where}: {tower}transformer"
    pattern = re.compile(rf"{tower}transformer\.resblocks\.(\d+)\.(?:experts\.(\d+)\.)?")
    found: dict[
        str, set[str]
    ] = {}  # block -> its experts; numbers stay text, a damaged one may have any length
    for match in map(pattern.match, weights.tensors):
        if match:
            found.setdefault(match[1], set()).update({match[2]} - {None})
    counts = tuple(len(found.get(str(i), ())) for i in range(len(found)))
    first = "experts.0" if counts[:1] > (0,) else "mlp"
    hidden, _ = _shape(weights, f"{tower}transformer.resblocks.0.{first}.c_fc.weight", 2)
    common.check_heads(width, width // HEAD_WIDTH, where)
    try:
        moe = MoeConfig(counts, top_k) if any(counts) else None
        return TransformerConfig(width, len(counts), width // HEAD_WIDTH, hidden, "quick_gelu", moe=moe)
    except ValueError as error:
        raise SourceError(f"{where}: {error}.") from error


def _expert_rules(ours: str, theirs: str, blocks: TransformerConfig) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for i, count in enumerate(blocks.moe.experts if blocks.moe else ()):
        layer, mlp = f"{theirs}.transformer.resblocks.{i}", f"{ours}.blocks.{i}.mlp"
        found[f"{mlp}.router.weight"] = Rule((f"{layer}.gate.weight",))
        for e in range(count):
            for mine, other in (("fc1", "c_fc"), ("fc2", "c_proj")):
                found |= paired({f"{mlp}.experts.{e}.{mine}": f"{layer}.experts.{e}.{other}"})
    return found


def _shape(weights: Weights, name: str, axes: int) -> tuple[int, ...]:
    tensor = weights.tensors.get(name)
    if tensor is None or tensor.ndim != axes:
        raise SourceError(
            f"{weights.where}: expected a tensor {name.removeprefix('text.')!r} of {axes} axes. "
            "The file is damaged, or not laid out as CLIP-MoE's."
        )
    return tuple(tensor.shape)
