"""Region encoders are trained, stopped and resumed like any model, and what comes out is a source."""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from edgeclip.errors import TrainingError
from edgeclip.models.clip import Clip
from edgeclip.models.prompter import PromptedClip
from edgeclip.models.regions import RegionEncoder
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, load_recipe, rehearse, train, with_settings
from edgeclip.models.training.data.region_batches import RegionBatch
from edgeclip.models.training.encode_regions import encode_regions
from edgeclip.models.training.freeze import ensemble, freeze
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.step import backward
from tests.training.tiny import TINY, curve, start_process, tiny

QUICK = ("steps=4", "warmup_steps=1", "checkpoint_every=2", "log_every=1", "device=cpu", "learning_rate=0.01")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained CLIP to start from."""
    return train(tiny(steps=2), tmp_path_factory.mktemp("base"), progress=False).model


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colours side by side, each with its box; every fourth picture has a caption alone."""
    folder, lines = tmp_path_factory.mktemp("boxes"), []
    colors = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    for i in range(48):
        one, two = (list(colors)[(i + k * (1 + i // 4 % 3)) % 4] for k in (0, 1))
        picture = Image.new("RGB", (32, 32), colors[one])
        picture.paste(colors[two], (16, 0, 32, 32))
        picture.save(folder / f"{i}.png")
        row: dict[str, Any] = {"image": f"{i}.png", "caption": f"{one} and {two}"}
        if i % 4:
            row["regions"] = [{"box": [0, 0, 16, 32], "text": one}, {"box": [16, 0, 32, 32], "text": two}]
        lines.append(json.dumps(row))
    (folder / "regions.jsonl").write_text("\n".join(lines))
    return folder / "regions.jsonl"


def clim(base: Path, *changes: str) -> Recipe:
    settings = (
        f"init_from={base}",
        "data=shapes:120",
        "last_blocks=1",
        "batch_size=32",
        "validation_share=0.2",
    )
    return with_settings(load_recipe("clim_finetune"), (*QUICK, *settings, *changes))


def cloc(base: Path, boxes: Path, *changes: str) -> Recipe:
    settings = (f"init_from={base}", f"data={boxes}", "batch_size=16", "validation_share=0.2")
    return with_settings(load_recipe("cloc"), (*QUICK, *settings, *changes))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def records(folder: Path, key: str) -> list[dict[str, Any]]:
    return [
        row
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if key in (row := json.loads(line))
    ]


def test_clim_trains_the_last_blocks_alone(base: Path, tmp_path: Path) -> None:
    result = train(clim(base), tmp_path, progress=False)
    source = load_source(str(result.model))
    assert isinstance(source.model, RegionEncoder)
    before, after = weights(base), weights(result.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("text.") for name in moved)
    assert not moved & {"image.patches.weight", "image.position", "image.class_token"}
    assert {"image.blocks.0.attention.qkv.weight", "image.projection.weight"} <= moved
    scores = records(tmp_path, "score")
    assert [row["step"] for row in scores] == [0, 2, 4]
    assert scores[0]["region_r1"] == scores[0]["score"]
    assert scores[0]["regions"] == scores[0]["pairs"] // 4 * 4


@pytest.mark.parametrize("kind", ["clim", "cloc"])
def test_resumed_is_bit_for_bit_the_whole_run(kind: str, base: Path, boxes: Path, tmp_path: Path) -> None:
    recipe = clim(base) if kind == "clim" else cloc(base, boxes)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(recipe, tmp_path / "whole", progress=False)
        stopped = _Stops(3)
        with pytest.raises(KeyboardInterrupt):
            train(
                replace(recipe, objectives=(*recipe.objectives, (stopped, 0.0))),
                tmp_path / "cut",
                progress=False,
            )
        # the run is another by its objectives' names: say that it was this one
        for path in (tmp_path / "cut/checkpoints").glob("*/recipe.json"):
            path.write_text(json.dumps(recipe.to_json()))
        cut = train(recipe, tmp_path / "cut", progress=False)
    finally:
        torch.set_num_threads(before)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    one, two = weights(whole.model), weights(cut.model)
    assert all(torch.equal(one[name], two[name]) for name in one)


class _Stops:
    """An objective of nothing that asks the run to stop at its n-th step."""

    __name__ = "stops"

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, scale: Tensor) -> Tensor:
        import os
        import signal

        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGTERM)
        return scale * 0


def test_cloc_learns_regions_and_boxes(base: Path, boxes: Path, tmp_path: Path) -> None:
    result = train(
        cloc(base, boxes, "steps=45", "checkpoint_every=50", "learning_rate=0.003", "regions=2"),
        tmp_path,
        progress=False,
    )
    assert isinstance(load_source(str(result.model)).model, PromptedClip)
    losses = records(tmp_path, "loss")
    # The untrained text tower's texts are all alike, and so no negatives; the loss rises to its chance (of 24 regions of four colours)
    # when they part, and falls when the regions do.
    assert losses[0]["region_text"] == 0.0
    assert max(row["region_text"] for row in losses) > 1.0
    assert losses[-1]["region_text"] < 0.5
    assert losses[-1]["grounding"] < losses[0]["grounding"]
    assert losses[-1]["loss"] == pytest.approx(
        sum(losses[-1][name] * weight for name, weight in load_recipe("cloc").objectives), rel=1e-5
    )
    scores = records(tmp_path, "score")
    assert scores[-1]["region_r1"] > 0.8  # of 16 regions; measured 0.88 and 1.0
    assert scores[0]["region_r1"] < 0.6


@pytest.mark.parity
def test_a_region_encoder_learns_from_boxes_too(base: Path, boxes: Path, tmp_path: Path) -> None:
    changes = (
        "batches=regions",
        "encode=regions",
        "objectives=info_nce:1,region_text:1",
        "batch_size=16",
        "frozen=image.patches",
    )
    recipe = clim(
        base,
        f"data={boxes}",
        "augmentation.crop_scale=1,1",
        "steps=60",
        "checkpoint_every=60",
        "learning_rate=0.003",
        "last_blocks=0",
        *changes,
    )
    train(recipe, tmp_path, progress=False)
    assert records(tmp_path, "score")[-1]["region_r1"] > 0.9


def test_a_prompter_learns_from_mosaics_too(base: Path, tmp_path: Path) -> None:
    recipe = with_settings(clim(base), ("model=prompter", "last_blocks=0", "steps=1", "validation_share=0"))
    result = train(recipe, tmp_path, progress=False)
    after = weights(result.model)
    fresh = PromptedClip.of(load_source(str(base)).model).prompter  # type: ignore[arg-type]
    assert after["prompter.box.weight"].shape == fresh.box.weight.shape


def test_ensemble_is_between_start_and_end(base: Path, tmp_path: Path) -> None:
    recipe = clim(base, "validation_share=0", "ensemble=0.7", "steps=2", "checkpoint_every=2")
    result = train(recipe, tmp_path, progress=False)
    start, last = weights(base), weights(tmp_path / "checkpoints/step-00000002/model")
    shipped, name = weights(result.model), "image.blocks.0.mlp.fc1.weight"
    assert not torch.equal(start[name], last[name])
    assert torch.allclose(shipped[name], 0.3 * start[name] + 0.7 * last[name], atol=1e-7)
    assert torch.equal(shipped["text.position"], start["text.position"])
    again = train(recipe, tmp_path, progress=False)  # a finished run ships the same again
    assert torch.equal(weights(again.model)[name], shipped[name])


def test_resolution_is_the_towers(base: Path, tmp_path: Path) -> None:
    result = train(clim(base, "resolution=32", "steps=2", "checkpoint_every=2"), tmp_path, progress=False)
    source = load_source(str(result.model))
    assert source.preprocessing.size == (32, 32)  # type: ignore[union-attr]
    assert source.model.image.config.grid == (4, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("frozen=txt",),
            r"frozen: the model has no part 'txt'; did you mean text\? E.g. text, image.patches",
        ),
        (("last_blocks=7",), "last_blocks: the image tower has 1 blocks, got 7"),
        (("frozen=text,image,logit_scale", "last_blocks=0"), "frozen: nothing is left to be trained"),
        (("model=source",), "encode: a Clip embeds no regions. Set model=regions or model=prompter"),
        (("ensemble=0",), "ensemble: expected above 0, to 1"),
        (("images=x",), "images: set to 'x', but nothing in this run reads it"),
    ],
)
def test_refusals(changes: tuple[str, ...], message: str, base: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        rehearse(with_settings(clim(base, "validation_share=0"), changes))


def test_pairs_are_refused_where_boxes_are_needed(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"expected boxes in COCO's .json or in .jsonl.*batches=mosaics needs no boxes"
    ):
        rehearse(cloc(base, tmp_path / "pairs.csv"))


def model_and_batch() -> tuple[PromptedClip, RegionBatch]:
    torch.manual_seed(0)
    assert TINY.clip is not None
    model = PromptedClip.of(Clip(TINY.clip))
    corners = torch.rand(8, 2, 2, 2).sort(dim=-1).values
    ids = torch.randint(2, 300, (8, 3, 6))
    ids[..., -1] = 1
    return model, RegionBatch(
        pixels=torch.randn(8, 3, 16, 16),
        input_ids=ids[:, 0],
        groups=torch.arange(8),
        boxes=corners.transpose(2, 3).flatten(2),
        region_ids=ids[:, 1:],
        named=torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]] * 2),
    )


def test_parts_of_a_batch_give_the_whole_batchs_gradient() -> None:
    model, batch = model_and_batch()
    objectives = Objectives((("info_nce", 1.0), ("region_text", 1.0), ("grounding", 1.0)))
    found = []
    for accumulate in (1, 4):
        model.zero_grad()
        loss, _ = backward(
            model, batch, encode_regions, objectives, nullcontext, seed=0, accumulate=accumulate
        )
        found.append(
            (loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    (one, gradients), (two, in_parts) = found
    assert one.item() == pytest.approx(two.item(), rel=1e-6)
    assert gradients.keys() == in_parts.keys()
    # Embeddings are float32 whatever the towers are: noise is 1e-7 of the largest gradient.
    largest = max(value.abs().max().item() for value in gradients.values())
    for name, value in gradients.items():
        assert torch.allclose(value, in_parts[name], atol=2e-6 * largest), name


TRAIN = """
import sys
from pathlib import Path
import torch
from edgeclip.models.training import train
from tests.training.test_region_training import cloc
torch.set_num_threads(1)
train(cloc(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), progress=False)
"""


@pytest.mark.parity
def test_two_processes_train_as_one(base: Path, boxes: Path, tmp_path: Path) -> None:
    train(cloc(base, boxes), tmp_path / "one", progress=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = str(base), str(boxes), str(tmp_path / "two")
    both = [start_process(TRAIN, *arguments, RANK=str(r), LOCAL_RANK=str(r), **where) for r in (0, 1)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for (step, one), (_, two) in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-3), step


def test_the_pictures_embedding_comes_from_the_tokens_once() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        found = encode_regions(model, batch)["image"]
        want = torch.nn.functional.normalize(model.encode_image(batch.pixels).float(), dim=-1)
    assert torch.allclose(found, want, atol=1e-6)


def test_an_ensemble_by_hand() -> None:
    one, two = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(one.weight, 1.0)
    torch.nn.init.constant_(two.weight, 11.0)
    ensemble(two, one, 0.7)
    assert two.weight.item() == pytest.approx(8.0)


def test_what_stands_behind_the_last_blocks_trains() -> None:
    assert TINY.clip is not None
    deep = replace(TINY.clip.image, blocks=replace(TINY.clip.image.blocks, layers=3))  # type: ignore[union-attr,type-var]
    model = Clip(replace(TINY.clip, image=deep))
    freeze(model, tiny(last_blocks=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("image.")}
    assert {name.split(".")[1] for name in trained} == {"blocks", "norm_post", "projection"}
    assert {name.split(".")[2] for name in trained if "blocks" in name} == {"1", "2"}
    assert model.text is not None
    assert all(p.requires_grad for p in model.text.parameters())
