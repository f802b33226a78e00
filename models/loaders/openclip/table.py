"""What OpenCLIP's names stand for: the settings of each architecture, and what each pretrained tag of it is.

Facts of open_clip 3.3, as data: architectures.json holds each architecture's `model_cfg`, without what is open_clip's default;
tags.json each tag's Hub repository, its preprocessing (named in the same file), and whether it was trained with QuickGELU.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

QUICK = "-quickgelu"  # the suffix of an architecture whose weights were trained with QuickGELU


class Tag(NamedTuple):
    """Pretrained weights of an architecture."""

    repository: str  # ORG/NAME
    file: str  # the weights in it; "" = as OpenCLIP's repositories are laid out
    preprocess_cfg: dict[str, Any]
    quick_gelu: bool


def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return data


ARCHS = _read("architectures.json")
_TAGS = _read("tags.json")


def _tag(repository: str, preprocessing: str, activation: str = "") -> Tag:
    org, name, *file = repository.split("/")
    return Tag(
        f"{org}/{name}", "/".join(file), _TAGS["preprocessing"][preprocessing], activation == "quick_gelu"
    )


# "ARCH/TAG" -> what it is; an architecture's -quickgelu twin shares its tags
TAGS: dict[str, Tag] = {name: _tag(*facts) for name, facts in _TAGS["tags"].items()}


def model_config(name: str) -> dict[str, Any] | None:
    """The `model_cfg` of an architecture, as open_clip_config.json writes it; None for an unknown name."""
    found = ARCHS.get(name.removesuffix(QUICK))
    if found is None:
        return None
    own: dict[str, Any] = deepcopy(found)
    return {**own, "quick_gelu": own.get("quick_gelu", False) or name.endswith(QUICK)}


def find_tag(arch: str, tag: str) -> Tag | None:
    """A pretrained tag, in any spelling that open_clip takes; None for an unknown one."""
    return TAGS.get(f"{arch.removesuffix(QUICK)}/{tag.lower().replace('-', '_')}")


def repository(arch: str, tag: str) -> str | None:
    """The Hub repository of a tag."""
    found = find_tag(arch, tag)
    return found and found.repository


def shared_preprocessing(arch: str) -> dict[str, Any] | None:
    """The `preprocess_cfg` that all tags of an architecture agree on; None if they do not, or there are none."""
    own = f"{arch.removesuffix(QUICK)}/"
    found = [tag.preprocess_cfg for name, tag in TAGS.items() if name.startswith(own)]
    return found[0] if found and all(cfg == found[0] for cfg in found) else None
