"""Whether region encoders learn: the kinds of boxes in drawn scenes, before and after training, beside cutting the boxes out.

    python -m benchmarks.regions_training WORK      all runs, then benchmarks/results/regions_training.md; a run that is there stays

Eight minutes of one core that does nothing else.

A tiny CLIP learns pictures of one shape each from their captions. It then becomes a region encoder or gets a prompter, and is trained on
the same captions tiled into mosaics (CLIM), or on scenes of several shapes with boxes, in which eight of the 40 kinds never occur
(CLOC). Scored are new scenes of all kinds: is a box's kind the nearest of 40 names, said as in training? Of captions a name's vector
is the mean over those that say it of the scene's ground.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe
from edgeclip.models.regions import with_regions
from edgeclip.models.resolution import at_resolution
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Augmentation, Recipe, load_recipe, train
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.data.shapes import COLORS, SHAPES, SIZES, draw
from edgeclip.models.training.region_towers import region_embeddings
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.text import TextEncoder

SIDE = 64  # pixels of a scene, and of the region encoders' input
KINDS = [f"{color} {shape}" for color, shape in product(COLORS, SHAPES)]
# One of each colour, each shape at least once: in no scene that boxes are learned from, but in those that are scored.
NOVEL = [f"{color} {list(SHAPES)[i % len(SHAPES)]}" for i, color in enumerate(COLORS)]

BASE = replace(
    load_recipe("clip_vit_tiny"), name="base", validation_share=0.05, device="cpu"
)  # 32 pixels, patches of 8

RESULTS = Path(__file__).parent / "results" / "regions_training.md"
REPORT = """# Whether region encoders learn

`python -m benchmarks.regions_training WORK` wrote this, on one thread: fp32, pictures of 64 pixels. Training took: {took}.
{machine}. Other work may have shared its cores.

A tiny CLIP (`clip_vit_tiny`) becomes a region encoder or gets a prompter. Scored are {boxes} boxes of {scenes} new scenes of up to six
shapes: whether the nearest of 40 names has the right colour (chance 0.125), and the right colour and shape (chance 0.025). Eight of the 40
kinds occur in no scene that boxes were learned from.

| | colour | colour and shape |
|---|---|---|
{table}

`clim` saw no boxes, only captioned pictures in mosaics. `regions by boxes` and `cloc` learned from 2,000 scenes with boxes.

Where is what a text names? `cloc` answers {names} names, whose colour their scene has once, with a mean IoU of {iou:.3f}; the mean of all
boxes has {mean_box:.3f}. {half:.3f} of the answers have an IoU of 0.5 or more.
"""


@dataclass(frozen=True)
class Scene:
    """A drawn scene and what is where."""

    picture: Image.Image
    ground: str
    boxes: list[tuple[float, float, float, float]]  # xyxy, pixels
    kinds: list[str]


def scene(seed: int, kinds: list[str]) -> Scene:
    """Up to six shapes that do not touch, on one ground."""
    rng = random.Random(seed)
    ground = rng.choice(list(COLORS))
    picture, boxes, found = Image.new("RGB", (SIDE, SIDE), COLORS[ground]), [], []
    possible = [kind for kind in kinds if not kind.startswith(ground)]
    for _ in range(30):
        radius = rng.uniform(6, 11)
        x, y = (rng.uniform(radius, SIDE - radius) for _ in "xy")
        box = (x - radius, y - radius, x + radius, y + radius)
        if len(boxes) == 6 or any(_touch(box, other) for other in boxes):
            continue
        kind = rng.choice(possible)
        color, shape = kind.split()
        draw(ImageDraw.Draw(picture), shape, (x, y), radius, COLORS[color], rng)
        boxes.append(box)
        found.append(kind)
    return Scene(picture, ground, boxes, found)


def write_scenes(folder: Path, count: int) -> Path:
    """Scenes without the novel kinds, as JSON Lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        made = scene(i, [kind for kind in KINDS if kind not in NOVEL])
        made.picture.save(folder / f"{i}.png")
        regions = [
            {"box": box, "text": f"a {kind}"} for box, kind in zip(made.boxes, made.kinds, strict=True)
        ]
        caption = ", ".join(f"a {kind}" for kind in made.kinds) + f" on {made.ground}"
        lines.append(json.dumps({"image": f"{i}.png", "caption": caption, "regions": regions}))
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "scenes.jsonl"


@torch.no_grad()
def names(source: Source, by_boxes: bool = False) -> dict[str, Tensor]:
    """(40, D) unit rows for each ground: a caption says the ground too, and a scene's is known. `by_boxes`: as boxes are named."""
    assert source.text is not None
    encoder = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
    found = {}
    for ground in COLORS:
        texts = [
            f"a {kind}" if by_boxes else f"a {size} {kind} on {ground}" for kind in KINDS for size in SIZES
        ]
        ids = torch.from_numpy(encoder.encode(texts).input_ids).long()
        rows = F.normalize(source.model.encode_text(ids), dim=-1).view(len(KINDS), len(SIZES), -1)
        found[ground] = F.normalize(rows.mean(dim=1), dim=-1)
    return found


@torch.no_grad()
def of_regions(source: Source, made: Scene) -> Tensor:
    """(R, D) by the region encoder, the picture encoded once."""
    assert source.preprocessing is not None
    pixels = torch.from_numpy(preprocess(made.picture, source.preprocessing))[None]
    return region_embeddings(source.model, pixels, torch.tensor([made.boxes]) / SIDE)[0]


@torch.no_grad()
def of_pictures(source: Source, made: Scene) -> Tensor:
    """(R, D), all the same: the whole picture, whatever the box."""
    assert source.preprocessing is not None
    pixels = torch.from_numpy(preprocess(made.picture, source.preprocessing))[None]
    return F.normalize(source.model.encode_image(pixels), dim=-1).expand(len(made.boxes), -1)


@torch.no_grad()
def of_crops(source: Source, made: Scene) -> Tensor:
    """(R, D) of the boxes cut out, with a border of half their size, and encoded one by one."""
    assert source.preprocessing is not None
    crops = []
    for x1, y1, x2, y2 in made.boxes:
        more = (x2 - x1) / 4
        crop = made.picture.crop(tuple(round(v) for v in (x1 - more, y1 - more, x2 + more, y2 + more)))
        crops.append(torch.from_numpy(preprocess(crop, source.preprocessing)))
    return F.normalize(source.model.encode_image(torch.stack(crops)), dim=-1)


def accuracy(
    source: Source, embed: Callable[[Source, Scene], Tensor], scenes: list[Scene], by_boxes: bool = False
) -> tuple[float, float]:
    """Share of boxes whose nearest name has the right colour, and of those whose name is right."""
    vectors, colors, hits, count = names(source, by_boxes), 0, 0, 0
    for made in scenes:
        best = (embed(source, made) @ vectors[made.ground].T).argmax(dim=1).tolist()
        for kind, found in zip(made.kinds, (KINDS[i] for i in best), strict=True):
            colors += found.split()[0] == kind.split()[0]
            hits += found == kind
            count += 1
    return colors / count, hits / count


@torch.no_grad()
def grounded(source: Source, scenes: list[Scene]) -> dict[str, float]:
    """Of the names whose colour occurs once in their scene: the mean IoU of the box that is answered, and the share with 0.5 or more.

    Beside it what the mean of all boxes would get, which needs no picture.
    """
    vectors, answers, means = names(source, by_boxes=True), [], []
    middle = torch.tensor([box for made in scenes for box in made.boxes]).mean(dim=0).tolist()
    for made in scenes:
        colors = [kind.split()[0] for kind in made.kinds]
        once = [i for i, color in enumerate(colors) if colors.count(color) == 1]
        asked = vectors[made.ground][[KINDS.index(made.kinds[i]) for i in once]]
        assert source.preprocessing is not None
        pixels = torch.from_numpy(preprocess(made.picture, source.preprocessing))[None]
        boxes = source.model.grounding(source.model.tokens(pixels), asked[None])[1][0] * SIDE
        for i, box in zip(once, boxes.tolist(), strict=True):
            answers.append(_iou(box, made.boxes[i]))
            means.append(_iou(middle, made.boxes[i]))
    count = len(answers)
    return {
        "iou": sum(answers) / count,
        "half": sum(iou >= 0.5 for iou in answers) / count,
        "mean_box": sum(means) / count,
        "names": count,
    }


def plain(source: Source, count: int) -> tuple[float, float]:
    """`accuracy` on the pictures of one shape that the start was trained on: no box, the whole picture."""
    vectors, drawn, colors, hits = names(source), open_pairs("shapes:4000"), 0, 0
    assert source.preprocessing is not None
    for i in range(count):
        picture, (caption,) = drawn.read(i)
        _, _, color, shape, _, ground = caption.split()
        pixels = torch.from_numpy(preprocess(picture, source.preprocessing))[None]
        with torch.no_grad():
            best = KINDS[
                int((F.normalize(source.model.encode_image(pixels), dim=-1) @ vectors[ground].T).argmax())
            ]
        colors += best.split()[0] == color
        hits += best == f"{color} {shape}"
    return colors / count, hits / count


def recipes(base: Path, scenes: Path) -> dict[str, Recipe]:
    """The runs; rates and lengths for towers that were trained for minutes, everything else as the recipes have it."""
    small = {"init_from": str(base), "resolution": SIDE, "device": "cpu", "validation_share": 0.05}
    quick = {"warmup_steps": 20, "learning_rate": 5e-4, "checkpoint_every": 100}
    clim = replace(load_recipe("clim_finetune"), last_blocks=3, batch_size=128, **small, **quick)
    clim = replace(clim, data="shapes:4000", objectives=(("multi_positive", 1.0),), steps=300)
    boxes = {"batches": "regions", "encode": "regions", "data": str(scenes), "batch_size": 32}
    by_boxes = replace(
        clim, **boxes, augmentation=Augmentation(crop_scale=(1.0, 1.0)), objectives=(("region_text", 1.0),)
    )
    cloc = replace(
        load_recipe("cloc"),
        **small,
        **{**quick, "learning_rate": 1e-3},
        data=str(scenes),
        batch_size=32,
        steps=600,
    )
    return {"clim": clim, "regions by boxes": by_boxes, "cloc": cloc}


def main() -> None:
    """Train what is not there yet, score, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=300, help="scenes to score; up to six boxes each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    work: Path = settings.work
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = {"start": train(BASE, work / "base").seconds}
    base = load_source(str(work / "base" / "model"))
    data = work / "scenes" / "scenes.jsonl"
    if not data.is_file():
        write_scenes(data.parent, 2000)
    scored = [scene(1_000_000 + i, KINDS) for i in range(settings.scenes)]
    wide = at_resolution(base, (SIDE, SIDE))
    rows: list[tuple[str, float, float]] = [
        ("the start, on whole pictures of one shape", *plain(base, 500)),
        ("the start, boxes cut out and encoded one by one", *accuracy(base, of_crops, scored)),
        ("the start, the whole picture for each of its boxes", *accuracy(base, of_pictures, scored)),
        ("RoI regions of the start", *accuracy(with_regions(wide), of_regions, scored)),
    ]
    for name, recipe in recipes(work / "base" / "model", data).items():
        result = train(recipe, work / name.replace(" ", "-"))
        seconds[name] = result.seconds
        source, by_boxes = load_source(str(result.model)), recipe.batches == "regions"
        what = f"{name}: {recipe.steps} steps of {recipe.batch_size}"
        rows.append((what, *accuracy(source, of_regions, scored, by_boxes)))
        if name == "cloc":
            whole = accuracy(source, of_pictures, scored, by_boxes)
            rows.append(("cloc, the whole picture for each of its boxes", *whole))
            found = grounded(source, scored)
    lines = [f"| {name} | {first:.3f} | {second:.3f} |" for name, first, second in rows]
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    boxes = sum(len(made.boxes) for made in scored)
    text = REPORT.format(
        table="\n".join(lines),
        scenes=len(scored),
        boxes=boxes,
        took=took,
        machine=", ".join(f"{key} {value}" for key, value in describe().items()),
        **found,
    )
    settings.out.write_text(text, encoding="utf-8")
    print(text)


def _touch(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _iou(one: list[float], two: tuple[float, ...]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return shared / (areas - shared)


if __name__ == "__main__":
    main()
