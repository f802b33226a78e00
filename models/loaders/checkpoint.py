"""Weights from files, checked: whole, finite, every tensor used and every parameter filled."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.errors import SourceError
from edgeclip.files import sha256_file

_LFS_MARK = b"version https://git-lfs"
_FLOATS = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)  # 8 bits need a scale that we do not know
_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True)
class Rule:
    """How one parameter is made from the checkpoint's tensors."""

    sources: tuple[str, ...]  # stacked along the first axis, e.g. the weights of query, key and value
    transpose: bool = False  # the checkpoint holds x @ W, ours is a linear layer
    gain: str = ""  # LayerScale vector that multiplies the output rows; "" = none
    rows: slice | None = None  # of the checkpoint's tensor, e.g. a third of a packed projection; None = all


@dataclass(frozen=True)
class Weights:
    """All tensors of a checkpoint and the digest of the files that held them."""

    where: str  # names the file or folder in messages
    tensors: dict[str, Tensor]
    digest: str  # SHA-256


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SourceError if it is missing, damaged or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}). Is the download complete?") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({error}). The file is damaged: fetch it again.") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


def find_weights(folder: Path, names: tuple[str, ...], pickles: tuple[str, ...]) -> Path:
    """The first of `names` that the folder holds, else of `pickles` (which `read_weights` may refuse).

    Raises:
        SourceError: there is none; says whether a download was cut short.
    """
    for name in (*names, *pickles):
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{folder}: expected one of {', '.join(names)}, found none. {what_happened(folder)}")


def what_happened(folder: Path) -> str:
    """Why a file may be missing: the Hub's downloads leave *.incomplete behind where they were cut short."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":  # of the Hub's own cache, which keeps contents apart
        places.append(folder.parent.parent / "blobs")
    cut = next((path for place in places for path in sorted(place.glob("*.incomplete"))), None)
    return f"{cut}: the download was cut short. Run it again." if cut else "Is the download complete?"


def read_weights(path: Path, *, allow_pickle: bool = False) -> Weights:
    """Read a safetensors file, a sharded checkpoint's index, or (where allowed) a pickle of tensors.

    Raises:
        SourceError: a file is missing, cut short, a git-lfs pointer, or a pickle that is not allowed.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return Weights(str(path), _read_safetensors(path), sha256_file(path))
    check_allowed(path, allow_pickle)
    return Weights(str(path), _read_pickle(path), sha256_file(path))


def check_allowed(path: Path, allow_pickle: bool) -> None:
    """Raises SourceError for a file that is read as a pickle, unless pickles are allowed."""
    if path.suffix != ".safetensors" and not allow_pickle:
        raise SourceError(
            f"{path}: a pickle, which can run code when it is opened. "
            "Pass --allow-pickle to read its tensors only, or convert it to safetensors."
        )


def check_whole(path: Path) -> None:
    """Raises SourceError for a file that is missing, empty, or a git-lfs pointer."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file. Is the download complete?")
    with path.open("rb") as stream:
        head = stream.read(len(_LFS_MARK))
    if not head:
        raise SourceError(f"{path}: the file is empty. Fetch it again.")
    if head == _LFS_MARK:
        raise SourceError(f"{path}: a git-lfs pointer, not the weights. Run `git lfs pull` in that folder.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_whole(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: damaged or cut short ({reason}). Fetch it again.") from error


def _read_shards(index: Path) -> Weights:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise SourceError(f"{index}: expected a weight_map of tensor names to files. Fetch it again.")
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SourceError(f"{index}: expected safetensors files beside it, got {name!r}.")
        tensors |= _read_safetensors(index.parent / name)
        digest.update(f"{name} {sha256_file(index.parent / name)}\n".encode())
    if missing := sorted(set(places) - set(tensors)):
        raise SourceError(
            f"{index}: tensor {missing[0]!r} is not in {places[missing[0]]}. Fetch that file again."
        )
    return Weights(str(index), tensors, digest.hexdigest())


def _read_pickle(path: Path) -> dict[str, Tensor]:
    check_whole(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise SourceError(
            f"{path}: not a plain pickle of tensors ({str(error).strip().splitlines()[0]}). "
            "Save its state_dict() as safetensors."
        ) from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if (
        not isinstance(data, dict)
        or not data
        or not all(isinstance(value, Tensor) for value in data.values())
    ):
        raise SourceError(f"{path}: expected a state dict of tensors, got {type(data).__name__}.")
    return {str(name).removeprefix("module."): tensor for name, tensor in data.items()}


def renamed(weights: Weights, patterns: Mapping[str, str]) -> Weights:
    """The same tensors under other names. `patterns`: regular expression -> what stands for it."""
    tensors = {}
    for name, tensor in weights.tensors.items():
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        tensors[name] = tensor
    return Weights(weights.where, tensors, weights.digest)


def paired(modules: dict[str, str]) -> dict[str, Rule]:
    """Rules for the weight and bias of modules: ours -> theirs."""
    return {
        f"{ours}.{kind}": Rule((f"{theirs}.{kind}",))
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def fill(
    make: Callable[[], _M], weights: Weights, rules: Mapping[str, Rule], ignorable: Callable[[str], bool]
) -> _M:
    """Build the model without initialising it and give it the checkpoint's weights in fp32.

    Args:
        make: builds the model from its config; called with PyTorch's default device set to "meta".
        rules: where an entry of the model's state dict comes from; one that is not named keeps its own name.
        ignorable: says of a tensor's name whether the model can do without it.
    Returns:
        The model in eval mode, every parameter owning its memory.
    Raises:
        SourceError: a tensor is missing, left over, of another shape, or holds NaN or infinity (gives its name); or the
            config describes a model that cannot be built at all.
    """
    try:
        with torch.device("meta"):
            model = make()
    except (AssertionError, ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SourceError(
            f"{weights.where}: its config describes no model that can be built ({reason})."
        ) from error
    wanted = model.state_dict()
    chosen = {key: rules.get(key, Rule((key,))) for key in wanted}
    used = {name for rule in chosen.values() for name in (*rule.sources, rule.gain)}
    left = sorted(name for name in weights.tensors if name not in used and not ignorable(name))
    missing = sorted(used - set(weights.tensors) - {""})
    if missing:
        hint = f" It holds {left[0]!r}, which the config does not speak of." if left else ""
        raise SourceError(f"{weights.where}: tensor {missing[0]!r} is missing ({len(missing)} in all).{hint}")
    if left:
        raise SourceError(
            f"{weights.where}: tensor {left[0]!r} has no place in the model that the config describes "
            f"({len(left)} in all). Config and weights do not belong together."
        )
    state = {key: _assemble(weights, chosen[key], like) for key, like in wanted.items()}
    model.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):
        _make_buffers(model, make)
    return model.eval()


def _make_buffers(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Buffers that no checkpoint holds, such as tables of angles, as the modules themselves compute them."""
    with torch.random.fork_rng(devices=[]):
        made = dict(make().named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_buffer(last, made[name], persistent=False)


def _assemble(weights: Weights, rule: Rule, like: Tensor) -> Tensor:
    parts = [_part(weights, name, rule, like) for name in rule.sources]
    joined = torch.cat(parts) if len(parts) > 1 else parts[0]
    if rule.gain:
        gain = weights.tensors[rule.gain].float()
        joined = joined * gain.reshape(-1, *[1] * (joined.ndim - 1))
    return joined.contiguous()


def _part(weights: Weights, name: str, rule: Rule, like: Tensor) -> Tensor:
    tensor = weights.tensors[name]
    if rule.rows is not None and tensor.ndim:
        tensor = tensor[rule.rows]
    shape = tuple(like.shape)
    while tensor.ndim > len(shape) and len(tensor) == 1:  # learned tokens are often stored as a batch of one
        tensor = tensor[0]
    if len(rule.sources) > 1:
        shape = (shape[0] // len(rule.sources), *shape[1:])
    asked = shape[::-1] if rule.transpose else shape
    if tuple(tensor.shape) != asked and not (tensor.numel() == 1 and like.numel() == 1):
        raise SourceError(
            f"{weights.where}: tensor {name!r} has shape {tuple(tensor.shape)}, its config asks for {asked}. "
            "Config and weights do not belong together."
        )
    if like.is_floating_point() and tensor.dtype not in _FLOATS:
        raise SourceError(
            f"{weights.where}: tensor {name!r} is {tensor.dtype}, expected floating point of 16 bits or more."
        )
    if not torch.isfinite(tensor).all():
        raise SourceError(
            f"{weights.where}: tensor {name!r} holds NaN or infinity. The checkpoint is damaged."
        )
    tensor = tensor.to(like.dtype, copy=True)
    return tensor.T if rule.transpose else tensor.reshape(shape)
