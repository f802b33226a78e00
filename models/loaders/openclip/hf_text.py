"""OpenCLIP's text towers that are models of Hugging Face: RoBERTa, XLM-R, BERT, and mT5's encoder.

A config names the model and gives none of its sizes: `MODELS` has them.
Facts of the format follow open_clip (HFTextEncoder: padding hidden by the model's own pad id, its poolers and projections).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeclip.errors import SourceError
from edgeclip.models.loaders.bert_encoder import BERT, encoder_config, encoder_rules
from edgeclip.models.loaders.checkpoint import Rule, Weights
from edgeclip.models.loaders.openclip.config import Shared, one_of
from edgeclip.models.t5 import T5Config
from edgeclip.models.text_encoder import EncoderConfig, Projection

KEYS: dict[str, Any] = {
    **{"hf_model_name": "", "hf_model_pretrained": True, "hf_tokenizer_name": "", "tokenizer_kwargs": {}},
    **{"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp", "context_length": 77, "output_tokens": False},
    # sizes of open_clip's own text transformer, which say nothing here
    **{"width": 512, "heads": 8, "layers": 12, "vocab_size": 49408},
}
_POOLS = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "first"}
_MEAN = {"mean_pooler": "mean"}
_PREFIX = "text.transformer"


class Known(NamedTuple):
    """A model as published. Where a checkpoint is at hand, its shapes go before the sizes: it may have other tokens, or fewer layers."""

    kind: str  # "bert": positions from 0; "roberta": they count the tokens that are no padding; "t5"
    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    norm_eps: float
    pad_id: int
    positions: int = 0  # none in T5
    token_types: int = 0


def _bert(vocab_size: int, size: tuple[int, int, int, int] = (768, 12, 12, 3072)) -> Known:
    return Known("bert", *size, vocab_size, 1e-12, 0, 512, 2)


def _roberta(vocab_size: int, size: tuple[int, int, int, int] = (768, 12, 12, 3072)) -> Known:
    return Known("roberta", *size, vocab_size, 1e-5, 1, 514, 1)


_LARGE = (1024, 24, 16, 4096)
MODELS = {
    "bert-base-uncased": _bert(30522),
    "bert-base-cased": _bert(28996),
    "bert-base-multilingual-uncased": _bert(105879),
    "bert-base-multilingual-cased": _bert(119547),
    "bert-base-chinese": _bert(21128),
    "bert-large-uncased": _bert(30522, _LARGE),
    "bert-large-cased": _bert(28996, _LARGE),
    "roberta-base": _roberta(50265),
    "roberta-large": _roberta(50265, _LARGE),
    "xlm-roberta-base": _roberta(250002),
    "xlm-roberta-large": _roberta(250002, _LARGE),
    "google/mt5-base": Known("t5", 768, 12, 12, 2048, 250112, 1e-6, 0),
    "google/mt5-xl": Known("t5", 2048, 24, 32, 5120, 250112, 1e-6, 0),
}
_OWNERS = ("google-bert/", "FacebookAI/")  # under which the Hub also knows those without one
# Tensor -> what its rows and columns are; "" = nothing that is asked for.
_SHAPES = {
    "embeddings.word_embeddings": ("vocab_size", "width"),
    "embeddings.position_embeddings": ("positions", ""),
    "embeddings.token_type_embeddings": ("token_types", ""),
    "encoder.layer.0.intermediate.dense": ("mlp_width", ""),
    "embed_tokens": ("vocab_size", "width"),
    "block.0.layer.1.DenseReluDense.wi_0": ("mlp_width", ""),
}
_LAYER = re.compile(rf"{_PREFIX}\.(?:encoder\.layer|block)\.(\d+)\.")


def matches(own: Any) -> bool:
    """A section that names a model of Hugging Face."""
    return isinstance(own, dict) and own.get("hf_model_name") is not None


def known(name: str, where: str) -> Known:
    """The facts of a named model. Raises SourceError for one that is not in the table."""
    short = name
    for owner in _OWNERS:
        short = short.removeprefix(owner)
    if short not in MODELS:
        raise SourceError(f"{where}.hf_model_name is {name!r}, expected one of {', '.join(MODELS)}.")
    return MODELS[short]


def _as_stored(facts: Known, tensors: Mapping[str, Any]) -> Known:
    """The sizes that a checkpoint's tensors have."""
    found: dict[str, Any] = {}
    for name, sizes in _SHAPES.items():
        tensor = tensors.get(f"{_PREFIX}.{name}.weight")
        if tensor is not None and tensor.ndim == len(sizes):
            found |= {size: length for size, length in zip(sizes, tensor.shape, strict=True) if size}
    if layers := [int(match[1]) + 1 for name in tensors if (match := _LAYER.match(name))]:
        found["layers"] = max(layers)
    return facts._replace(**found)


def read(text: dict[str, Any], shared: Shared) -> EncoderConfig | T5Config:
    """A `text_cfg` as ours. Raises SourceError on a model, pooler or projection that edgeclip does not know."""
    where, tensors = shared.where, shared.tensors if isinstance(shared.tensors, Mapping) else {}
    if text["output_tokens"]:
        raise SourceError(
            f"{where}.output_tokens: CoCa over {text['hf_model_name']!r}, which edgeclip cannot load yet."
        )
    facts = _as_stored(known(text["hf_model_name"], where), tensors)
    pools = _MEAN if facts.kind == "t5" else _POOLS
    pooler = text["hf_pooler_type"] or ("cls_pooler" if facts.kind == "bert" else "mean_pooler")  # of null
    pool = pools[one_of(pooler, tuple(pools), f"{where}.hf_pooler_type")]
    projection = one_of(text["hf_proj_type"], ("linear", "mlp", "none"), f"{where}.hf_proj_type")
    if projection == "none" and facts.width != shared.embed_dim:
        raise SourceError(
            f"{where}.hf_proj_type is null, but the model is {facts.width} wide and embeddings have {shared.embed_dim}."
        )
    hidden = (facts.width + shared.embed_dim) // 2 if projection == "mlp" else 0
    if facts.kind == "t5":
        return _t5(facts, tensors, text["context_length"], projection, hidden)
    data = {
        **BERT,
        "hidden_size": facts.width,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "intermediate_size": facts.mlp_width,
        "vocab_size": facts.vocab_size,
        "pad_token_id": facts.pad_id,
        "max_position_embeddings": facts.positions,
        "type_vocab_size": facts.token_types,
        "layer_norm_eps": facts.norm_eps,
    }
    ours = {
        "pool": pool,
        "projection": projection,
        "projection_width": hidden,
        "counted": facts.kind == "roberta",
    }
    most = encoder_config(data, where, **ours).context_length
    if text["context_length"] > most:
        raise SourceError(
            f"{where}.context_length is {text['context_length']}, the model has positions for {most} tokens."
        )
    return encoder_config(data, where, **ours, longest=text["context_length"])


def _t5(
    facts: Known, tensors: Mapping[str, Any], length: int, projection: Projection, hidden: int
) -> T5Config:
    query = tensors.get(f"{_PREFIX}.block.0.layer.0.SelfAttention.q.weight")
    return T5Config(
        width=facts.width,
        layers=facts.layers,
        heads=facts.heads,
        head_width=64 if query is None else len(query) // facts.heads,
        mlp_width=facts.mlp_width,
        vocab_size=facts.vocab_size,
        context_length=length,
        norm_eps=facts.norm_eps,
        pad_id=facts.pad_id,
        projection=projection,
        projection_width=hidden,
    )


def rules(config: EncoderConfig | T5Config, weights: Weights) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found = encoder_rules(config, _PREFIX) if isinstance(config, EncoderConfig) else _t5_rules(config)
    layers = {"linear": ("",), "mlp": (".0", ".2")}.get(config.projection, ())
    return found | {f"text.projection{i}.weight": Rule((f"text.proj{i}.weight",)) for i in layers}


def _t5_rules(config: T5Config) -> dict[str, Rule]:
    first = f"{_PREFIX}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found = {
        "text.embedding.weight": Rule((f"{_PREFIX}.embed_tokens.weight",)),
        "text.distance.weight": Rule((first,)),
        "text.norm_final.weight": Rule((f"{_PREFIX}.final_layer_norm.weight",)),
    }
    for i in range(config.layers):
        block, layer = f"text.blocks.{i}", f"{_PREFIX}.block.{i}.layer"
        attention, mlp = f"{layer}.0.SelfAttention", f"{layer}.1.DenseReluDense"
        for ours, theirs in (
            ("norm1", (f"{layer}.0.layer_norm",)),
            ("qkv", tuple(f"{attention}.{part}" for part in "qkv")),
            ("out", (f"{attention}.o",)),
            ("norm2", (f"{layer}.1.layer_norm",)),
            ("gates", (f"{mlp}.wi_0", f"{mlp}.wi_1")),
            ("down", (f"{mlp}.wo",)),
        ):
            found[f"{block}.{ours}.weight"] = Rule(tuple(f"{name}.weight" for name in theirs))
    return found
