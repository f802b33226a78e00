"""How OpenCLIP's models prepare texts: open_clip's own byte-pair tokenizer, or one of Hugging Face that the config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import TextTowerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.tokenizer import installed_merges, openclip_tokenizer, read_merges
from edgeclip.models.source import Request

VOCABULARIES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt", "tokenizer.json")

_CLEAN = {"lower": "openai", "canonicalize": "canonicalize"}


def read_text(
    folder: Path, text_cfg: dict[str, Any], config: TextTowerConfig, request: Request, where: str
) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model, or none."""
    if text_cfg.get("hf_tokenizer_name"):
        raise SourceError(
            f"{where}: hf_tokenizer_name {text_cfg['hf_tokenizer_name']!r}: edgeclip cannot load it yet."
        )
    tokenizer_json = openclip_tokenizer(_merges(folder, request.tokenizer))
    clean = (text_cfg.get("tokenizer_kwargs") or {}).get("clean", "lower")
    if clean not in _CLEAN:
        raise SourceError(f"{where}: text cleaning {clean!r}, expected one of {', '.join(_CLEAN)}.")
    text = common.text_settings(config, tokenizer_json, pad_id=0, clean=_CLEAN[clean], where=where)
    if text.eos_id != config.vocab_size - 1:
        raise SourceError(
            f"{where}: the vocabulary has {text.eos_id + 1 if text.eos_id else 0} tokens, the text tower "
            f"{config.vocab_size} rows. Pass the right one with --tokenizer FILE."
        )
    return tokenizer_json, text


def _merges(folder: Path, tokenizer: Path | None) -> list[tuple[str, str]]:
    here = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    path = tokenizer or next(iter(here), None) or installed_merges()
    if path is None:
        raise SourceError(
            f"{folder}: no vocabulary ({', '.join(VOCABULARIES)}). Pass one with --tokenizer FILE, or `pip install open_clip_torch`."
        )
    return read_merges(path)
