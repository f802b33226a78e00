"""Small source models of every shape that the exporter must take, with weights that hide no fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgeclip.bundle import Licence, Preprocessing, TextSettings
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.resnet import ResNetConfig
from edgeclip.models.source import Source
from tests.checkpoints import roughen

SIDE, LENGTH, PAD, EOS, VOCABULARY = 32, 20, 0, 258, 259
PREPROCESSING = Preprocessing((SIDE, SIDE), "shortest_crop", "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
TEXT = TextSettings(LENGTH, PAD, EOS, dynamic_length=True, vocab_size=VOCABULARY)
BLOCKS = TransformerConfig(width=48, layers=2, heads=3, mlp_width=96)
IMAGE = ImageConfig(BLOCKS, (SIDE, SIDE), patch_size=8)
WORDS = TextConfig(replace(BLOCKS, width=32, heads=2), VOCABULARY, LENGTH, eos_id=EOS, pad_id=PAD)

RESNET = ResNetConfig((SIDE, SIDE), (1, 2, 1, 1), width=8, heads=4)

# name -> changes of (image config, or one of another kind, text config, text settings): each reaches another path of the traceable forward
SHAPES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "openai": ({"blocks": replace(BLOCKS, activation="quick_gelu")}, {}, {}),
    "openclip-avg": (
        {"pool": "avg", "norm_pre": False, "patch_bias": True, "norm_after_pool": False},
        {"pool": "argmax", "projection_bias": True},
        {},
    ),
    "siglip": (
        {
            "pool": "map", "class_token": False, "norm_pre": False, "norm_after_pool": False, "patch_bias": True,
            "projection": False, "blocks": replace(BLOCKS, activation="gelu_tanh", norm_eps=1e-6),
        },
        {"pool": "last", "causal": False, "projection_bias": True},
        {"dynamic_length": False},
    ),
    "coca": ({"pool": "attentional", "pool_queries": 5, "pool_heads": 2, "pool_width": 24}, {"pool": "first", "causal": False}, {}),
    "coca-avg": (
        {"pool": "attentional_avg", "pool_queries": 5, "pool_heads": 2, "pool_width": 24, "position_embedding": False},
        {"causal": False, "mask_padding": True},
        {},
    ),
    "resnet": (RESNET, {"pool": "class"}, {}),
}  # fmt: skip


def clip_source(shape: str = "openai", layers: int = 2, **changes: Any) -> Source:
    """A tiny CLIP; `changes` replace fields of the Source. One layer is exported in little more than half the time."""
    image, text, settings = SHAPES[shape]
    torch.manual_seed(1)
    if isinstance(image, dict):
        image = replace(IMAGE, **image)
    width = 24 if getattr(image, "projection", True) else BLOCKS.width
    words = replace(WORDS, **text, blocks=replace(WORDS.blocks, layers=layers))
    if isinstance(image, ImageConfig):
        image = replace(image, blocks=replace(image.blocks, layers=layers))
    config = ClipConfig(width, image, words, logit_bias=shape == "siglip")
    model = Clip(config).eval()
    roughen(model)
    if image is RESNET:
        with torch.no_grad():
            for _ in range(20):  # a tenth of the way each time
                model.train().encode_image(torch.from_numpy(pixels_of(made_up_pictures(), PREPROCESSING)))
        model.eval()
    with torch.no_grad():  # embeddings of tokens and patches must outweigh what all texts and pictures share
        model.text.embedding.weight.mul_(0.5)
        model.text.position.mul_(20)
    return made_source(model, config.embed_dim, replace(TEXT, **settings), **changes)


def one_tower(source: Source, kind: str) -> Source:
    """The same without its other tower."""
    setattr(source.model, "text" if kind == "image" else "image", None)
    if kind == "image":
        return replace(source, text=None, tokenizer_json=b"")
    return replace(source, preprocessing=None)


def nano_source(**changes: Any) -> Source:
    """A small NanoCLIP whose batch norms have seen pictures."""
    torch.manual_seed(2)
    config = NanoConfig(SIDE, (8, 16), (1, 1), 24, VOCABULARY, 16, 1, LENGTH, PAD)
    model = NanoCLIP(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # take the statistics of what it sees
    with torch.no_grad():
        roughen(model)
        model.train()
        model.encode_image(torch.from_numpy(pixels_of(made_up_pictures(), PREPROCESSING)))
        model.text.embedding.weight.mul_(20)
    return made_source(model.eval(), config.embed_dim, TEXT, **changes)


def tokenizer() -> Tokenizer:
    """Bytes as tokens between two marks: every text has ids of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": PAD, **{symbol: i + 1 for i, symbol in enumerate(alphabet)}, "<s>": 257, "</s>": EOS}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 257), ("</s>", EOS)]
    )
    return made


def made_source(model: Any, dim: int, text: TextSettings, **changes: Any) -> Source:
    source = Source(
        spec="made-up",
        name="made-up",
        family="clip",
        model=model,
        embedding_dim=dim,
        activation="softmax" if model.logit_bias is None else "sigmoid",
        preprocessing=PREPROCESSING,
        text=text,
        tokenizer_json=tokenizer().to_str().encode(),
        pooling="test",
        licence=Licence("Apache-2.0"),
        digest="0" * 64,
    )
    return replace(source, **changes)
