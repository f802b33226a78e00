"""Another input size: position embeddings are resampled once, before the tower is traced or trained.

Every grid of positions is resampled as OpenCLIP and timm do it (bicubic with antialiasing, the class token's apart); transformers'
`interpolate_pos_encoding` takes another cubic and no antialiasing, and gives other vectors at sizes that a model was not trained at.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.bundle import Preprocessing
from edgeclip.errors import InputError
from edgeclip.models.clip import ImageTower
from edgeclip.models.detector import Detector, grid_bias
from edgeclip.models.pooled_vit import PooledVitTower
from edgeclip.models.resnet import STRIDE, ResNetTower
from edgeclip.models.source import Source
from edgeclip.models.timm_tower import TimmTower

Size = tuple[int, int]  # (H, W), pixels


def parse_size(text: str) -> Size:
    """ "256" or "256x320", height first. Raises InputError."""
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if found is None:
        raise InputError(f"--resolution: expected 256, or 256x320 (height first), got {text!r}.")
    return int(found[1]), int(found[2] or found[1])


def at_resolution(source: Source, size: Size) -> Source:
    """The same model for pictures of another size. Its `model_id` differs; the text tower is shared with `source`.

    Raises:
        InputError: no tower of pictures, a size that its patches do not divide, or a tower made for one size.
    """
    kind = "detector" if source.model.image is None else "image"
    spec, tower = source.preprocessing, getattr(source.model, kind, None)
    if spec is None or tower is None:
        raise InputError(f"--resolution: {source.spec} has no image tower. Export it without.")
    if size == spec.size:
        return source
    resize = RESIZE.get(type(tower))
    if resize is None:
        raise InputError(
            f"--resolution {_name(size)}: a {type(tower).__name__} takes pictures of {_name(spec.size)} only. Export it without."
        )
    with torch.no_grad():
        made = resize(tower, size)
    model = copy.copy(source.model)
    model._modules = {
        **source.model._modules,
        kind: made,
    }  # a copy of a module shares the table of its parts
    config: Any = model.config
    model.config = replace(config, **{kind: made.config})
    return replace(source, model=model, preprocessing=_preprocessing(spec, size))


def resample_grid(position: Tensor, old: Size, new: Size, prefix: int) -> Tensor:
    """(P + rows * columns, W) embeddings of one grid -> those of another; the P leading ones stay.

    Args:
        old, new: (rows, columns).
    """
    grid = position[prefix:].T.reshape(1, -1, *old)
    grid = F.interpolate(grid, new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([position[:prefix], grid.flatten(2)[0].T])


def _transformer(tower: ImageTower, size: Size) -> nn.Module:
    config = tower.config
    _divides(size, config.patch_size, "patches")
    wanted = replace(config, image_size=size)
    state = tower.state_dict()
    if tower.position is not None:
        state["position"] = resample_grid(tower.position, config.grid, wanted.grid, int(config.class_token))
    return _rebuilt(tower, wanted, state)


def _resnet(tower: ResNetTower, size: Size) -> nn.Module:
    _divides(size, STRIDE, "cells")
    wanted, state = replace(tower.config, image_size=size), tower.state_dict()
    state["pool.position"] = resample_grid(tower.pool.position, tower.config.grid, wanted.grid, 1)
    return _rebuilt(tower, wanted, state)


def _detector(tower: Detector, size: Size) -> nn.Module:
    """Its boxes start at another grid, which the new one makes for itself."""
    trunk = _transformer(tower.trunk, size)
    with torch.device("meta"):
        made = Detector(replace(tower.config, image=replace(tower.config.image, image_size=size)))
    state = {name: value for name, value in tower.state_dict().items() if not name.startswith("trunk.")}
    state |= {f"trunk.{name}": value for name, value in trunk.state_dict().items()}
    made.load_state_dict(state, assign=True)
    made.box_bias = grid_bias(made.config.image.grid)
    return made.requires_grad_(False).eval()


def _timm(tower: TimmTower, size: Size) -> nn.Module:
    """Without a change, if timm's own module takes pictures of that size: those of convolutions alone do."""
    made = copy.copy(tower)
    made.config = replace(tower.config, image_size=size)
    try:
        tower.eval()(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise InputError(
            f"--resolution {_name(size)}: {tower.config.model} takes pictures of {_name(tower.config.image_size)} only "
            f"({reason}). Export it without."
        ) from error
    return made


RESIZE: Mapping[type[nn.Module], Callable[[Any, Size], nn.Module]] = {
    ImageTower: _transformer,
    Detector: _detector,
    PooledVitTower: _transformer,
    ResNetTower: _resnet,
    TimmTower: _timm,
}


def _rebuilt(tower: Any, config: Any, state: dict[str, Tensor]) -> nn.Module:
    """A tower of another config that shares every tensor but those that changed."""
    projection = getattr(tower, "projection", None)
    width = tower.pool.out.out_features if isinstance(tower, ResNetTower) else 0
    with torch.device("meta"):
        made: nn.Module = type(tower)(config, width or (projection.out_features if projection else 1))
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False).eval()


def _preprocessing(spec: Preprocessing, size: Size) -> Preprocessing:
    """The shorter side of a picture keeps its proportion to the crop."""
    scaled = round(spec.resize * min(size) / min(spec.size))
    return replace(spec, size=size, resize=scaled if spec.resize else 0)


def _divides(size: Size, step: int, what: str) -> None:
    if any(side < step or side % step for side in size):
        raise InputError(
            f"--resolution {_name(size)}: expected multiples of {step} pixels, the side of the tower's {what}."
        )


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
