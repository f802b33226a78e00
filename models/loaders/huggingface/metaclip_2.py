"""`MetaClip2Model` of transformers: CLIP in every way but its texts, which are of all languages and truly end with id 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, TextConfig
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.files import stated_tokenizer, text_settings
from edgeclip.models.loaders.sentencepiece import xlm_roberta_tokenizer
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import Request

FAMILY = "metaclip_2"
rules, ignorable = clip.rules, clip.ignorable
_TOKENS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_MODEL = "sentencepiece.bpe.model"


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A `MetaClip2Model`'s config.json as ours. Raises SourceError on an impossible value."""
    config = clip.read_config(data, path)
    assert isinstance(config.text, TextConfig)
    return replace(config, text=replace(config.text, pool="eos"))  # 2 is the id here, not CLIP's legacy rule


def read_text(folder: Path, config: TextConfig, request: Request) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model, or none."""
    path = request.tokenizer or folder / "tokenizer.json"
    if not path.is_file():
        path = folder / _MODEL
    if not path.is_file():
        raise SourceError(f"{folder}: expected tokenizer.json or {_MODEL}. Pass one with --tokenizer FILE.")
    if path.suffix == ".model":
        stated = stated_tokenizer(folder)
        tokens = {name: stated.get(f"{name}_token") or token for name, token in _TOKENS.items()}
        made = xlm_roberta_tokenizer(path, **tokens)
    else:
        made = read_tokenizer(path)
    return made, text_settings(folder, config, made, pads=(_TOKENS["pad"],))
