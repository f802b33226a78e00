"""The small CLIP that mixtures of experts are tried on: its pairs, its recipes, and the comparison's own parts, on a few drawn pictures."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from benchmarks import moe_training
from benchmarks.moe_scores import Pictures, parameters, pictures, right, use
from benchmarks.wider import wider
from edgeclip.models.source import Source
from edgeclip.models.training import load_recipe
from edgeclip.models.training.plan import Upcycling
from edgeclip.models.training.recipes import load_plan
from edgeclip.models.training.starts import start
from edgeclip.models.upcycling import upcycled

EXAMPLES = Path(__file__).parents[2] / "examples" / "nano_moe"
END = 3072
STYLES = ("fluent-3d", "fxemoji", "noto", "noto-v1", "clip-art")


def drawing(number: int) -> np.ndarray:
    return np.full((64, 64, 4), (40 * number, 90, 200, 255), np.uint8)


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Path]:
    """What pairs.py makes of a folder as nano's prepare.py leaves it."""
    data = tmp_path / "data"
    data.mkdir()
    items = [
        {"style": style, "key": f"{i}", "name": f"thing {i}", "tags": [], "split": "train"}
        for style in STYLES
        for i in range(4)
    ]
    items[3]["split"] = items[7]["split"] = "untrained"
    unseen = [{**item, "style": "twemoji"} for item in items[:4]]
    for kind, rows in (("training", items), ("unseen", unseen)):
        (data / f"{kind}.json").write_text(json.dumps(rows))
        np.save(data / f"{kind}.npy", np.stack([drawing(int(row["key"])) for row in rows]))
    words = ["<pad>", "a", *(f"w{i}" for i in range(END - 2))]
    vocabulary = {word: i for i, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(data / "tokenizer.json"))
    sys.path.insert(0, str(EXAMPLES))
    importlib.import_module("pairs").write(data, tmp_path / "pairs")
    sys.path.remove(str(EXAMPLES))
    yield tmp_path / "pairs"
    for name in ("pairs", "dense", "further"):
        sys.modules.pop(name, None)


@pytest.fixture
def base(pairs: Path) -> Source:
    """The dense model, not trained."""
    torch.manual_seed(0)
    recipe = load_recipe(str(EXAMPLES / "dense.py"))
    return start(replace(recipe, data=str(pairs / "training.jsonl"), tokenizer=str(pairs / "tokenizer.json")))


def captions(listing: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    return [(row["image"], row["caption"]) for row in rows]


def test_unseen_styles_and_untrained_names_are_no_training_pairs(pairs: Path) -> None:
    training = captions(pairs / "training.jsonl")
    assert {image.split("/")[0] for image, _ in training} == {"fluent-3d", "fxemoji"}
    assert {name for _, name in training} == {"thing 0", "thing 1", "thing 2"}
    assert {name for _, name in captions(pairs / "noto.jsonl")} == {"thing 0", "thing 1", "thing 2"}
    assert len(captions(pairs / "twemoji.jsonl")) == 3
    assert json.loads((pairs / "names.json").read_text()) == [f"thing {i}" for i in range(4)]


def test_texts_end_where_the_tower_pools(base: Source) -> None:
    assert base.text is not None
    assert Tokenizer.from_str(base.tokenizer_json.decode()).encode("a").ids == [1, base.text.eos_id]


def test_the_recipes_parse_and_share_what_contestants_share() -> None:
    further, sparse = (load_recipe(str(EXAMPLES / f"{name}.py")) for name in ("further", "sparse"))
    plan = load_plan(str(EXAMPLES / "multistage.py"))
    assert isinstance(plan, Upcycling)
    assert sparse.model == "upcycled"
    for recipe in (sparse, plan.stage, plan.router):
        for name in ("optimizer", "weight_decay", "augmentation", "templates", "validation_share"):
            assert getattr(recipe, name) == getattr(further, name), name


def test_all_contestants_see_as_many_pairs(tmp_path: Path) -> None:
    work = moe_training.Work(tmp_path, tmp_path, seed=3, steps=moe_training.STEPS)
    plan = moe_training._plan(work, 1e-3)
    dense = work.further("further", work.base, 1e-3)
    seen = plan.stages * plan.stage.steps * plan.stage.batch_size
    assert seen + plan.router.steps * plan.router.batch_size == dense.steps * dense.batch_size
    rest = work.further("sparse", work.base, 1e-3, share=1 - moe_training.STAGES)
    assert seen + rest.steps * rest.batch_size == dense.steps * dense.batch_size
    assert {dense.seed, plan.stage.seed, plan.router.seed} == {3}


def test_wider_is_the_same_function_with_the_parameters_that_two_experts_activate(base: Source) -> None:
    grown = wider(base, noise=0.0)
    pixels = torch.linspace(-1, 1, 2 * 3 * 48 * 48).view(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(grown.model.encode_image(pixels), base.model.encode_image(pixels), atol=1e-5)
    mixture = upcycled(base, experts=4, top_k=2)
    stored, active = parameters(mixture)
    routers = sum(p.numel() for n, p in mixture.model.named_parameters() if ".router." in n)
    # fc2's bias is there once in a wide layer and twice in two experts
    once = sum(p.numel() for n, p in base.model.named_parameters() if n.endswith("fc2.bias"))
    assert active == parameters(grown)[0] + routers + once
    assert stored > active
    assert parameters(base) == (parameters(base)[0],) * 2


def test_copies_of_hidden_units_are_shaken_apart(base: Source) -> None:
    weight = wider(base).model.get_parameter("image.blocks.0.mlp.fc1.weight")
    first, second = weight.chunk(2)
    assert 0 < float((first - second).detach().std() / first.detach().std()) < 0.05


def test_right_is_the_nearest_of_all_names(base: Source, pairs: Path) -> None:
    shown = pictures(base, pairs / "noto.jsonl")
    with torch.no_grad():
        base.model.encode_image = lambda pixels: torch.eye(4, 96)[: len(pixels)]  # type: ignore[method-assign]
        base.model.encode_text = lambda ids: torch.eye(4, 96)[[0, 2, 1, 3]]  # type: ignore[method-assign]
    assert right(base, shown, [f"thing {i}" for i in range(4)]).tolist() == [True, False, False]


def test_held_out_drawings_are_those_that_training_leaves_out(base: Source, pairs: Path) -> None:
    everything, part = (pictures(base, pairs / "training.jsonl", share) for share in (1.0, 0.5))
    assert len(everything.names) == 6
    assert 0 < len(part.names) < 6


def test_use_is_told_of_every_mixture(base: Source, pairs: Path) -> None:
    found = use(upcycled(base, experts=4, top_k=2), pictures(base, pairs / "noto.jsonl"), ["thing 0"])
    assert list(found) == [f"image.blocks.{i}.mlp" for i in range(5)] + [
        f"text.blocks.{i}.mlp" for i in range(2)
    ]
    assert all(len(shares) == 4 and abs(sum(shares) - 1) < 1e-3 for shares in found.values())
    assert use(base, pictures(base, pairs / "noto.jsonl"), ["thing 0"]) == {}


def test_difference_takes_the_drawings_of_a_name_together() -> None:
    shown = {kind: Pictures(np.empty(0, np.float32), ["a", "b"]) for kind in moe_training.UNSEEN}

    def scores(*hits: int) -> dict[str, object]:
        return {"right": {"noto": hits[:2], "twemoji": hits[2:]}}

    mean, half = moe_training.difference(scores(1, 1, 1, 0), scores(0, 1, 0, 0), shown)
    assert mean == 0.5
    # per name: +2 and 0 of 2 drawings each: deviations +1 and -1, root of 2 over 4 drawings
    assert half == pytest.approx(1.96 * 2**0.5 / 4)
