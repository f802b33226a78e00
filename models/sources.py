"""One spec names a source everywhere: `hf:ORG/NAME`, `openclip:ARCH/TAG`, a local folder or checkpoint, `nano`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from edgeclip import errors
from edgeclip.errors import SourceError
from edgeclip.models.loaders import clip_moe, openclip
from edgeclip.models.loaders.checkpoint import check_allowed, check_whole, find_weights, what_happened
from edgeclip.models.loaders.hub import download
from edgeclip.models.loaders.native import save_source
from edgeclip.models.loaders.openclip.table import Tag
from edgeclip.models.source import Request, Source

__all__ = ["FORMATS", "SCHEMES", "load_source", "save_source"]

# Formats of a checkpoint folder, tried in this order; see models/loaders/__init__.py.
FORMATS = {
    "edgeclip": "edgeclip.models.loaders.native",
    "Hugging Face": "edgeclip.models.loaders.huggingface",
    "OpenCLIP": "edgeclip.models.loaders.openclip",
    "CLIP-MoE": "edgeclip.models.loaders.clip_moe",
}
# Of a Hub repository; the weights follow once the format is known.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "README.md"]
_NOT_SMALL = ["onnx/*", "*.index.json"]
_FILES = (".safetensors", ".pt", ".pth", ".bin")  # how a weight file's name ends


def load_source(
    spec: str, *, revision: str | None = None, allow_pickle: bool = False, tokenizer: Path | None = None
) -> Source:
    """Load a source model, in eval mode and fp32, with everything that a bundle must know about it.

    Args:
        spec: `hf:ORG/NAME` (or `/FILE` of it, which says its architecture itself), `openclip:ARCH/TAG` (a tag, a Hub id, a weight
            file or a folder), a local folder or such a file, or `nano`.
        revision, allow_pickle, tokenizer: see `Request`.
    Raises:
        SourceError: nothing is there, it cannot be fetched, or it is damaged, unknown or contradicts itself.
    """
    if tokenizer is not None and not tokenizer.is_file():
        raise SourceError(f"{tokenizer}: no such tokenizer file.")
    request = Request(spec, revision, allow_pickle, tokenizer)
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest, request)
    if spec == "nano":
        return _from_nano(request)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _load(path, _name_of(path), request)
    if path.is_file():
        return _from_file(path, request, f"Name it openclip:ARCH/{spec}, or pass its folder.")
    raise SourceError(
        f"{spec}: no such source. Expected hf:ORG/NAME, openclip:ARCH/TAG, a local folder, or nano."
    )


def _name_of(folder: Path) -> str:
    """A folder's name; of `runs/pets/model`, which is what training leaves, the run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _from_file(path: Path, request: Request, otherwise: str, folder: Path | None = None) -> Source:
    """A weight file that says its architecture itself. `otherwise`: what to do with one that does not."""
    if not clip_moe.claims(path):
        check_whole(path)
        raise SourceError(f"{request.spec}: a single file does not say its architecture. {otherwise}")
    return clip_moe.load_file(path, request, folder=folder)


def _from_hub_file(repo: str, file: str, request: Request) -> Source:
    """`hf:ORG/NAME/FILE`."""
    check_allowed(Path(file), request.allow_pickle)  # before gigabytes are fetched
    folder = download(repo, request, [file, *_SMALL_FILES], _NOT_SMALL)
    path = folder / file
    if not path.is_file():
        raise SourceError(f"{request.spec}: {repo} has no file {file!r}. {what_happened(folder)}")
    return _from_file(path, request, f"Name hf:{repo}.", folder)


def _from_hub(repo: str, request: Request, only: str = "") -> Source:
    """`hf:ORG/NAME`. `only`: the one format to take from a repository that holds several."""
    parts = repo.split("/", 2)
    if len(parts) == 3 and repo.endswith(_FILES) and not only:
        return _from_hub_file("/".join(parts[:2]), parts[2], request)
    folder = download(repo, request, _SMALL_FILES, _NOT_SMALL)
    loader = _format_of(folder, only)
    download(repo, request, [*loader.WEIGHTS, *loader.SHARDS])
    if request.allow_pickle and not any((folder / name).is_file() for name in loader.WEIGHTS):
        download(repo, request, list(loader.PICKLES))
    return _load(folder, repo.rpartition("/")[2], request, only)


def _from_openclip(rest: str, request: Request) -> Source:
    """`openclip:ARCH/TAG`, where TAG is a known tag, a Hub id, a weight file or a folder."""
    arch, slash, tag = rest.partition("/")
    if not slash or not tag:
        raise SourceError(
            f"{request.spec}: expected openclip:ARCH/TAG, e.g. openclip:ViT-B-32/laion2b_s34b_b79k."
        )
    openclip.known_arch(arch, request.spec)
    path = Path(tag).expanduser()
    if path.is_file():
        return openclip.load_file(path, arch, request)
    known = None
    if path.is_dir():
        source = openclip.load(path, path.resolve().name, request)
    elif (known := openclip.known_tag(arch, tag, request.spec)) is not None:
        source = _from_tag(known, arch, request)
    elif tag.count("/") == 1:
        source = _from_hub(tag, request, only="OpenCLIP")
    else:
        raise SourceError(
            f"{request.spec}: no such file, and {tag!r} is not a tag of {arch} that edgeclip knows. "
            "Name the Hub repository: openclip:ARCH/ORG/NAME."
        )
    openclip.check_arch(source, arch, known)
    return source


def _from_tag(tag: Tag, arch: str, request: Request) -> Source:
    """A repository that describes itself, or one that holds nothing but the tag's weights."""
    folder = download(tag.repository, request, _SMALL_FILES, _NOT_SMALL)
    if openclip.matches(folder):
        return _from_hub(tag.repository, request, only="OpenCLIP")
    file = tag.file or openclip.PICKLES[0]
    weights = ((f"{Path(file).stem}.safetensors",) if tag.file else openclip.WEIGHTS), (file,)
    for names in weights if request.allow_pickle else weights[:1]:
        download(tag.repository, request, list(names))
    name = tag.repository.rpartition("/")[2]
    return openclip.load_file(find_weights(folder, *weights), arch, request, tag, name)


def _from_nano(request: Request) -> Source:
    folder = Path(errors.__file__).parent / "assets" / "nano-source"
    if not folder.is_dir():
        raise SourceError(
            "nano: this installation holds nano's bundle, not its source. Train it with examples/nano, then name its folder."
        )
    return _load(folder, "nano", request)


# What stands before the colon of a spec.
SCHEMES: dict[str, Callable[[str, Request], Source]] = {"hf": _from_hub, "openclip": _from_openclip}


def _load(folder: Path, name: str, request: Request, only: str = "") -> Source:
    source: Source = _format_of(folder, only).load(folder, name, request)
    return source


def _format_of(folder: Path, only: str = "") -> ModuleType:
    for name, module_name in FORMATS.items():
        module = importlib.import_module(module_name)
        if only in ("", name) and module.matches(folder):
            return module
    raise SourceError(
        f"{folder}: no {only or 'known'} checkpoint ({', '.join(FORMATS)}). {what_happened(folder)}"
    )
