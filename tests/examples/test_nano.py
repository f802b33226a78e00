"""The embedded model's own recipe, on a few drawn pictures: it trains, validates, exports, and its bundle is evaluated."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn import functional as F

from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.models.loaders.native import save_source
from edgeclip.models.sources import load_source
from edgeclip.models.training import load_recipe, train, with_settings
from edgeclip.runtime.images import preprocess

NANO = Path(__file__).parents[2] / "examples" / "nano"
NAMES = [f"{color} {shape}" for color in ("red", "green", "blue", "black") for shape in range(30)]


def drawing(name: str) -> NDArray[np.uint8]:
    color, number = name.split()
    picture = Image.new("RGBA", (64, 64))
    side = 20 + int(number)
    ImageDraw.Draw(picture).rectangle((8, 8, 8 + side, 60), fill=color)
    return np.asarray(picture)


def item(name: str, style: str, split: str = "train") -> dict[str, object]:
    return {"style": style, "key": name, "name": name, "tags": name.split(), "split": split}


@pytest.fixture
def nano(tmp_path: Path) -> Iterator[Path]:
    """A folder as prepare.py leaves it, with the example's modules importable."""
    items = [item(name, style) for style in ("noto", "other") for name in NAMES]
    items += [item(name, "noto", "validation") for name in NAMES[:3]] + [item("rare 9", "noto", "untrained")]
    items += [item("a heap", "clip-art") for _ in range(8)]
    pictures = [drawing(str(i["name"]) if i["style"] != "clip-art" else "grey 10") for i in items[:-9]]
    pictures += [drawing("grey 10")] * 9
    unseen = [item(name, "twemoji") for name in NAMES[:40]] + [item("rare 9", "twemoji", "untrained")]
    for kind, rows, drawn in (("training", items, pictures), ("unseen", unseen, pictures[:41])):
        (tmp_path / f"{kind}.json").write_text(json.dumps(rows))
        np.save(tmp_path / f"{kind}.npy", np.stack(drawn))
    sys.path.insert(0, str(NANO))
    module("tokenizer").train(tmp_path)
    yield tmp_path
    sys.path.remove(str(NANO))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_trains_exports_and_is_evaluated(nano: Path, tmp_path: Path) -> None:
    settings = (
        f"data={nano}",
        "steps=3",
        "batch_size=200",
        "warmup_steps=1",
        "checkpoint_every=3",
        "device=cpu",
    )
    recipe = with_settings(load_recipe(str(NANO / "recipe.py")), settings)
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.best_score is not None
    source = load_source(str(result.model))
    assert source.licence.weights == "Apache-2.0"
    report = export_bundle(source, tmp_path / "bundle", settings=ExportSettings(store="fp16"))
    size = sum(entry.size for entry in report.bundle.manifest.files.values())
    assert size < 6.5e6, "1.5 of the embedded model's 8 MB are kept for a detection head"
    found = module("evaluate").evaluate(nano, str(report.bundle.root))
    assert (found["pictures"], found["names"]) == (41, 41)
    assert 0 <= found["top1"] <= found["top5"] <= 1
    assert found["untrained_among_1_top1"] == 1.0


def test_validation_sees_what_the_bundle_will_see(nano: Path) -> None:
    spec = (
        load_recipe(str(NANO / "recipe.py"))
        .model(with_settings(load_recipe(str(NANO / "recipe.py")), (f"data={nano}",)))
        .preprocessing
    )
    picture = drawing("red 7").copy()
    picture[:, :, 3] //= 2  # half transparent: both must composite on white
    mine = module("pictograms").on_white(torch.from_numpy(picture[None]))[0].numpy()
    theirs = preprocess(Image.fromarray(picture), spec)
    assert float(np.abs(mine - theirs).max()) <= 2.01 / 127.5


def test_batches_pair_drawings_of_one_name(nano: Path) -> None:
    recipe = with_settings(load_recipe(str(NANO / "recipe.py")), (f"data={nano}", "batch_size=200"))
    source = recipe.model(recipe)
    batch = recipe.batches(recipe, source, None).batch(1)
    assert batch.pixels.shape == (200, 3, 48, 48)
    assert torch.equal(batch.target[:96], batch.target[96:192])
    assert len(set(batch.target[:96].tolist())) == 96
    assert not torch.equal(batch.pixels[:96], batch.pixels[96:192])
    assert batch.tag_matches[range(96), range(96)].all()


def test_the_teacher_is_several_times_as_large(nano: Path) -> None:
    recipe = replace(module("teacher").RECIPE, data=str(nano))
    large, small = recipe.model(recipe), module("half").new_small(recipe)
    sizes = [sum(p.numel() for p in source.model.parameters()) for source in (large, small)]
    assert sizes[0] > 3 * sizes[1]
    assert large.preprocessing == small.preprocessing, "both see the same"


def test_is_taught_in_the_views_that_its_teacher_saw(nano: Path, tmp_path: Path) -> None:
    pictograms, taught, teach = module("pictograms"), module("taught"), module("teach")
    teacher = module("recipe").new_nano(replace(module("recipe").RECIPE, data=str(nano)))
    save_source(
        tmp_path / "teacher", model=teacher.model, preprocessing=teacher.preprocessing, text=teacher.text,
        tokenizer_json=teacher.tokenizer_json, licence=teacher.licence,
    )  # fmt: skip
    teach.main(nano, str(tmp_path / "teacher"), tmp_path / "said", 2)
    settings = (
        f"data={nano}",
        f"teacher_data={tmp_path / 'said'}",
        "steps=2",
        "warmup_steps=1",
        "batch_size=32",
        "device=cpu",
    )
    recipe = with_settings(load_recipe(str(NANO / "taught.py")), settings)
    source = recipe.model(recipe)
    batch = taught.TaughtPictograms(recipe, source, None).batch(0)
    # the first picture, its view made anew at the teacher's side, is what was stored
    rows, views = batch.batch.rows[:5].tolist(), batch.batch.views[:5].tolist()
    drawn = torch.from_numpy(np.load(nano / "training.npy")[rows])
    with torch.no_grad():
        seen = teacher.model.eval().encode_image(
            pictograms.augment(drawn, 64, pictograms.of_views(rows, views))
        )
        names = teacher.model.encode_text(batch.batch.names)
    torch.testing.assert_close(batch.pictures[:5], F.normalize(seen, dim=-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.names, F.normalize(names, dim=-1), atol=1e-3, rtol=0)
    # and the student is asked for it at its own side
    assert tuple(batch.batch.pixels.shape) == (32, 3, 32, 32)
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.best_score is not None
    assert load_source(str(result.model)).preprocessing.size == (32, 32)


def test_teachers_side_by_side_say_the_mean_of_their_cosines(nano: Path) -> None:
    """As far as the student's width holds what they say; the same one twice says what it said."""
    taught, generator = module("taught"), np.random.default_rng(4)

    def units(*shape: int, rank: int = 8) -> np.ndarray:
        rows = generator.standard_normal((*shape, rank)) @ generator.standard_normal((rank, 24))
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)

    views, texts = [units(30, 2), units(30, 2)], [units(20), units(20)]  # of 32 directions together
    for pictures, names in ((views, texts), (views[:1] * 2, texts[:1] * 2)):
        seen, said = (rows.astype(float) for rows in taught.together(pictures, names, 32))
        each = [one.astype(float) @ two.astype(float).T for one, two in zip(pictures, names, strict=True)]
        np.testing.assert_allclose(seen @ said.T, np.mean(each, axis=0), rtol=0, atol=2e-3)
        padded = [np.concatenate([one, np.zeros((1, *one.shape[1:]), one.dtype)]) for one in pictures]
        again = taught.together(padded, names, 32)[0]
        assert not again[-1].any(), "drawings that no batch shows are stored as zeros"
        np.testing.assert_allclose(again[:-1], seen, rtol=0, atol=2e-3)


def test_a_view_is_the_same_in_any_company(nano: Path) -> None:
    pictograms = module("pictograms")
    drawn = torch.from_numpy(np.stack([drawing(name) for name in NAMES[:3]]))
    together = pictograms.augment(drawn, 64, pictograms.of_views([5, 6, 7], [0, 1, 0]))
    alone = pictograms.augment(drawn[1:2], 64, pictograms.of_views([6], [1]))
    torch.testing.assert_close(together[1:2], alone)
    other = pictograms.augment(drawn[1:2], 64, pictograms.of_views([6], [0]))
    assert (other - alone).abs().max() > 0.1
