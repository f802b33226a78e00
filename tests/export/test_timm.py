"""Graphs of timm's towers: branches merged, norms folded, angles constant; faults in the traceable form; what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgeclip.errors import CheckFailed
from edgeclip.export import timm_towers
from edgeclip.export.onnx_graph import capture, count, write
from edgeclip.export.towers import tower_of
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.timm_tower import merge_branches
from tests.checkpoints import fixed_pixels
from tests.families import mobileclip, openclip_timm
from tests.families.openclip_timm import TINY_DIM
from tests.models.agreement import TOLERANCE
from tests.mutants import broken

MODELS = {**mobileclip.MODELS, **openclip_timm.MODELS}


class Sources(dict[str, Source]):
    """Small sources by the name of their model, written when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Source:
        self[name] = load_source(MODELS[name](self.folder / name, "tiny").spec)
        for module in self[name].model.image.modules():  # type: ignore[union-attr]
            products = getattr(module, "qkv", None)
            # fresh weights attend to everything alike, and would hide what is wrong there; wide ones made sharp amplify noise
            if isinstance(products, nn.Linear) and products.in_features == TINY_DIM:
                products.weight.data.mul_(8)
        return self[name]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


def rows(module: nn.Module, source: Source) -> torch.Tensor:
    assert source.preprocessing is not None
    with torch.no_grad():
        return nn.functional.normalize(module(fixed_pixels(3, *source.preprocessing.size)), dim=-1)


def apart(source: Source) -> float:
    """Largest difference between a tower and its traceable form."""
    assert source.model.image is not None
    traceable = tower_of(source, "image").module
    return float((rows(source.model.image, source) - rows(traceable, source)).abs().max())


# model, owner, function, what stands there, what the fault makes of it
FAULTS = {
    "turned the other way": (
        "EVA02-B-16", timm_towers, "_rotation", "[-torch.ones(d // 2), torch.ones(d // 2)]", "[torch.ones(d // 2), -torch.ones(d // 2)]",
    ),
    "halves where timm has neighbours": ("EVA02-B-16", timm_towers, "_rotation", "torch.arange(d).view(-1, 2).T.flatten()", "torch.arange(d)"),
    "the class token rotated": ("EVA02-B-16", timm_towers, "_rotation", "rest + 1", "rest"),
    "keys that are not rotated": ("PE-Core-T-16-384", timm_towers._Attention, "forward", "k = self._rotated(k)", "pass"),
    "biases of queries forgotten": ("PE-Core-T-16-384", timm_towers, "_joined", "joined.bias.copy_(torch.cat(biases))", "joined.bias.zero_()"),
    "the norm of the output forgotten": ("EVA02-B-16", timm_towers._Attention, "forward", "self.norm(", "("),
    "another token pooled": ("EVA02-B-16", timm_towers._Attention, "forward", "q[:, :, :1]", "q[:, :, 1:2]"),
    "no feed-forward in the last block": ("MobileCLIP-B", timm_towers._LastBlock, "forward", "x + self.mlp(self.norm2(x))", "x"),
    "no relative positions": ("vit_relpos_medium_patch16_cls_224", timm_towers._Attention, "forward", ", self.bias", ""),
    "a scale that misses the bias": ("convnext_base_w", timm_towers, "_fold_scales", "layer.bias.mul_(gain.flatten())", "pass"),
    "a norm folded into a shared convolution": (
        "MobileCLIP-S1", timm_towers, "_fold_batch_norms", " and uses[id(tensors[0])] == 1", "",
    ),
    "a norm folded without its mean": ("MobileCLIP-S1", timm_towers, "_after", "norm.bias - norm.running_mean * gain", "norm.bias"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_traceable_form_exceed_the_tolerance(
    fault: str, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, owner, function, old, new = FAULTS[fault]
    assert apart(sources[name]) < TOLERANCE
    monkeypatch.setattr(owner, function, broken(getattr(owner, function), old, new))
    assert apart(sources[name]) > 2 * TOLERANCE


def test_a_tower_whose_branches_are_not_merged_is_refused(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_towers, "merge_branches", copy.deepcopy)
    with pytest.raises(
        CheckFailed, match=r"\d+ batch norms of fastvit_mci1.* branches were not merged"
    ) as caught:
        tower_of(sources["MobileCLIP-S1"], "image")
    assert "\n" not in str(caught.value)


def graph(source: Source) -> ir.Model:
    tower = tower_of(source, "image", ("decomposed",))
    model, reports = write(capture(tower), tower, tower.flavours[0])  # holds it against what is expected
    assert not [miss for report in reports for miss in report.near_misses]
    return model


def weights(model: ir.Model) -> dict[str, Any]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value
    }


def test_merged_once_or_twice_the_tower_is_the_same(sources: Sources) -> None:
    """A checkpoint with its branches, the same exported again, and one whose branches were merged before it was saved."""
    source = sources["MobileCLIP-S1"]
    tower: Any = source.model.image
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    first = tower_of(source, "image")
    torch.testing.assert_close(tower.state_dict(), before, rtol=0, atol=0)
    merged = copy.deepcopy(source)
    merged.model.image.trunk = merge_branches(tower.trunk)  # type: ignore[union-attr]
    for again in (tower_of(source, "image"), tower_of(merged, "image")):
        torch.testing.assert_close(again.module.state_dict(), first.module.state_dict(), rtol=0, atol=0)
        assert again.expected == first.expected
    counts = count(graph(source))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in merge_branches(tower.trunk).modules())
    assert (counts.get("BatchNormalization", 0), counts["Conv"]) == (0, convolutions)
    assert convolutions < sum(isinstance(m, nn.Conv2d) for m in tower.trunk.modules())


def test_angles_are_constants_and_the_last_block_computes_one_token(sources: Sources) -> None:
    source = sources["EVA02-B-16"]
    model = graph(source)
    counts = count(model)
    assert not {"Sin", "Cos", "Range", "ScatterND", "GatherND"} & counts.keys()
    assert sum(array.shape == (5, 16) for array in weights(model).values()) == 2  # once for both blocks
    norms = sum(isinstance(module, nn.LayerNorm) for module in source.model.image.modules())  # type: ignore[union-attr]
    assert counts["LayerNormalization"] == norms
    last = [node for node in model.graph if node.op_type == "Softmax"][-1]
    assert tuple(last.outputs[0].shape or ())[1:] == (4, 1, 5), "heads, the class token, all tokens"


def test_norms_over_channels_are_one_operator_each(sources: Sources) -> None:
    source = sources["convnext_base_w"]
    counts = count(graph(source))
    norms = sum(isinstance(module, nn.LayerNorm) for module in source.model.image.modules())  # type: ignore[union-attr]
    assert (counts["LayerNormalization"], counts["ReduceMean"]) == (norms, 1)
    assert not {"Shape", "Range", "Gather", "Sqrt", "Pow"} & counts.keys()
