"""Settings are typed, known, read, and the same when a run is resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.errors import TrainingError
from edgeclip.models.training import RECIPES, Recipe, load_plan, load_recipe, with_settings
from tests.training.tiny import TINY, tiny


@pytest.mark.parametrize(
    ("text", "name", "want"),
    [
        ("steps=2e3", "steps", 2000),
        ("learning_rate=3e-4", "learning_rate", 3e-4),
        ("betas=0.8, 0.95", "betas", (0.8, 0.95)),
        ("precision=bf16", "precision", "bf16"),
        ('templates=["{}", "a {}, drawn"]', "templates", ("{}", "a {}, drawn")),
        (
            "objectives=info_nce:1,image_contrast:0.5",
            "objectives",
            (("info_nce", 1.0), ("image_contrast", 0.5)),
        ),
        ('objectives=[["sigmoid", 2]]', "objectives", (("sigmoid", 2.0),)),
        ("data=a=b.csv", "data", "a=b.csv"),
        ("preprocessing=none", "preprocessing", None),
    ],
)
def test_set_parses_by_annotation(text: str, name: str, want: object) -> None:
    assert getattr(with_settings(TINY, (text,)), name) == want


def test_set_checks_the_whole_and_not_the_order() -> None:
    found = with_settings(Recipe(steps=1000, warmup_steps=100), ("steps=10", "warmup_steps=2"))
    assert (found.steps, found.warmup_steps) == (10, 2)


def test_set_reaches_into_parts() -> None:
    changed = with_settings(
        TINY, ("augmentation.flip=0.5", "clip.image.blocks.layers=3", "clip.logit_bias=true")
    )
    assert changed.augmentation.flip == 0.5
    assert changed.clip is not None
    assert changed.clip.image.blocks.layers == 3
    assert changed.clip.logit_bias is True
    assert TINY.clip is not None
    assert TINY.clip.image.blocks.layers == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step=3", "no setting 'step'; did you mean steps?"),
        ("augmentation.flp=1", "no setting 'flp'; did you mean flip?"),
        ("steps.more=1", "steps is 12 and has no part 'more'"),
        ("steps", "expected key=value"),
        ("steps=1.5", "expected a whole number"),
        ("steps=many", "expected a number"),
        ("learning_rate=nan", "expected a finite number"),
        ("precision=fp16", "expected one of fp32, bf16"),
        ("clip.logit_bias=maybe", "expected true or false"),
        ("betas=0.9", "expected 2 values with commas between, got 1"),
        ("steps=0", "steps: expected 1 or more, got 0"),
        ("accumulate=3", "accumulate: expected a divisor of batch_size 16, got 3"),
        ("ema_decay=1", "ema_decay: expected 0 to below 1"),
        ("augmentation.crop_scale=0,1", "augmentation.crop_scale: expected 0 < low"),
        ("templates=a photo", "templates: expected texts that hold {}"),
        ("clip=big", "write it in a recipe file"),
    ],
)
def test_set_refuses(text: str, message: str) -> None:
    with pytest.raises(TrainingError) as raised:
        with_settings(TINY, (text,))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_types_of_a_hand_written_recipe() -> None:
    with pytest.raises(TrainingError, match=r"steps: expected int, got 10\.5"):
        Recipe(steps=10.5)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="schedule: expected one of cosine, constant, got 'linear'"):
        Recipe(schedule="linear")  # type: ignore[arg-type]


def test_unread_setting_is_an_error() -> None:
    recipe = tiny(init_from="hf:a/b")
    for name in set(recipe.to_json()) - {"init_from"}:
        getattr(recipe, name)
    with pytest.raises(TrainingError, match="init_from: set to 'hf:a/b', but nothing in this run reads it"):
        recipe.check_all_read()
    assert recipe.init_from == "hf:a/b"  # now it has been read
    recipe.check_all_read()


def test_contradiction_is_refused_and_free_settings_are_not() -> None:
    saved = json.loads(json.dumps(TINY.to_json()))
    tiny(workers=7, log_every=3, data="elsewhere").check_same_run(saved, "here")
    with pytest.raises(
        TrainingError, match=r"here: started with learning_rate = 0.01, now it is 0.5\. Set it back"
    ):
        tiny(learning_rate=0.5).check_same_run(saved, "here")
    with pytest.raises(TrainingError, match="started with objectives"):
        tiny(objectives=((test_unread_setting_is_an_error, 1.0),)).check_same_run(saved, "here")
    with pytest.raises(TrainingError, match="started with gone = 1"):
        TINY.check_same_run({**saved, "gone": 1}, "here")


def test_callables_stand_by_name() -> None:
    assert tiny(batches=load_recipe).to_json()["batches"] == "edgeclip.models.training.recipes:load_recipe"


def test_built_in_recipes_say_how_they_are_run() -> None:
    for name, module_name in RECIPES.items():
        assert load_plan(name).name == name
        doc = __import__(module_name, fromlist=["RECIPE"]).__doc__
        assert all(word in doc for word in (f"edgeclip train {name}", "Hours:", "Score:"))


def test_recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # "x = 1" and "1 / 0" are of one length and second
    (tmp_path / "neighbour_of_recipe.py").write_text("STEPS = 77\n")
    good = tmp_path / "mine.py"
    good.write_text(
        "from neighbour_of_recipe import STEPS\nfrom edgeclip.models.training import Recipe\nRECIPE = Recipe(steps=STEPS, warmup_steps=0)\n"
    )
    assert load_recipe(str(good)).steps == 77
    for text, message in [
        ("x = 1", "expected RECIPE = Recipe"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ]:
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(TrainingError, match=message):
            load_recipe(str(tmp_path / "bad.py"))
    assert not any(tmp_path.glob("__pycache__/bad*"))
    with pytest.raises(TrainingError, match="no such recipe file"):
        load_recipe(str(tmp_path / "none.py"))
    with pytest.raises(TrainingError, match=r"clip_vit_tny: no such recipe; did you mean clip_vit_tiny\?"):
        load_recipe("clip_vit_tny")


def test_replace_keeps_the_original() -> None:
    assert replace(TINY, steps=5).steps == 5
    assert TINY.steps == 12
