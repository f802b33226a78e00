"""How OpenCLIP's models prepare texts: open_clip's own byte-pair tokenizer, or one of Hugging Face that the config names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import TextTowerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.bert_encoder import check_padding
from edgeclip.models.loaders.bert_tokenizer import bert_tokenizer, read_pieces
from edgeclip.models.loaders.hub import download
from edgeclip.models.loaders.huggingface import files
from edgeclip.models.loaders.tokenizer import (
    OPENCLIP_MARKS,
    end_as,
    installed_merges,
    openclip_tokenizer,
    read_merges,
    read_tokenizer,
    without_rowless,
)
from edgeclip.models.source import Request

VOCABULARIES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt", "tokenizer.json")

_CLEAN = {"lower": "openai", "canonicalize": "canonicalize", "whitespace": "whitespace"}
# A tokenizer with fewer tokens than this share of the tower's rows is another model's: CLIPA's has 0.954, others nearly all.
_FULL = 0.9


def read_text(
    folder: Path,
    text_cfg: dict[str, Any],
    config: TextTowerConfig,
    request: Request,
    where: str,
    marks: tuple[str, str] = OPENCLIP_MARKS,
) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model, or none.

    Args:
        marks: of a byte-pair tokenizer, see `openclip_tokenizer`.
    """
    if text_cfg.get("hf_tokenizer_name"):
        return _hugging_face(folder, text_cfg, config, request, where)
    tokenizer_json = openclip_tokenizer(_merges(folder, request.tokenizer), marks)
    clean, _ = _kwargs(text_cfg, "lower", where)
    text = common.text_settings(config, tokenizer_json, pad_id=0, clean=clean, where=where)
    if text.eos_id != config.vocab_size - 1:
        raise SourceError(
            f"{where}: the vocabulary has {text.eos_id + 1 if text.eos_id else 0} tokens, the text tower "
            f"{config.vocab_size} rows. Pass the right one with --tokenizer FILE."
        )
    return tokenizer_json, text


def _kwargs(text_cfg: dict[str, Any], default: str, where: str) -> tuple[str, bool]:
    """-> (cleaning, whether the mark that ends a text becomes id 0), from tokenizer_kwargs."""
    kwargs = {"clean": default, "strip_sep_token": False, **(text_cfg.get("tokenizer_kwargs") or {})}
    clean, strip = kwargs.pop("clean"), kwargs.pop("strip_sep_token")
    if clean not in _CLEAN:
        raise SourceError(f"{where}: text cleaning {clean!r}, expected one of {', '.join(_CLEAN)}.")
    if kwargs or type(strip) is not bool:
        raise SourceError(
            f"{where}: tokenizer_kwargs {kwargs or strip!r} describes a tokenizer that edgeclip does not know."
        )
    return _CLEAN[clean], strip


def _hugging_face(
    folder: Path, text_cfg: dict[str, Any], config: TextTowerConfig, request: Request, where: str
) -> tuple[bytes, TextSettings]:
    """The tokenizer that hf_tokenizer_name speaks of, used as open_clip's HFTokenizer uses it."""
    clean, strip = _kwargs(text_cfg, "whitespace", where)
    if request.tokenizer is None:
        folder = _tokenizer_folder(folder, text_cfg["hf_tokenizer_name"], request)
        tokenizer_json = files.folder_tokenizer(folder)
    else:
        path = request.tokenizer
        folder = path.parent
        if path.suffix == ".txt":
            tokenizer_json = bert_tokenizer(read_pieces(path), files.stated_tokenizer(folder), str(path))
        else:
            tokenizer_json = read_tokenizer(path)
    tokenizer_json = without_rowless(tokenizer_json, config.vocab_size)
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    if tokenizer.get_vocab_size() < _FULL * config.vocab_size:
        raise SourceError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower {config.vocab_size} rows. "
            f"Pass the one of {text_cfg['hf_tokenizer_name']!r} with --tokenizer FILE."
        )
    if strip:  # in the texts themselves the mark keeps its id: nobody writes it
        tokenizer_json = end_as(tokenizer_json, tokenizer.encode("a").ids[-1], 0)
    pad = files.pad_id(folder, tokenizer_json)
    settings = common.text_settings(config, tokenizer_json, pad_id=pad, clean=clean, where=where)
    if config.KIND in ("encoder", "t5"):
        check_padding(config, settings, where)
    return tokenizer_json, settings


def _tokenizer_folder(folder: Path, name: str, request: Request) -> Path:
    """The checkpoint's own folder where it holds a tokenizer, else the Hub's, if the source is of the Hub too."""
    if files.has_tokenizer(folder):
        return folder
    scheme, _, rest = request.spec.partition(":")
    if scheme == "hf" or (scheme == "openclip" and not Path(rest.partition("/")[2]).expanduser().exists()):
        wanted = [name for names in files.TOKENIZER_FILES for name in names]
        its = replace(request, spec=f"{request.spec}: its tokenizer, {name}", revision=None)
        return download(name, its, [*wanted, *files.TOKENIZER_CONFIGS])
    raise SourceError(
        f"{folder}: no tokenizer.json, and texts are read with the tokenizer of {name!r}. Copy it here, or pass it with "
        "--tokenizer FILE."
    )


def _merges(folder: Path, tokenizer: Path | None) -> list[tuple[str, str]]:
    here = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    path = tokenizer or next(iter(here), None) or installed_merges()
    if path is None:
        raise SourceError(
            f"{folder}: no vocabulary ({', '.join(VOCABULARIES)}). Pass one with --tokenizer FILE, or `pip install open_clip_torch`."
        )
    return read_merges(path)
