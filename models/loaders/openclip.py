"""OpenCLIP ViT checkpoints: a Hub-style folder (open_clip_config.json and weights) or one file of an architecture.

Facts of the format follow open_clip (config keys and defaults, names of tensors, poolings, preprocessing).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, fill, find_weights, read_json, read_weights
from edgeclip.models.loaders.openclip_config import read_config, read_preprocessing
from edgeclip.models.loaders.openclip_table import ARCHS, QUICK, model_config
from edgeclip.models.loaders.tokenizer import installed_merges, openclip_tokenizer, read_merges
from edgeclip.models.source import Request, Source

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
SHARDS: tuple[str, ...] = ()
VOCABULARIES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt", "tokenizer.json")
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")  # scalars that OpenAI's own files carry

_CLEAN = {"lower": "openai", "canonicalize": "canonicalize"}


def matches(folder: Path) -> bool:
    """Whether the folder is one of OpenCLIP's."""
    return (folder / CONFIG).is_file()


def load(folder: Path, name: str, request: Request) -> Source:
    """Load a folder as OpenCLIP's Hub repositories are laid out.

    Raises:
        SourceError: an architecture outside the ViT family, a missing or damaged file, or a contradiction.
    """
    path = folder / CONFIG
    data = read_json(path)
    model_cfg = data.get("model_cfg", data)
    weights = read_weights(find_weights(folder, WEIGHTS, PICKLES), allow_pickle=request.allow_pickle)
    return _source(folder, name, request, model_cfg, data.get("preprocess_cfg", {}), weights, str(path))


def load_file(path: Path, arch: str, request: Request) -> Source:
    """Load one weight file of a named architecture; pictures are prepared as open_clip does by default.

    Raises:
        SourceError: an unknown architecture, a damaged file, or weights of another shape or activation.
    """
    model_cfg = known_arch(arch, request.spec)
    weights = read_weights(path, allow_pickle=request.allow_pickle)
    if set(OPENAI_ONLY) & set(weights.tensors) and not model_cfg["quick_gelu"]:
        raise SourceError(
            f"{path}: OpenAI's own weights, trained with QuickGELU: name the architecture {arch}{QUICK}."
        )
    log.warning(
        "%s: no preprocessing beside the weights; taking open_clip's default (OpenAI's mean and std)", path
    )
    return _source(path.parent, path.stem, request, model_cfg, {}, weights, str(path))


def _source(
    folder: Path,
    name: str,
    request: Request,
    model_cfg: Any,
    preprocess_cfg: Any,
    weights: Weights,
    where: str,
) -> Source:
    state = _text_prefixed(weights)
    config = read_config(model_cfg, where, logit_bias="logit_bias" in state.tensors)
    rules = _rules(config, state)
    model = fill(
        lambda: Clip(config), state, rules, lambda key: key in OPENAI_ONLY or key.endswith("attn_mask")
    )
    common.check_scale(model, weights.where)
    tokenizer_json = openclip_tokenizer(_merges(folder, request.tokenizer))
    clean = (model_cfg["text_cfg"].get("tokenizer_kwargs") or {}).get("clean", "lower")
    if clean not in _CLEAN:
        raise SourceError(f"{where}: text cleaning {clean!r}, expected one of {', '.join(_CLEAN)}.")
    text = common.text_settings(config.text, tokenizer_json, pad_id=0, clean=_CLEAN[clean], where=where)
    if text.eos_id != config.text.vocab_size - 1:
        raise SourceError(
            f"{where}: the vocabulary has {text.eos_id + 1 if text.eos_id else 0} tokens, the text tower "
            f"{config.text.vocab_size} rows. Pass the right one with --tokenizer FILE."
        )
    return Source(
        spec=request.spec,
        name=name,
        family="openclip",
        model=model,
        embedding_dim=config.embed_dim,
        activation="sigmoid" if config.logit_bias else "softmax",
        preprocessing=read_preprocessing(preprocess_cfg, config.image.image_size, where),
        text=text,
        tokenizer_json=tokenizer_json,
        pooling=f"{config.image.pool}/{config.text.pool}",
        licence=common.read_licence(folder),
        digest=weights.digest,
        templates=common.PHOTO_TEMPLATES,
    )


def _text_prefixed(weights: Weights) -> Weights:
    """Both layouts of the text tower's names in one: `text.` before each, as newer checkpoints have it."""
    outer = ("visual.", "text.", "logit_", *OPENAI_ONLY)
    tensors = {
        key if key.startswith(outer) else f"text.{key}": value for key, value in weights.tensors.items()
    }
    return Weights(weights.where, tensors, weights.digest)


def known_arch(arch: str, where: str) -> dict[str, Any]:
    """The `model_cfg` of an architecture. Raises SourceError for an unknown name."""
    found = model_config(arch)
    if found is None:
        raise SourceError(
            f"{where}: unknown architecture {arch!r}, expected one of {', '.join(ARCHS)} (also with {QUICK})."
        )
    return found


def check_arch(source: Source, arch: str, wanted: dict[str, Any]) -> None:
    """Hold a loaded folder against the architecture that the spec named; its own config has the last word on activation.

    Raises:
        SourceError: the folder holds a model of other sizes.
    """
    config: ClipConfig = source.model.config  # type: ignore[assignment]
    named = read_config(wanted, source.spec, logit_bias=config.logit_bias)
    for mine, its, tower in ((named.image, config.image, "image"), (named.text, config.text, "text")):
        if mine.blocks.activation != its.blocks.activation:
            log.warning(
                "%s: %s means %s, the checkpoint's own config says %s: taking that",
                source.spec,
                arch,
                mine.blocks.activation,
                its.blocks.activation,
            )
        sizes = [_sizes(part) for part in (mine, its)]
        if sizes[0] != sizes[1]:
            raise SourceError(
                f"{source.spec}: the checkpoint's {tower} tower has {sizes[1]}, {arch} has {sizes[0]}."
            )


def _sizes(part: ImageConfig | TextConfig) -> dict[str, object]:
    sizes = ("width", "layers", "heads", "image_size", "patch_size", "context_length", "vocab_size")
    return {
        name: getattr(owner, name) for name in sizes for owner in (part, part.blocks) if hasattr(owner, name)
    }


def _rules(config: ClipConfig, state: Weights) -> dict[str, Rule]:
    rules = {
        "logit_scale": Rule(("logit_scale",)),
        "logit_bias": Rule(("logit_bias",)),
        "image.class_token": Rule(("visual.class_embedding",)),
        "image.patches.weight": Rule(("visual.conv1.weight",)),
        "image.position": Rule(("visual.positional_embedding",)),
        "image.projection.weight": Rule(("visual.proj",), transpose=True),
        "text.embedding.weight": Rule(("text.token_embedding.weight",)),
        "text.position": Rule(("text.positional_embedding",)),
        "text.projection.weight": Rule(("text.text_projection",), transpose=True),
    }
    pairs = {
        "image.norm_pre": "visual.ln_pre",
        "image.norm_post": "visual.ln_post",
        "text.norm_final": "text.ln_final",
    }
    if config.text.projection_bias:
        pairs["text.projection"] = "text.text_projection"
    for ours, theirs, layers in (
        ("image", "visual", config.image.blocks.layers),
        ("text", "text", config.text.blocks.layers),
    ):
        for i in range(layers):
            block, layer = f"{ours}.blocks.{i}", f"{theirs}.transformer.resblocks.{i}"
            pairs |= {f"{block}.norm1": f"{layer}.ln_1", f"{block}.norm2": f"{layer}.ln_2"}
            pairs[f"{block}.mlp.fc1"] = f"{layer}.mlp.c_fc"
            for kind in ("weight", "bias"):
                rules[f"{block}.attention.qkv.{kind}"] = Rule((f"{layer}.attn.in_proj_{kind}",))
                for mine, other, scale in (
                    ("attention.out", "attn.out_proj", "ls_1"),
                    ("mlp.fc2", "mlp.c_proj", "ls_2"),
                ):
                    gain = f"{layer}.{scale}.gamma"
                    gain = gain if gain in state.tensors else ""
                    rules[f"{block}.{mine}.{kind}"] = Rule((f"{layer}.{other}.{kind}",), gain=gain)
    if config.image.pool_queries:
        pairs |= {"image.head.norm_q": "visual.attn_pool.ln_q", "image.head.norm_k": "visual.attn_pool.ln_k"}
        pairs["image.head.out"] = "visual.attn_pool.attn.out_proj"
        rules["image.head.query"] = Rule(("visual.attn_pool.query",))
        rules |= _pooler_rules(state)
    for mine, other in pairs.items():
        rules |= {f"{mine}.{kind}": Rule((f"{other}.{kind}",)) for kind in ("weight", "bias")}
    return rules


def _pooler_rules(state: Weights) -> dict[str, Rule]:
    """The pooler's projections: one stacked matrix where both widths agree, else three. Its bias is always stacked."""
    prefix = "visual.attn_pool.attn."
    for name in ("in_proj_weight", "in_proj_bias"):
        if (stacked := state.tensors.pop(prefix + name, None)) is not None:
            kind = name.removeprefix("in_proj_")
            for part, rows in zip("qkv", stacked.chunk(3), strict=True):
                state.tensors[f"{prefix}{part}_proj_{kind}"] = rows
    return {
        f"image.head.{part}.{kind}": Rule((f"{prefix}{part}_proj_{kind}",))
        for part in "qkv"
        for kind in ("weight", "bias")
    }


def _merges(folder: Path, tokenizer: Path | None) -> list[tuple[str, str]]:
    here = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    path = tokenizer or next(iter(here), None) or installed_merges()
    if path is None:
        raise SourceError(
            f"{folder}: no vocabulary ({', '.join(VOCABULARIES)}). Pass one with --tokenizer FILE, or `pip install open_clip_torch`."
        )
    return read_merges(path)
