"""One tower of CLIP alone: from its folder to the command line, and what is said where the other tower is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import edgeclip
from edgeclip.bundle import open_bundle
from edgeclip.cli import run
from edgeclip.errors import InputError, SourceError
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.models.sources import load_source
from tests.checkpoints import write_hf
from tests.families.single_towers import write_tower
from tests.models.agreement import TOLERANCE, assert_saves_and_loads

TEXT, IMAGE = "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `both`, `text` and `image`: bundles of a model and of its two halves, and a picture."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    home = tmp_path_factory.mktemp("halves")
    write_hf(home / "source", layers=(1, 1))
    for kind, cls in (("text", CLIPTextModelWithProjection), ("image", CLIPVisionModelWithProjection)):
        cls.from_pretrained(home / "source").save_pretrained(home / f"{kind} half")
        for file in (home / "source").glob("*token*" if kind == "text" else "preprocessor*"):
            (home / f"{kind} half" / file.name).write_bytes(file.read_bytes())
    for name, source in (("both", "source"), ("text", "text half"), ("image", "image half")):
        export_bundle(
            load_source(str(home / source)), home / name, settings=ExportSettings(targets=("portable",))
        )
    Image.effect_noise((50, 40), 90).convert("RGB").save(home / "picture.png")
    return home


def test_halves_give_what_the_whole_gives(bundles: Path) -> None:
    with (
        edgeclip.load(bundles / "both") as both,
        edgeclip.load(bundles / "text") as text,
        edgeclip.load(bundles / "image") as image,
    ):
        for half in (text, image):
            half.warmup()
            assert half.manifest.embedding_dim == 32
        picture, words = str(bundles / "picture.png"), ["a cat", "two dogs"]
        np.testing.assert_allclose(
            image.embed_images(picture), both.embed_images(picture), rtol=0, atol=TOLERANCE
        )
        np.testing.assert_allclose(text.embed_texts(words), both.embed_texts(words), rtol=0, atol=TOLERANCE)
        assert len({model.manifest.model_id for model in (both, text, image)}) == 3
        pack = text.make_labels(words)
        with pytest.raises(
            InputError, match="was made by model"
        ):  # nothing says that the halves belong together
            image.classify(picture, pack)


def test_inspect_shows_one_tower(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown, other in (("text", "texts", "pictures"), ("image", "pictures", "texts")):
        assert {variant.tower for variant in open_bundle(str(bundles / name)).manifest.variants} == {name}
        assert run(["inspect", str(bundles / name)]) == 0
        said = capsys.readouterr().out
        assert f"\n{shown} " in said
        assert f"\n{other} " not in said
        assert run(["verify", str(bundles / name)]) == 0


COMMANDS = {
    "embed pictures": ("text", ["embed", "PICTURE", "--json"]),
    "embed texts": ("image", ["embed", "--text", "a cat", "--json"]),
    "classify with texts alone": ("text", ["classify", "PICTURE", "--labels", "a,b"]),
    "classify with pictures alone": ("image", ["classify", "PICTURE", "--labels", "a,b"]),
    "search with texts alone": ("text", ["search", "HOME", "a cat"]),
    "search with pictures alone": ("image", ["search", "HOME", "a cat"]),
    "labels": ("image", ["labels", "make", "--labels", "a,b", "-o", "OUT"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_needs_the_other_tower_says_so_in_one_line(
    command: str, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half, words = COMMANDS[command]
    places = {"PICTURE": bundles / "picture.png", "HOME": bundles, "OUT": tmp_path / "pack"}
    assert run([str(places.get(word, word)) for word in words] + ["-b", str(bundles / half)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeclip: ")]
    missing = "image" if half == "text" else "text"
    assert len(errors) == 1
    assert f"this bundle has no {missing} tower" in errors[0]


def test_training_needs_both(tmp_path: Path) -> None:
    from edgeclip.errors import TrainingError
    from edgeclip.models.training.recipe import Recipe
    from edgeclip.models.training.starts import start

    write_tower(tmp_path, TEXT)
    with pytest.raises(TrainingError, match="has no image tower, and training needs both"):
        start(Recipe(model="source", init_from=str(tmp_path)))


@pytest.mark.parametrize("name", [TEXT, IMAGE, "CLIPTextModel", "CLIPVisionModel"])
def test_edgeclips_own_checkpoint_of_one_tower(name: str, tmp_path: Path) -> None:
    write_tower(tmp_path / "theirs", name)
    source = load_source(str(tmp_path / "theirs"))
    assert_saves_and_loads(source, tmp_path / "ours")
    with pytest.raises(SourceError, match=r"this model has no (image|text) tower"):
        (source.model.encode_image if source.model.image is None else source.model.encode_text)(
            torch.zeros(1, 4)
        )


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPVisionModel"])
def test_names_of_older_releases(name: str, tmp_path: Path) -> None:
    """Before release 5 a tower without projection had its name before each tensor."""
    write_tower(tmp_path, name)
    before = load_source(str(tmp_path)).model.state_dict()
    prefix = "text_model." if "Text" in name else "vision_model."
    state = load_file(tmp_path / "model.safetensors")
    assert not any(key.startswith(prefix) for key in state)
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_source(str(tmp_path)).model.state_dict(), before, rtol=0, atol=0)


def test_a_tower_without_projection_is_said_to_stand_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tower(tmp_path, "CLIPTextModel")
    source = load_source(str(tmp_path))
    assert source.embedding_dim == 48
    assert "its vectors cannot be compared with those of the other tower" in caplog.text


DAMAGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "no word of a projection": (TEXT, {"architectures": None}, "architectures is None, expected"),
    "the other tower's class": (TEXT, {"architectures": [IMAGE]}, "architectures is .* it says whether the tower projects"),
    "a projection that is not there": ("CLIPTextModel", {"architectures": [TEXT]}, "'text_projection.weight' is missing"),
    "a projection left over": (IMAGE, {"architectures": ["CLIPVisionModel"]}, "'visual_projection.weight' has no place"),
    "another width of the projection": (IMAGE, {"projection_dim": 64}, "visual_projection.weight' has shape"),
    "the other tower": (TEXT, {"model_type": "clip_vision_model", "architectures": [IMAGE]}, "is missing"),
    "the whole model": (TEXT, {"model_type": "clip"}, "is missing"),
    "another activation": (TEXT, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    "another size": (IMAGE, {"image_size": 64}, "position_embedding.weight' has shape"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, tmp_path: Path) -> None:
    name, changes, message = DAMAGE[damage]
    write_tower(tmp_path, name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [TEXT, IMAGE])
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    write_tower(tmp_path, name)
    for file in (*tmp_path.glob("token*"), *tmp_path.glob("preprocessor*")):
        file.unlink()
    with pytest.raises(SourceError, match=r"expected tokenizer.json|no preprocessor_config.json"):
        load_source(str(tmp_path))
