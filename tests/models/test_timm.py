"""OpenCLIP's timm towers: which become the canonical one, faults that a comparison must catch, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import MissingExtraError, SourceError
from edgeclip.models import clip
from edgeclip.models.config import ImageConfig
from edgeclip.models.loaders.openclip import read_config
from edgeclip.models.loaders.openclip.table import model_config
from edgeclip.models.sources import load_source
from edgeclip.models.timm_tower import TimmConfig, merge_branches
from tests.checkpoints import fixed_pixels, openclip_config, write_openclip
from tests.families import Written, mobileclip, openclip_siglip, openclip_timm
from tests.families.openclip_models import TINY_TEXT
from tests.families.openclip_timm import shallow
from tests.models.agreement import TOLERANCE, assert_saves_and_loads, worst
from tests.mutants import broken

MODELS = {**openclip_siglip.MODELS, **mobileclip.MODELS, **openclip_timm.MODELS}
WEIGHTS = "open_clip_model.safetensors"


def rows(encode: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.functional.normalize(encode(fixed_pixels(3, *size)), dim=-1)


def apart(written: Written, model: Any) -> float:
    """Largest difference of unit image vectors between the library and a model of ours."""
    assert written.image is not None
    size = model.config.image.image_size
    return worst((rows(written.image, size),), (rows(model.encode_image, size),))[0]


# architecture -> activation, epsilon, pool, whether a norm stands before the blocks, width of the feed-forward
CANONICAL = {
    "ViT-B-16-SigLIP": ("gelu", 1e-6, "map", False, 3072),
    "ViT-B-16-SigLIP2-512": ("gelu", 1e-6, "map", False, 3072),
    "ViT-B-32-SigLIP2-256": ("gelu_tanh", 1e-6, "map", False, 3072),
    "ViT-SO400M-14-SigLIP-378": ("gelu", 1e-6, "map", False, 4304),
    "ViT-gopt-16-SigLIP2-384": ("gelu_tanh", 1e-6, "map", False, 6144),
    "MobileCLIP2-L-14": ("gelu", 1e-5, "cls", True, 4096),
}


@pytest.mark.parametrize("arch", CANONICAL)
def test_a_plain_vision_transformer_becomes_the_canonical_one(arch: str) -> None:
    image = read_config(model_config(arch), arch, logit_bias=True).image
    assert isinstance(image, ImageConfig)
    blocks = image.blocks
    found = (blocks.activation, blocks.norm_eps, image.pool, image.norm_pre, blocks.mlp_width)
    assert found == CANONICAL[arch]
    assert image.projection is (arch == "MobileCLIP2-L-14")


POOLS = {
    **{"MobileCLIP-B": "cls", "MobileCLIP-S1": "avg", "MobileCLIP2-S3": "avg", "PE-Core-B-16": "map"},
    **{
        "EVA02-L-14": "cls",
        "convnext_base": "avg",
        "ViTamin-S": "avg",
        "swin_base_patch4_window7_224": "avg",
    },
}


@pytest.mark.parametrize("arch", POOLS)
def test_every_other_trunk_stays_timms(arch: str) -> None:
    image = read_config(model_config(arch), arch, logit_bias=False).image
    assert isinstance(image, TimmConfig)
    assert image.model == openclip_config(arch, layers=None)["vision_cfg"]["timm_model_name"]
    assert image.pool == POOLS[arch]


def _norms(tower: Any, eps: float) -> None:
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


def _tanh(tower: Any) -> None:
    for module in tower.modules():
        if isinstance(module, clip.Mlp):
            module.activation = "gelu_tanh"


def _unturned(tower: Any) -> None:
    tower.trunk.rope.pos_embed.zero_()
    tower.trunk.rope.pos_embed[:, tower.trunk.rope.pos_embed.shape[1] // 2 :] = 1


# what is done to a loaded tower, model
FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tanh for the exact GELU": (_tanh, "ViT-B-16-SigLIP"),
    "OpenCLIP's epsilon": (lambda tower: _norms(tower, 1e-5), "ViT-B-16-SigLIP"),
    "another query": (lambda tower: tower.head.probe.data.mul_(4), "ViT-B-16-SigLIP"),
    "no norm before the pool": (lambda tower: setattr(tower, "norm_post", None), "ViT-B-16-SigLIP"),
    "timm's epsilon": (lambda tower: _norms(tower, 1e-6), "MobileCLIP2-L-14"),
    "no norm before the blocks": (lambda tower: setattr(tower, "norm_pre", None), "MobileCLIP2-L-14"),
    "patches that are not rotated": (_unturned, "EVA02-B-16"),
    "no mean in the pool": (lambda tower: setattr(tower.trunk, "global_pool", "token"), "ViTamin-S"),
    "an epsilon of ConvNeXt": (lambda tower: _norms(tower, 1e-5), "convnext_base_w"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_exceed_the_tolerance(fault: str, tmp_path: Path) -> None:
    plant, name = FAULTS[fault]
    written = MODELS[name](tmp_path, "tiny")
    model = load_source(written.spec).model
    assert apart(written, model) < TOLERANCE
    plant(model.image)
    assert apart(written, model) > 2 * TOLERANCE


def test_the_pools_residual_stands_before_its_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = MODELS["ViT-B-16-SigLIP"](tmp_path, "tiny")
    mutant = broken(
        clip.MapHead.forward, "(y + self.mlp(self.norm(y)))", "(self.norm(y) + self.mlp(self.norm(y)))"
    )
    monkeypatch.setattr(clip.MapHead, "forward", mutant)
    assert apart(written, load_source(written.spec).model) > 20 * TOLERANCE


def mobile(folder: Path) -> Any:
    """A small MobileCLIP 2 S0 folder. -> open_clip's model."""
    name = shallow("fastvit_mci0", **mobileclip.TINY)
    config = openclip_config(
        "MobileCLIP2-S0", None, {"timm_model_name": name, "image_size": 64}, {**TINY_TEXT, "layers": 2}
    )
    return write_openclip(folder, {**config, "embed_dim": 32})


def test_loading_keeps_the_training_form(tmp_path: Path) -> None:
    model = mobile(tmp_path)
    tower: Any = load_source(str(tmp_path)).model.image
    assert tower.config.merged is False
    assert dict(tower.trunk.named_parameters()).keys() == dict(model.visual.trunk.named_parameters()).keys()
    want, got = model.visual.train()(fixed_pixels(3, 64, 64)), tower.train()(fixed_pixels(3, 64, 64))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


@pytest.mark.parametrize("counted", [True, False])
def test_a_checkpoint_whose_branches_are_merged(counted: bool, tmp_path: Path) -> None:
    """As MobileCLIP's authors publish them; counts of batches may be there or not."""
    model = mobile(tmp_path)
    want = rows(model.encode_image, (64, 64))
    model.visual.trunk = merge_branches(model.visual.trunk)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if counted or "num_batches" not in name
    }
    assert any("reparam_conv" in name for name in state)
    save_file(state, tmp_path / WEIGHTS)
    source = load_source(str(tmp_path))
    assert source.model.config.image.merged is True
    assert worst((want,), (rows(source.model.encode_image, (64, 64)),))[0] < TOLERANCE
    once = source.model.image.trunk
    torch.testing.assert_close(merge_branches(once).state_dict(), once.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["MobileCLIP-S1", "EVA02-B-16", "ViT-B-16-SigLIP"])
def test_edgeclips_own_checkpoint(name: str, tmp_path: Path) -> None:
    source = load_source(MODELS[name](tmp_path / "theirs", "tiny").spec)
    assert_saves_and_loads(source, tmp_path / "ours")
    again = load_source(str(tmp_path / "ours")).model
    size = again.config.image.image_size
    assert worst((rows(source.model.encode_image, size),), (rows(again.encode_image, size),))[0] == 0


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    written = MODELS["EVA02-B-16"](tmp_path, "tiny")
    before = torch.random.get_rng_state()
    load_source(written.spec)
    assert torch.equal(before, torch.random.get_rng_state())


# settings of the image tower over those of a small ConvNeXt -> what is said
DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "a name that timm does not have": ({"timm_model_name": "convnext_nano_moe"}, "has no model of that name"),
    "a repository instead of a name": (
        {"timm_model_name": "hf-hub:someone/something"}, "'hf-hub:someone/something' .* has no model of that name",
    ),
    "a projection of another kind": ({"timm_proj": "conv"}, "timm_proj is 'conv', expected one of linear, mlp, none"),
    "a pool that the trunk does not have": ({"timm_pool": "map"}, "timm makes no tower .* timm_pool 'map'"),
    "no pool at all": ({"timm_pool": "", "timm_proj": None}, r"makes \(64, 2, 2\) of a picture, expected the 64 numbers"),
    "no projection": ({"timm_proj": "none", "timm_pool": "avg"}, r"makes \(48,\) of a picture, expected the 64 numbers of"),
    "another projection": ({"timm_proj": "mlp"}, "visual.head.mlp.fc1.bias' is missing"),
    "an unknown setting": ({"timm_gain": 2}, "timm_gain = 2 describes a model"),
    "a setting of a ViT": ({"pool_type": "tok"}, "pool_type = 'tok' describes a model"),
    "another trunk": ({"timm_model_name": "resnet18"}, "tensor 'visual.trunk.* is missing"),
    "a wider trunk": ({"timm_model_name": "test_convnext2"}, "visual.trunk.* has shape"),
    "a number for a name": ({"timm_model_name": 7}, "timm_model_name: expected str, got 7"),
    "a size that is none": ({"image_size": "large"}, "image_size: expected"),
}  # fmt: skip


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convnext")
    MODELS["convnext_base_w"](folder, "tiny")
    return folder


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    """The folder with other settings of the image tower."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    data = json.loads((target / "open_clip_config.json").read_text())
    data["model_cfg"]["vision_cfg"].update(changes)
    (target / "open_clip_config.json").write_text(json.dumps(data))
    return target


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, convnext: Path, tmp_path: Path) -> None:
    changes, message = DAMAGE[damage]
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(edited(convnext, tmp_path, **changes)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_another_resolution_of_a_vision_transformer_is_refused(tmp_path: Path) -> None:
    MODELS["ViT-B-16-SigLIP"](tmp_path / "source", "tiny")
    with pytest.raises(SourceError, match=r"timm makes no tower of .* for pictures of \(48, 48\)"):
        load_source(str(edited(tmp_path / "source", tmp_path / "other", image_size=48)))


def test_a_convolutional_tower_takes_any_resolution(convnext: Path, tmp_path: Path) -> None:
    source = load_source(str(edited(convnext, tmp_path, image_size=96)))
    assert source.preprocessing is not None
    assert source.preprocessing.size == (96, 96)


def test_settings_of_training_say_nothing(convnext: Path, tmp_path: Path) -> None:
    changes = {"timm_drop": 0.3, "timm_drop_path": None, "timm_model_pretrained": True, "patch_dropout": 0.5}
    source = load_source(str(edited(convnext, tmp_path, **changes)))
    torch.testing.assert_close(
        source.model.state_dict(), load_source(str(convnext)).model.state_dict(), rtol=0, atol=0
    )


def test_a_damaged_tensor_is_named(convnext: Path, tmp_path: Path) -> None:
    folder = edited(convnext, tmp_path)
    state = load_file(folder / WEIGHTS)
    state["visual.trunk.stem.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, folder / WEIGHTS)
    with pytest.raises(SourceError, match=r"'visual\.trunk\.stem\.0\.weight' holds NaN"):
        load_source(str(folder))


def test_without_timm_its_extra_is_named(convnext: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[export\]'"):
        load_source(str(convnext))
