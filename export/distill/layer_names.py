"""Linear layers of a canonical tower and of its graph: the same ones under two names, and what stands before each."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeclip.errors import CheckFailed
from edgeclip.export.linears import Array
from edgeclip.models.clip import ImageTower, MapHead, TextTower

_BLOCK = re.compile(r"(blocks\.\d+)\.(qkv|out|mlp\.fc1|mlp\.fc2)\.weight")


@dataclass(frozen=True)
class Place:
    """Where a graph's layer is in the tower, and what can take factors off its input's channels."""

    module: str  # name in the tower
    norm: str = ""  # of the LayerNorm that makes its input; "": none does
    values: str = (
        ""  # of the layer whose last outputs are the values that attention makes its input of; "": none
    )


def places(tower: nn.Module) -> dict[str, Place]:
    """A canonical tower's layers by their names in its graph (export/linears.Linear.name): what may be finished in int8.

    The projection and an attention pooler's are left out: the compressor leaves the former float, and the latter are two layers in one.
    """
    if not isinstance(tower, (ImageTower, TextTower)):
        return {}
    found: dict[str, Place] = {}
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            place = _place(name, tower)
            if place is not None:
                found[place[0]] = place[1]
    return found


def _place(name: str, tower: ImageTower | TextTower) -> tuple[str, Place] | None:
    graph = f"{name.replace('.attention.', '.')}.weight"
    if found := _BLOCK.fullmatch(graph):
        block, kind = found.groups()
        return graph, {
            "qkv": Place(name, norm=f"{block}.norm1"),
            "out": Place(name, values=f"{block}.attention.qkv"),
            "mlp.fc1": Place(name, norm=f"{block}.norm2"),
            "mlp.fc2": Place(name),
        }[kind]
    if not (isinstance(tower, ImageTower) and isinstance(tower.head, MapHead)):
        return None
    heads = {
        "head.kv": Place(name, norm="norm_post" if tower.norm_post is not None else ""),
        "head.out": Place(name, values="head.kv"),
        "head.mlp.fc1": Place(name, norm="head.norm"),
        "head.mlp.fc2": Place(name),
    }
    return (graph, heads[name]) if name in heads else None


@torch.no_grad()
def take_factors(tower: nn.Module, place: Place, by: Tensor) -> None:
    """Multiply what a layer does to each input channel, and divide the channel where it is made: the same function. by: (K,) powers of two."""
    layer = tower.get_submodule(place.module)
    assert isinstance(layer, nn.Linear)
    layer.weight.mul_(by)
    if place.norm:
        norm = tower.get_submodule(place.norm)
        assert isinstance(norm, nn.LayerNorm)
        norm.weight.div_(by)
        norm.bias.div_(by)
    elif place.values:
        maker = tower.get_submodule(place.values)
        assert isinstance(maker, nn.Linear)
        maker.weight[-len(by) :].div_(by[:, None])
        if maker.bias is not None:
            maker.bias[-len(by) :].div_(by)
    else:
        raise CheckFailed(f"{place.module}: its input was scaled where nothing can be. Please report it.")


def output_factors(tower: nn.Module, place: Place, weight: Array) -> Tensor:
    """(M,): by how much a graph's layer gives more than the tower's own; the export folds attention's scale into queries.

    Args:
        weight: (K, M), the graph's.
    Raises:
        CheckFailed: the two layers differ by something else.
    """
    layer = tower.get_submodule(place.module)
    assert isinstance(layer, nn.Linear)
    ours, theirs = layer.weight.detach(), torch.from_numpy(weight.T.copy())
    if ours.shape == theirs.shape:
        top = ours.abs().argmax(dim=1, keepdim=True)
        factors = torch.where(ours.gather(1, top) == 0, 1.0, theirs.gather(1, top) / ours.gather(1, top))
        if torch.allclose(ours * factors, theirs, rtol=1e-6, atol=0):
            return factors[:, 0]
    raise CheckFailed(f"{place.module}: the graph holds another layer than the tower. Please report it.")
