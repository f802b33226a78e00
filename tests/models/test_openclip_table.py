"""The table of architectures and tags, held against open_clip's own; and what happens when two names contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import SourceError
from edgeclip.models.loaders.openclip import read_config
from edgeclip.models.loaders.openclip import timm as timm_tower
from edgeclip.models.loaders.openclip.config import read_preprocessing, section
from edgeclip.models.loaders.openclip.table import (
    ARCHS,
    QUICK,
    TAGS,
    find_tag,
    model_config,
    shared_preprocessing,
)
from edgeclip.models.sources import load_source
from tests.checkpoints import openclip_config, write_openclip
from tests.models.test_sources import hub, lay_out  # noqa: F401

# Of training, or null where a ResNet has none: no tower of ours depends on them.
TRAINING = {"timm_model_pretrained", "hf_model_pretrained", "timm_drop", "timm_drop_path", "patch_size"}
# In open_clip's table this tag says nothing of its activation, but the architecture and its training do.
UNSTATED = {"roberta-ViT-B-32/laion2b_s12b_b32k"}


def test_architectures_are_open_clips() -> None:
    import open_clip

    assert set(ARCHS) == {name for name in open_clip.list_models() if not name.endswith(QUICK)}
    for name in open_clip.list_models():
        ours, theirs = model_config(name), open_clip.get_model_config(name)
        assert ours is not None
        for part, defaults in (
            ("vision_cfg", open_clip.CLIPVisionCfg()),
            ("text_cfg", open_clip.CLIPTextCfg()),
        ):
            mine, its = ours.pop(part), theirs.pop(part)
            for key in {*mine, *its} - (TRAINING if "layers" in its or "timm_model_name" in its else set()):
                default = getattr(defaults, key)
                assert mine.get(key, default) == its.get(key, default), (name, part, key)
        assert {"quick_gelu": False, **theirs} == ours, name


def test_tags_are_open_clips() -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    theirs = {f"{arch}/{tag}": (arch, tag) for arch, tag in open_clip.list_pretrained()}
    assert set(TAGS) == {name for name, (arch, _) in theirs.items() if not arch.endswith(QUICK)}
    for name, (arch, tag) in theirs.items():
        ours, its = find_tag(arch, tag), get_pretrained_cfg(arch, tag)
        assert ours is not None
        assert "/".join(filter(None, (ours.repository, ours.file))) == its["hf_hub"].strip("/")
        assert ours.quick_gelu is (its.get("quick_gelu", False) or name in UNSTATED)
        for key, value in ours.preprocess_cfg.items():
            assert its[key] == (tuple(value) if isinstance(value, list) else value), (name, key)
        read_preprocessing(ours.preprocess_cfg, (224, 224), name)
    assert all(model_config(name.partition("/")[0])["quick_gelu"] for name in UNSTATED)


def test_tags_in_any_spelling() -> None:
    assert find_tag("ViT-B-32", "LAION2B-s34b-b79k") == find_tag("ViT-B-32", "laion2b_s34b_b79k") is not None
    assert find_tag("ViT-B-32", "laion2b") is None


# Text towers of a kind that nobody else uses: NLLB's encoder, and CoCa's decoder over RoBERTa.
REFUSED = ("nllb-clip-", "coca_roberta-")
OF_TIMM = [name for name in ARCHS if "timm_model_name" in ARCHS[name]["vision_cfg"]]


@pytest.mark.parametrize("name", [name for name in ARCHS if not name.startswith(REFUSED)])
def test_architectures_are_read(name: str) -> None:
    own = model_config(name)
    assert own is not None
    if name in OF_TIMM:  # to build a trunk takes seconds: see below
        import timm

        assert timm.is_model(own["vision_cfg"]["timm_model_name"])
        section(own["vision_cfg"], timm_tower.KEYS, name)
        own["vision_cfg"] = {}
    config = read_config(own, name, logit_bias=False)
    assert config.image is not None
    assert config.text is not None


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in OF_TIMM if not name.startswith(REFUSED)])
def test_architectures_of_timm_are_read(name: str) -> None:
    assert read_config(model_config(name), name, logit_bias=False).image is not None


@pytest.mark.parametrize("name", [name for name in ARCHS if name.startswith(REFUSED)])
def test_architectures_that_are_refused(name: str) -> None:
    own = model_config(name)
    assert own is not None
    if name in OF_TIMM:
        own["vision_cfg"] = {}
    with pytest.raises(SourceError, match=r"text_cfg.*(edgeclip cannot load yet|expected one of)") as caught:
        read_config(own, name, logit_bias=False)
    assert "\n" not in str(caught.value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that is small, without tags."""
    monkeypatch.setitem(ARCHS, "ViT-T", openclip_config("tiny"))


def write(folder: Path, quick: bool = False) -> Any:
    return write_openclip(folder, {**openclip_config("tiny"), "quick_gelu": quick})


def retag(monkeypatch: pytest.MonkeyPatch, **change: Any) -> None:
    """Give the small architecture a tag: another's, changed."""
    tag = find_tag("ViT-B-32", "openai")
    assert tag is not None
    monkeypatch.setitem(TAGS, "ViT-T/openai", tag._replace(repository="someone/weights", **change))


@pytest.mark.usefixtures("small")
def test_a_single_file_is_prepared_as_the_architectures_tags_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert shared_preprocessing("RN50-quickgelu") == find_tag("RN50", "openai").preprocess_cfg
    assert shared_preprocessing("ViT-L-14") is None, "its tags do not agree"
    assert shared_preprocessing("ViT-S-32") is None, "it has no tags"
    write(tmp_path)
    spec = f"openclip:ViT-T/{tmp_path / 'open_clip_model.safetensors'}"
    assert load_source(spec).preprocessing.mode == "shortest_crop"
    assert "taking open_clip's default" in caplog.text
    retag(monkeypatch, preprocess_cfg=shared_preprocessing("ViT-B-16-SigLIP"))
    spec_read = load_source(spec).preprocessing
    assert (spec_read.mode, spec_read.std[0]) == ("squash", 0.5)
    assert "taking what every tag of ViT-T has" in caplog.text


@pytest.mark.usefixtures("small")
def test_the_tag_settles_the_activation_where_the_repository_agrees(
    hub: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    retag(monkeypatch)
    write(lay_out(hub, "someone/weights"), quick=True)
    for arch in ("ViT-T", "ViT-T-quickgelu"):
        source = load_source(f"openclip:{arch}/openai")
        assert source.model.config.text.blocks.activation == "quick_gelu"
    assert "preprocess" not in caplog.text
    retag(monkeypatch, preprocess_cfg=find_tag("ViT-B-16-SigLIP", "webli").preprocess_cfg)
    assert load_source("openclip:ViT-T/openai").preprocessing.std[0] == 0.26862954
    assert "prepares pictures otherwise than open_clip's table says of the tag" in caplog.text


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.usefixtures("small")
def test_a_tag_and_a_repository_that_contradict_each_other(
    quick: bool,
    hub: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retag(monkeypatch, quick_gelu=quick)
    write(lay_out(hub, "someone/weights"), quick=not quick)
    says = "trained with quick_gelu, .* says gelu" if quick else "trained with gelu, .* says quick_gelu"
    with pytest.raises(SourceError, match=says) as caught:
        load_source("openclip:ViT-T/openai")
    assert "\n" not in str(caught.value)


def test_a_gelu_tag_is_not_named_with_quickgelu() -> None:
    with pytest.raises(SourceError, match=r"trained with GELU, .* Name openclip:ViT-B-32/laion2b_s34b_b79k"):
        load_source("openclip:ViT-B-32-quickgelu/laion2b_s34b_b79k")


@pytest.mark.usefixtures("small")
def test_a_repository_and_an_architecture_that_contradict_each_other(hub: Path) -> None:  # noqa: F811
    write(lay_out(hub, "someone/quick"), quick=True)
    with pytest.raises(SourceError, match=r"ViT-T means gelu, .* Name the architecture with"):
        load_source("openclip:ViT-T/someone/quick")
    assert load_source("openclip:ViT-T-quickgelu/someone/quick")


@pytest.mark.usefixtures("small")
def test_a_repository_of_weights_alone_is_what_its_tag_says(
    hub: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    retag(
        monkeypatch,
        file="pytorch_model.bin",
        preprocess_cfg=find_tag("ViT-B-16-SigLIP", "webli").preprocess_cfg,
    )
    folder = lay_out(hub, "someone/weights")
    write(folder, quick=True)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(SourceError, match=r"expected one of pytorch_model.safetensors"):
        load_source("openclip:ViT-T/openai")
    state = load_file(folder / "open_clip_model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="Pass --allow-pickle"):
        load_source("openclip:ViT-T/openai")
    pickled = load_source("openclip:ViT-T/openai", allow_pickle=True)
    save_file(state, folder / "pytorch_model.safetensors")
    source = load_source("openclip:ViT-T/openai")
    torch.testing.assert_close(pickled.model.state_dict(), source.model.state_dict(), rtol=0, atol=0)
    assert (source.name, source.model.config.image.blocks.activation) == ("weights", "quick_gelu")
    assert (source.preprocessing.mode, source.preprocessing.std[0]) == ("squash", 0.5)
    assert "no preprocessing" not in caplog.text
    retag(monkeypatch)  # weights under OpenCLIP's own names
    assert load_source("openclip:ViT-T/openai").preprocessing.mode == "shortest_crop"


def test_the_data_ships_with_the_package() -> None:
    from edgeclip.models.loaders.openclip import table

    for name in ("architectures.json", "tags.json"):
        assert json.loads(Path(table.__file__).with_name(name).read_text(encoding="utf-8"))
