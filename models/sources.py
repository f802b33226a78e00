"""One spec names a source everywhere: `hf:ORG/NAME`, `openclip:ARCH/TAG`, a local folder or checkpoint, `nano`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from edgeclip import errors
from edgeclip.errors import SourceError
from edgeclip.models.loaders import openclip
from edgeclip.models.loaders.native import save_source
from edgeclip.models.loaders.openclip_table import model_config, repository
from edgeclip.models.source import Source

__all__ = ["FORMATS", "SCHEMES", "load_source", "save_source"]

log = logging.getLogger(__name__)

# Formats of a checkpoint folder, tried in this order. Each module offers matches(folder), load(folder, ...) and the
# names of its weight files: WEIGHTS, SHARDS, PICKLES.
FORMATS = {
    "edgeclip": "edgeclip.models.loaders.native",
    "Hugging Face": "edgeclip.models.loaders.huggingface",
    "OpenCLIP": "edgeclip.models.loaders.openclip",
}
# Of a Hub repository; the weights follow once the format is known.
_SMALL_FILES = ["*.json", "*.txt", "README.md"]
_NOT_SMALL = ["onnx/*", "*.index.json"]


def load_source(
    spec: str, *, revision: str | None = None, allow_pickle: bool = False, tokenizer: Path | None = None
) -> Source:
    """Load a source model, in eval mode and fp32, with everything that a bundle must know about it.

    Args:
        spec: `hf:ORG/NAME`, `openclip:ARCH/TAG` (a tag, a Hub id, or a weight file), a local folder, or `nano`.
        revision: branch, tag or commit of a Hub repository; None = its main branch.
        allow_pickle: read .bin and .pt files too (tensors only).
        tokenizer: a vocabulary file to take instead of the source's own.
    Raises:
        SourceError: nothing is there, it cannot be fetched, or it is damaged, unknown or contradicts itself.
    """
    if tokenizer is not None and not tokenizer.is_file():
        raise SourceError(f"{tokenizer}: no such tokenizer file.")
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](spec, rest, revision, allow_pickle, tokenizer)
    if spec == "nano":
        return _from_nano(spec, allow_pickle, tokenizer)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _load_folder(path, spec, path.resolve().name, allow_pickle, tokenizer)
    if path.is_file():
        raise SourceError(
            f"{spec}: a single file does not say its architecture. Name it openclip:ARCH/{spec}, or pass its folder."
        )
    raise SourceError(
        f"{spec}: no such source. Expected hf:ORG/NAME, openclip:ARCH/TAG, a local folder, or nano."
    )


def _from_hub(
    spec: str, repo: str, revision: str | None, allow_pickle: bool, tokenizer: Path | None, only: str = ""
) -> Source:
    """`hf:ORG/NAME`. `only`: the one format to take from a repository that holds several."""
    folder = _download(spec, repo, revision, _SMALL_FILES, _NOT_SMALL)
    loader = _format_of(folder, only)
    _download(spec, repo, revision, [*loader.WEIGHTS, *loader.SHARDS])
    if allow_pickle and not any((folder / name).is_file() for name in loader.WEIGHTS):
        _download(spec, repo, revision, list(loader.PICKLES))
    source: Source = loader.load(
        folder, spec=spec, name=repo.rpartition("/")[2], allow_pickle=allow_pickle, tokenizer=tokenizer
    )
    return source


def _from_openclip(
    spec: str, rest: str, revision: str | None, allow_pickle: bool, tokenizer: Path | None
) -> Source:
    """`openclip:ARCH/TAG`, where TAG is a known tag, a Hub id, a weight file or a folder."""
    arch, slash, tag = rest.partition("/")
    wanted = model_config(arch)
    if not slash or not tag:
        raise SourceError(f"{spec}: expected openclip:ARCH/TAG, e.g. openclip:ViT-B-32/laion2b_s34b_b79k.")
    path = Path(tag).expanduser()
    if path.is_file():
        return openclip.load_file(path, arch, spec=spec, allow_pickle=allow_pickle, tokenizer=tokenizer)
    if path.is_dir():
        source = openclip.load(
            path, spec=spec, name=path.resolve().name, allow_pickle=allow_pickle, tokenizer=tokenizer
        )
    else:
        repo = repository(arch, tag) or (tag if tag.count("/") == 1 else "")
        if not repo:
            raise SourceError(
                f"{spec}: no such file, and {tag!r} is not a tag of {arch} that edgeclip knows. "
                "Name the Hub repository: openclip:ARCH/ORG/NAME."
            )
        source = _from_hub(spec, repo, revision, allow_pickle, tokenizer, only="OpenCLIP")
    openclip.check_arch(source, arch, wanted)
    return source


def _from_nano(spec: str, allow_pickle: bool, tokenizer: Path | None) -> Source:
    folder = Path(errors.__file__).parent / "assets" / "nano-source"
    if not folder.is_dir():
        raise SourceError(
            "nano: this installation holds nano's bundle, not its source. Train it with examples/nano, then name its folder."
        )
    return _load_folder(folder, spec, "nano", allow_pickle, tokenizer)


# What stands before the colon of a spec.
SCHEMES: dict[str, Callable[[str, str, str | None, bool, Path | None], Source]] = {
    "hf": _from_hub,
    "openclip": _from_openclip,
}


def _load_folder(folder: Path, spec: str, name: str, allow_pickle: bool, tokenizer: Path | None) -> Source:
    source: Source = _format_of(folder).load(
        folder, spec=spec, name=name, allow_pickle=allow_pickle, tokenizer=tokenizer
    )
    return source


def _format_of(folder: Path, only: str = "") -> ModuleType:
    for name, module_name in FORMATS.items():
        module = importlib.import_module(module_name)
        if only in ("", name) and module.matches(folder):
            return module
    cut = next(folder.rglob("*.incomplete"), None)
    hint = f"{cut.name}: the download was cut short. Run it again" if cut else "is the download complete?"
    raise SourceError(f"{folder}: no {only or 'known'} checkpoint ({', '.join(FORMATS)}); {hint}.")


def _download(
    spec: str, repo: str, revision: str | None, patterns: list[str], ignore: list[str] | None = None
) -> Path:
    """Files of a Hub repository through huggingface_hub's own cache (HF_HOME, HF_HUB_OFFLINE and tokens as it has them)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignore)
        )
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{spec}: no such repository on the Hub, or it is private: log in with `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{spec}: expected ORG/NAME after the colon, got {repo!r}.") from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{spec}: not in the local cache, and the Hub cannot be reached. Fetch it where there is a network."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"{spec}: the Hub refused ({reason}). Check the name, your access and the network."
        ) from error
