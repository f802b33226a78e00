"""CLIP's ResNets: faults that a comparison must catch, the training form, the graph, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import SourceError
from edgeclip.export import resnet_towers
from edgeclip.export.onnx_graph import count, trace
from edgeclip.export.targets import PORTABLE
from edgeclip.export.towers import tower_of
from edgeclip.models import resnet
from edgeclip.models.loaders.openclip.table import ARCHS
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from tests.checkpoints import fixed_pixels, openclip_config, write_openclip
from tests.families.resnet import TINY
from tests.models.agreement import TOLERANCE, assert_saves_and_loads, inputs, our_outputs, worst
from tests.mutants import broken

TEXT = {"width": 48, "heads": 4, "layers": 2, "vocab_size": 714}


def config(arch: str = "RN50-quickgelu", **image: Any) -> dict[str, Any]:
    return {**openclip_config(arch, None, {**TINY, **image}, TEXT), "embed_dim": 32}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Any, Source]:
    """-> (open_clip's model, ours)."""
    model = write_openclip(tmp_path, config())
    return model, load_source(str(tmp_path))


def rows(encode: Callable[[torch.Tensor], torch.Tensor], source: Source) -> torch.Tensor:
    assert source.preprocessing is not None
    with torch.no_grad():
        found = encode(fixed_pixels(3, *source.preprocessing.size))
    return torch.nn.functional.normalize(found, dim=-1)


# where, function, what stands there -> what the fault makes of it
MODEL_FAULTS = {
    "no positions in the attention pool": (
        resnet.AttentionPool, "forward", "x], dim=1) + self.position", "x], dim=1)",
    ),
    "the first cell asks instead of the mean": (resnet.AttentionPool, "forward", "self.q(x[:, :1])", "self.q(x[:, 1:2])"),
    "every second pixel instead of averages": (
        resnet.Bottleneck, "forward", "F.avg_pool2d(y, self.stride)", "y[:, :, :: self.stride, :: self.stride]",
    ),
    "largest values instead of averages": (resnet.ResNetTower, "forward", "F.avg_pool2d(x, 2)", "F.max_pool2d(x, 2)"),
    "no activation after the sum": (resnet.Bottleneck, "forward", "return F.relu(y +", "return (y +"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_planted_faults_exceed_the_tolerance(
    fault: str, tiny: tuple[Any, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = tiny
    want = rows(model.encode_image, source)
    assert worst((want,), (rows(source.model.encode_image, source),))[0] < TOLERANCE
    owner, name, old, new = MODEL_FAULTS[fault]
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
    assert worst((want,), (rows(source.model.encode_image, source),))[0] > 20 * TOLERANCE


EXPORT_FAULTS = {
    "folded without the running mean": (
        resnet_towers, "fold", "norm.bias.double() - norm.running_mean.double() * gain", "norm.bias.double()",
    ),
    "folded without the running variance": (resnet_towers, "fold", "norm.running_var.double()", "torch.ones(1).double()"),
    "another epsilon": (resnet_towers, "fold", "BatchNorm.EPS", "1e-3"),
    "no positions in the attention pool": (
        resnet_towers._Pool, "forward", "x], dim=1) + self.position", "x], dim=1)",
    ),
    "the scale of the scores forgotten": (
        resnet_towers._Pool, "forward", "self.q(x[:, :1])", "self.q(x[:, :1]) * 64**0.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", EXPORT_FAULTS)
def test_faults_of_the_traceable_form_exceed_the_tolerance(
    fault: str, tiny: tuple[Any, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = tiny
    want = rows(source.model.encode_image, source)
    assert worst((want,), (rows(tower_of(source, "image").module, source),))[0] < TOLERANCE
    owner, name, old, new = EXPORT_FAULTS[fault]
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
    assert worst((want,), (rows(tower_of(source, "image").module, source),))[0] > 2 * TOLERANCE


def test_quick_gelu_is_the_text_towers(tmp_path: Path) -> None:
    """The twins differ in the text tower alone: a ResNet has no GELU."""
    model = write_openclip(tmp_path, config())
    pixels, ids = inputs(load_source(str(tmp_path)))
    theirs = our_outputs(model, pixels, ids)
    edit(tmp_path, quick_gelu=False)
    image, text = worst(theirs, our_outputs(load_source(str(tmp_path)).model, pixels, ids))
    assert image < TOLERANCE
    assert text > 20 * TOLERANCE


def test_the_training_form_is_open_clips(tiny: tuple[Any, Source]) -> None:
    """Statistics of the batch while training, and the running ones move as theirs do."""
    model, source = tiny
    for module in model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = resnet.BatchNorm.MOMENTUM
    assert source.model.image is not None
    theirs, ours = model.visual.train(), source.model.image.train()
    pixels = fixed_pixels(3, 64, 64)
    want, got = theirs(pixels), ours(pixels)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    want.sum().backward(), got.sum().backward()
    norm = ours.stem[0].norm
    torch.testing.assert_close(norm.running_mean, theirs.bn1.running_mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad, theirs.bn1.weight.grad, rtol=1e-3, atol=1e-4)


def test_the_graph_computes_one_query_and_no_norm(tiny: tuple[Any, Source]) -> None:
    tower = tower_of(tiny[1], "image", ("decomposed",))
    model, _ = trace(tower, PORTABLE)
    counts = count(model)
    assert counts.get("BatchNormalization", 0) == 0
    assert counts["Conv"] == 3 + 3 * 5 + 4
    assert (counts["linears"], counts["attentions"]) == (3, 1)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    scores = softmax.outputs[0].shape
    assert isinstance(scores, ir.Shape)
    assert tuple(scores)[1:] == (8, 1, 5), "heads, one query, the mean and four cells"


@pytest.mark.parametrize("counted", [True, False])
def test_openais_own_files(counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three scalars beside the weights; counts of batches may be there or not."""
    monkeypatch.setitem(ARCHS, "RN-tiny", {**config(), "quick_gelu": False})
    model = write_openclip(tmp_path, config())
    state = load_file(tmp_path / "open_clip_model.safetensors")
    assert any(name.endswith("num_batches_tracked") for name in state)
    if not counted:
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    file = tmp_path / "RN-tiny.safetensors"
    save_file({**state, "input_resolution": torch.tensor(64), "vocab_size": torch.tensor(714)}, file)
    with pytest.raises(SourceError, match="name the architecture RN-tiny-quickgelu"):
        load_source(f"openclip:RN-tiny/{file}")
    source = load_source(f"openclip:RN-tiny-quickgelu/{file}")
    pixels, ids = inputs(source)
    assert max(worst(our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))) < TOLERANCE


def test_edgeclips_own_checkpoint(tiny: tuple[Any, Source], tmp_path: Path) -> None:
    assert_saves_and_loads(tiny[1], tmp_path / "ours")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        section = data["model_cfg"] if key in data["model_cfg"] else data["model_cfg"]["vision_cfg"]
        section[key] = value
    path.write_text(json.dumps(data))


DAMAGE = {
    "three stages": ({"layers": [1, 1, 1]}, r"layers is \[1, 1, 1\], expected the depths of four stages"),
    "no depth": ({"layers": [1, 0, 1, 1]}, "expected the depths of four stages"),
    "a size that strides do not divide": (
        {"image_size": 72},
        r"\(72, 72\), expected a square .* multiple of 32",
    ),
    "a rectangle": ({"image_size": [64, 96]}, "expected a square"),
    "another size": (
        {"image_size": 96},
        r"attnpool.positional_embedding' has shape \(5, 512\), .* \(10, 512\)",
    ),
    "fewer blocks": ({"layers": [1, 1, 1, 1]}, "visual.layer2.1.* has no place"),
    "patches": ({"patch_size": 16}, "patch_size is 16, which a ResNet has none of"),
    "a class token": ({"pool_type": "tok"}, "pool_type = 'tok' describes a model"),
    "another head width": ({"head_width": 100}, "heads do not divide"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, tmp_path: Path) -> None:
    write_openclip(tmp_path, config())
    changes, message = DAMAGE[damage]
    edit(tmp_path, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)
