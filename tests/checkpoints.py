"""Checkpoints for tests, written by the original libraries' own save functions: shallow, but honest in their weights.

Fresh models hide faults: biases are zero, norms are one, so that swapped or forgotten tensors leave the output as it was.
`roughen` gives every tensor values of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.torchvision_shim  # noqa: F401  (before transformers and open_clip)
from edgeclip.models.loaders.tokenizer import byte_symbols

OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
# name -> image width, heads, patch, picture side, text width, text heads, embedding width
SIZES = {
    "B/32": (768, 12, 32, 224, 512, 8, 512),
    "B/16": (768, 12, 16, 224, 512, 8, 512),
    "L/14": (1024, 16, 14, 224, 768, 12, 768),
    "L/14-336": (1024, 16, 14, 336, 768, 12, 768),
    "TinyCLIP-8M/16": (256, 4, 16, 224, 256, 4, 512),
    "TinyCLIP-61M/32": (640, 10, 32, 224, 640, 10, 512),
    "tiny": (64, 4, 16, 32, 48, 4, 32),
}
DEPTHS = {"B/32": (12, 12), "B/16": (12, 12), "L/14": (24, 12), "L/14-336": (24, 12)}
TEXTS = ["a photo of a cat", "two dogs, running", "", "caf\u00e9 \U0001f431 !!", "tiles " * 90]


def roughen(model: torch.nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter: biases leave zero, norms leave one, as do a BatchNorm's statistics. The logit scale stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_" not in name:
                spread = 0.1 if parameter.ndim == 1 else 0.002
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.mul_(torch.exp(torch.randn(buffer.shape, generator=generator) * 0.2))


def learn_statistics(tower: torch.nn.Module, size: tuple[int, int]) -> None:
    """Give every BatchNorm the statistics of a few pictures (H, W), roughly. Made-up ones would drown the pictures in noise."""
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 0.9
    with torch.no_grad():
        tower.train()(fixed_pixels(3, *size))
    tower.eval()


def clip_vocabulary(merges: int = 48894) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's vocabulary as vocab.json has it, from the installed open_clip; fewer merges make a smaller one."""
    from edgeclip.models.loaders.tokenizer import installed_merges, read_merges

    path = installed_merges()
    if path is None:
        pytest.skip("needs open_clip installed, for its vocabulary")
    pairs = read_merges(path)[:merges]
    symbols = [
        symbol
        for byte, symbol in sorted(byte_symbols().items(), key=lambda item: (ord(item[1]) > 255, item[0]))
    ]
    tokens = [
        *symbols,
        *(s + "</w>" for s in symbols),
        *("".join(p) for p in pairs),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: i for i, token in enumerate(tokens)}, pairs


def write_hf_tokenizer(
    folder: Path,
    merges: int = 48894,
    pad: str = "<|endoftext|>",
    legacy: bool = False,
    added: tuple[str, ...] = (),
) -> int:
    """CLIPTokenizer's files, by its own save_pretrained. -> vocabulary size, without `added` tokens (ids above all others).

    `legacy`: vocab.json and merges.txt only.
    """
    from transformers import CLIPTokenizer

    vocab, pairs = clip_vocabulary(merges)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=pairs, pad_token=pad, model_max_length=77)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    if legacy:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab)


def write_hf(
    folder: Path,
    size: str = "tiny",
    *,
    layers: tuple[int, int] = (2, 2),
    activation: str = "quick_gelu",
    eos_id: int | None = None,
    merges: int | None = None,
    pad: str = "<|endoftext|>",
    legacy_tokenizer: bool = False,
    added: tuple[str, ...] = (),
    dropout: float = 0.0,
    **save: Any,
) -> Any:
    """A Hugging Face CLIPModel folder with tokenizer and preprocessor. -> the model itself, in eval mode.

    Args:
        eos_id: of the text config; None = the tokenizer's own, 2 = the legacy value.
        merges: of the vocabulary; None = all for real sizes, 200 for "tiny".
        added: tokens with ids above the end mark.
        dropout: of the attention, in the config; has no effect in eval mode.
        save: handed to save_pretrained, e.g. max_shard_size="1MB".
    """
    from transformers import CLIPConfig, CLIPModel

    width, heads, patch, side, text_width, text_heads, embed = SIZES[size]
    vocab = write_hf_tokenizer(
        folder, (200 if size == "tiny" else 48894) if merges is None else merges, pad, legacy_tokenizer, added
    )
    shared = {"hidden_act": activation, "projection_dim": embed, "attention_dropout": dropout}
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "patch_size": patch,
    }
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_heads}
    ids = {
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1 if eos_id is None else eos_id,
        "pad_token_id": vocab - 1,
    }
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            vision_config={**shared, **vision, "image_size": side, "num_hidden_layers": layers[0]},
            text_config={
                **shared,
                **text,
                **ids,
                "vocab_size": vocab + len(added),
                "num_hidden_layers": layers[1],
            },
            projection_dim=embed,
        )
    ).eval()
    roughen(model)
    model.save_pretrained(folder, **save)
    (folder / "preprocessor_config.json").write_text(json.dumps(hf_preprocessor(side)))
    return model


def hf_preprocessor(side: int) -> dict[str, Any]:
    """preprocessor_config.json as OpenAI's repositories have it."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": OPENAI["mean"],
        "image_std": OPENAI["std"],
        "do_convert_rgb": True,
    }


def fixed_pixels(n: int, height: int, width: int) -> torch.Tensor:
    """(n, 3, height, width) normalised pixels from arithmetic alone: waves of another length in every picture and channel."""
    picture, channel, y, x = torch.meshgrid(
        *(torch.arange(k).double() for k in (n, 3, height, width)), indexing="ij"
    )
    waves = torch.sin(x / (2 + 3 * picture + channel)) + torch.cos(y / (9 - channel + picture) + picture)
    return (waves + picture % 2).float()


def openclip_config(
    arch: str, layers: tuple[int, int] | None = (2, 2), image: Any = None, text: Any = None
) -> dict[str, Any]:
    """open_clip's own config of an architecture ("tiny" too), with other depths and settings laid over it."""
    import open_clip

    if arch == "tiny":
        width, heads, patch, side, text_width, text_heads, embed = SIZES["tiny"]
        config: dict[str, Any] = {
            "embed_dim": embed,
            "vision_cfg": {
                "width": width,
                "head_width": width // heads,
                "patch_size": patch,
                "image_size": side,
            },
            "text_cfg": {"width": text_width, "heads": text_heads, "vocab_size": 714, "context_length": 77},
        }
    else:
        config = open_clip.get_model_config(arch)
    if layers:
        config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = layers
    config["vision_cfg"].update(image or {})
    config["text_cfg"].update(text or {})
    return config


def write_openclip(
    folder: Path,
    config: dict[str, Any],
    *,
    bias: float | None = None,
    pickle: bool = False,
    preprocessing: dict[str, Any] | None = None,
) -> Any:
    """A folder as OpenCLIP's Hub repositories are, by its own save_for_hf. -> the model itself, in eval mode.

    Args:
        config: see `openclip_config`.
        bias: initial logit bias; None = the model has none.
        pickle: open_clip_pytorch_model.bin instead of safetensors.
        preprocessing: as open_clip's table of tags has it; None = OpenAI's mean and std.
    """
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(0)
    custom_text = config.get("custom_text", False)
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**settings, init_logit_bias=bias).eval()
    roughen(model)
    side = config["vision_cfg"].get("image_size", 224)
    learn_statistics(model.visual, (side, side) if isinstance(side, int) else tuple(side))
    stated = {**OPENAI, **(preprocessing or {})}
    model.visual.image_mean, model.visual.image_std = stated["mean"], stated["std"]
    model.visual.preprocess_cfg = stated
    save_for_hf(model, _NoTokenizer(), config, str(folder), safe_serialization=not pickle)
    vocab_size = config["text_cfg"].get("vocab_size", 49408)
    if vocab_size != 49408 and not config["text_cfg"].get("hf_tokenizer_name"):
        _, merges = clip_vocabulary(vocab_size - 514)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return model


class _NoTokenizer:
    """Stands where save_for_hf wants a Hugging Face tokenizer to save; the vocabulary is written apart."""

    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""
