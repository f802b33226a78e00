"""Checkpoints that open_clip wrote, against open_clip itself (and timm, which reads the same image towers)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import SourceError
from edgeclip.models.loaders.openclip.table import ARCHS
from edgeclip.models.sources import load_source
from tests.checkpoints import openclip_config, write_openclip
from tests.models.agreement import TOLERANCE, assert_agrees, inputs, our_outputs, worst

EOS = 713  # of the tiny vocabulary


@pytest.mark.parametrize(
    "arch",
    [
        "ViT-B-16-quickgelu",
        *(pytest.param(arch, marks=pytest.mark.parity) for arch in ("ViT-B-32", "ViT-L-14", "ViT-L-14-336")),
    ],
)
def test_two_blocks_of_real_width_agree(arch: str, tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config(arch))
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    assert_agrees(source, our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    assert (source.text.pad_id, source.text.eos_id, source.text.clean) == (0, 49407, "openai")
    assert (source.pooling, source.activation, source.text.dynamic_length) == ("cls/argmax", "softmax", True)


POOLER = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], bool, str]] = {
    # name -> image settings, text settings, custom text layout, pooling
    "average": ({"pool_type": "avg"}, {}, False, "avg/argmax"),
    "norm after average, none before": (
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {},
        False,
        "avg/argmax",
    ),
    "attention pooler": (POOLER, {}, False, "attentional/argmax"),
    "attention pooler of one width": (
        {**POOLER, "width": 32, "head_width": 8},
        {},
        False,
        "attentional/argmax",
    ),
    "attention pooler, average": (
        {**POOLER, "pool_type": "avg", "norm_kwargs": {"eps": 1e-3}},
        {},
        False,
        "attentional_avg/argmax",
    ),
    "layer scale": ({"ls_init_value": 1.5}, {"ls_init_value": 0.5}, False, "cls/argmax"),
    "text at its end": ({}, {"pool_type": "eos", "eos_id": EOS}, True, "cls/eos"),
    "text both ways": ({}, {"pool_type": "last", "no_causal_mask": True}, True, "cls/last"),
    "text both ways, at its end": ({}, {"no_causal_mask": True}, True, "cls/argmax"),
    "projection with bias": ({}, {"proj_bias": True}, True, "cls/argmax"),
    "tanh and another epsilon": (
        {"act_kwargs": {"approximate": "tanh"}},
        {"norm_kwargs": {"eps": 1e-3}},
        False,
        "cls/argmax",
    ),
    "fixed positions, odd size": (
        {"pos_embed_type": "sin_cos_2d", "image_size": 56, "patch_size": 14},
        {},
        False,
        "cls/argmax",
    ),
    "patches that leave a rim": ({"image_size": 40}, {}, False, "cls/argmax"),
    "patches dropped while training": ({"patch_dropout": 0.5}, {}, False, "cls/argmax"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_agree(variant: str, tmp_path: Path) -> None:
    image, text, custom, pooling = VARIANTS[variant]
    config = openclip_config("tiny", image=image, text=text)
    model = write_openclip(tmp_path, {**config, "custom_text": True} if custom else config)
    source = load_source(str(tmp_path))
    assert source.pooling == pooling
    causal = "no_causal_mask" not in text  # padding is out of sight, and need not be there
    assert source.text.dynamic_length == (causal and pooling.endswith(("argmax", "eos")))
    pixels, ids = inputs(source)
    assert_agrees(source, our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))


def test_wide_pictures_agree(tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config("tiny", image={"image_size": [32, 64]}))
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    assert pixels.shape[2:] == (32, 64)
    assert_agrees(source, our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_pictures_are_laid_out_as_open_clip_does(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    from open_clip.transform import image_transform
    from PIL import Image

    from edgeclip.runtime.images.geometry import plan

    write_openclip(tmp_path, openclip_config("tiny", image={"image_size": list(size)}))
    _edit(tmp_path, "preprocess_cfg", resize_mode=mode)
    spec = load_source(str(tmp_path)).preprocessing
    resize = image_transform(size, is_train=False, resize_mode=mode).transforms[0]
    for width, height in ((101, 67), (67, 101), (640, 33), (50, 50), (333, 175)):
        assert plan(spec, width, height).resized == resize(Image.new("RGB", (width, height))).size


def test_a_logit_bias_means_sigmoid(tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config("tiny"), bias=-7.5)
    source = load_source(str(tmp_path))
    assert source.activation == "sigmoid"
    assert source.model.logit_bias is not None
    assert source.model.logit_bias.item() == -7.5
    assert source.model.logit_scale.item() == model.logit_scale.item()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("shortest_crop", 32, "bicubic", "floor", 0.26862954)),
        (
            {"resize_mode": "squash", "interpolation": "bilinear", "std": [0.5, 0.5, 0.5]},
            ("squash", 0, "bilinear", "floor", 0.5),
        ),
        ({"resize_mode": "longest", "fill_color": 7}, ("pad", 0, "bicubic", "round", 0.26862954)),
    ],
)
def test_preprocessing_is_read(settings: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    write_openclip(tmp_path, openclip_config("tiny"))
    _edit(tmp_path, "preprocess_cfg", **settings)
    got = load_source(str(tmp_path)).preprocessing
    assert (got.mode, got.resize, got.resample, got.long_side, got.std[0]) == expected
    assert (got.size, got.crop_offset) == ((32, 32), "round_half_even")
    assert got.pad_color == (settings.get("fill_color", 0),) * 3


def test_planted_faults_exceed_the_tolerance(tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config("ViT-B-32"))
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    theirs = our_outputs(model, pixels, ids)
    _edit(tmp_path, "model_cfg", quick_gelu=True)
    quick = worst(theirs, our_outputs(load_source(str(tmp_path)).model, pixels, ids))
    assert min(quick) > 20 * TOLERANCE
    _edit(tmp_path, "model_cfg", quick_gelu=False)
    _edit(tmp_path, "model_cfg", "vision_cfg", norm_kwargs={"eps": 1e-6})
    _edit(tmp_path, "model_cfg", "text_cfg", pool_type="last")
    eps, last = worst(theirs, our_outputs(load_source(str(tmp_path)).model, pixels, ids))
    assert eps > 2 * TOLERANCE
    assert last > 1000 * TOLERANCE


def test_timm_reads_the_same_image_tower(tmp_path: Path) -> None:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = write_openclip(tmp_path, openclip_config("ViT-B-32"))
    source = load_source(str(tmp_path))
    theirs = timm.create_model(
        "vit_base_patch32_clip_224", num_classes=512, depth=2, global_pool="token"
    ).eval()
    state = checkpoint_filter_fn(model.state_dict(), theirs)
    # timm's classifier stands where the projection does
    theirs.load_state_dict({**state, "head.bias": torch.zeros(512)}, strict=True)
    pixels, ids = inputs(source)
    with torch.no_grad():
        image = torch.nn.functional.normalize(theirs(pixels), dim=-1)
    assert worst((image,), our_outputs(source.model, pixels, ids)[:1])[0] < TOLERANCE


def _edit(folder: Path, *sections: str, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    data = target = json.loads(path.read_text())
    for section in sections:
        target = target[section]
    target.update(changes)
    path.write_text(json.dumps(data))


DAMAGE = {
    "sizes of a ViT with a timm tower": (
        ("model_cfg", "vision_cfg"),
        {"timm_model_name": "vit_base_patch16_clip_224"},
        "vision_cfg.width = 64 describes a model",
    ),
    "a ResNet": (
        ("model_cfg", "vision_cfg"),
        {"layers": [3, 4, 6, 3]},
        "patch_size is 16, which a ResNet has none of",
    ),
    "a text tower of Hugging Face": (
        ("model_cfg", "text_cfg"),
        {"hf_model_name": "roberta"},
        "hf_model_name is 'roberta', expected one of",
    ),
    "CoCa's class token": (
        ("model_cfg", "text_cfg"),
        {"embed_cls": True},
        "tensor 'text.cls_emb' is missing",
    ),
    "query and key norms": (("model_cfg", "vision_cfg"), {"qk_norm": True}, "qk_norm = True"),
    "an unknown key": (("model_cfg", "vision_cfg"), {"registers": 4}, "registers = 4"),
    "an unknown activation setting": (
        ("model_cfg", "text_cfg"),
        {"act_kwargs": {"slope": 1}},
        "'slope' is not a setting",
    ),
    "no pooling": (
        ("model_cfg", "vision_cfg"),
        {"pool_type": "none"},
        "pool_type is 'none', expected one of tok, avg",
    ),
    "a parallel pooler": (("model_cfg", "vision_cfg"), {"attentional_pool": "parallel"}, "attentional_pool"),
    "another resolution": (
        ("model_cfg", "vision_cfg"),
        {"image_size": 64},
        r"positional_embedding' has shape \(5, 64\), its config asks for \(17, 64\)",
    ),
    "another vocabulary": (
        ("model_cfg", "text_cfg"),
        {"vocab_size": 800},
        "token_embedding.weight' has shape",
    ),
    "fewer layers": (("model_cfg", "text_cfg"), {"layers": 1}, "text.transformer.resblocks.1.* has no place"),
    "a section that is none": (("model_cfg",), {"text_cfg": [1]}, "text_cfg: expected"),
    "no sizes": (("model_cfg",), {"embed_dim": None}, "expected embed_dim, vision_cfg and text_cfg"),
    "an unknown resize": (("preprocess_cfg",), {"resize_mode": "tile"}, "resize_mode is 'tile'"),
    "an unknown text cleaning": (
        ("model_cfg", "text_cfg"),
        {"tokenizer_kwargs": {"clean": "ftfy"}},
        "text cleaning 'ftfy'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, tmp_path: Path) -> None:
    write_openclip(tmp_path, openclip_config("tiny"))
    sections, changes, message = DAMAGE[damage]
    _edit(tmp_path, *sections, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures of real widths, one block deep."""
    for arch in ("ViT-S-32", "ViT-S-16", "ViT-S-32-alt", "ViT-B-32"):
        monkeypatch.setitem(ARCHS, arch, openclip_config(arch, (1, 1)))


@pytest.mark.usefixtures("shallow")
def test_a_single_file_needs_its_architecture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_openclip(tmp_path, openclip_config("ViT-S-32", (1, 1)), pickle=True)
    (tmp_path / "open_clip_config.json").unlink()
    file = tmp_path / "small.safetensors"
    save_file({f"module.{k}"[7:]: v.contiguous() for k, v in model.state_dict().items()}, file)
    with pytest.raises(SourceError, match="a single file does not say its architecture"):
        load_source(str(file))
    with pytest.raises(SourceError, match="unknown architecture 'ViT-X-99', expected one of"):
        load_source(f"openclip:ViT-X-99/{file}")
    with pytest.raises(SourceError, match="has shape"):
        load_source(f"openclip:ViT-S-16/{file}")
    source = load_source(f"openclip:ViT-S-32/{file}")
    assert "no preprocessing beside the weights" in caplog.text
    pixels, ids = inputs(source)
    assert_agrees(source, our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids))
    pickled = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, pickled)
    with pytest.raises(SourceError, match="Pass --allow-pickle"):
        load_source(f"openclip:ViT-S-32/{pickled}")
    again = load_source(f"openclip:ViT-S-32/{pickled}", allow_pickle=True)
    torch.testing.assert_close(again.model.state_dict(), source.model.state_dict(), rtol=0, atol=0)


@pytest.mark.usefixtures("shallow")
def test_openai_weights_ask_for_quick_gelu(tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config("ViT-S-32", (1, 1)))
    file = tmp_path / "openai.safetensors"
    save_file(
        {**{k: v.contiguous() for k, v in model.state_dict().items()}, "input_resolution": torch.tensor(224)},
        file,
    )
    with pytest.raises(SourceError, match="name the architecture ViT-S-32-quickgelu"):
        load_source(f"openclip:ViT-S-32/{file}")
    assert (
        load_source(f"openclip:ViT-S-32-quickgelu/{file}").model.config.image.blocks.activation
        == "quick_gelu"
    )


@pytest.mark.usefixtures("shallow")
def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    write_openclip(tmp_path, openclip_config("ViT-S-32", (1, 1)))
    for arch, tower in (("ViT-B-32", "image"), ("ViT-S-16", "image"), ("ViT-S-32-alt", "text")):
        with pytest.raises(SourceError, match=f"{tower} tower has .*, {arch} has"):
            load_source(f"openclip:{arch}/{tmp_path}")
    with pytest.raises(
        SourceError, match="ViT-S-32-quickgelu means quick_gelu, the checkpoint's own config says gelu"
    ):
        load_source(f"openclip:ViT-S-32-quickgelu/{tmp_path}")
    assert load_source(f"openclip:ViT-S-32/{tmp_path}").model.config.image.blocks.activation == "gelu"


def test_shape_of_the_written_checkpoint(tmp_path: Path) -> None:
    """The stacked and the split form of the pooler's projections both occur, so both were tested above."""
    for width, stacked in ((64, False), (32, True)):
        write_openclip(
            tmp_path / str(width), openclip_config("tiny", image={**POOLER, "width": width, "head_width": 8})
        )
        names = load_file(tmp_path / str(width) / "open_clip_model.safetensors")
        assert ("visual.attn_pool.attn.in_proj_weight" in names) is stacked
