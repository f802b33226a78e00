"""The public API as a user's program has it. mypy checks this file strictly, and a test runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgeclip
from edgeclip import (
    Answer,
    Bundle,
    Classification,
    Detections,
    EdgeClipError,
    Example,
    ExpertUse,
    LabelPack,
    Model,
    Proposals,
    Routing,
    Tiling,
    Tokens,
)


def name_pictures(bundle: str | Path, pictures: list[Path], labels: list[str]) -> dict[str, str | None]:
    """The best label of each picture that can be read; None where no label scores 0.01."""
    names: dict[str, str | None] = {}
    with edgeclip.load(bundle, threads=1) as model:
        for path, result in zip(pictures, model.classify_each(pictures, labels, threshold=0.01), strict=True):
            names[path.name] = str(result) if isinstance(result, EdgeClipError) else result.label
    return names


def one_and_several(model: Model, picture: Path) -> tuple[Classification, list[Classification]]:
    """One picture in gives one result out; several give a list."""
    one: Classification = model.classify(picture, ["a cat", "a dog"], top_k=1)
    several: list[Classification] = model.classify([picture, picture.read_bytes()], ("a cat", "a dog"))
    return one, several


def by_baked_labels(model: Model, picture: Path) -> str | None:
    """The best of the labels that `edgeclip bake` put into the bundle; None where it has none."""
    result: Classification | None = model.classify(picture) if model.labels else None
    return result.label if result else None


def find_things(model: Model, picture: Path, other: Path) -> list[Detections]:
    """By texts, by an example, in tiles, within each other, and again without the image tower."""
    one: Detections = model.detect(picture, ["a face"], threshold={"a face": 0.2}, tile=Tiling(640, 0.2))
    shown = [Example(other, (10, 20, 60, 80), "this cup")]
    several: list[Detections] = model.detect([picture, other], "[a face [an eye]]", examples=shown)
    seen: Proposals = model.propose(picture)
    return [one, *several, model.detect_in(seen, ["a cup"]), model.detect_in(seen, examples=shown).above(0.5)]


def who_takes_what(model: Model, picture: Path) -> tuple[list[float], list[list[int]], ExpertUse]:
    """Of a mixture of experts: how alike each block's experts are used, and the expert of each patch in the first of them."""
    use: ExpertUse = model.expert_use([picture], keep=2)
    routing: Routing = model.routing_of(picture)
    several: list[Routing] = model.routing_of([picture, picture])
    balance: list[float] = use.balance.tolist()
    patches: list[list[int]] = several[1].map_of(routing.blocks[0]).tolist()
    return balance, patches, model.expert_use(texts=["a cat"])


def ask_regions(
    model: Model, picture: Path
) -> tuple[NDArray[np.float32], list[Classification], Answer, Answer]:
    """What is in boxes of a picture; and again by boxes and by points, without the image tower."""
    boxes = [(0, 0, 20, 20), (10, 10, 40, 40)]
    tokens: Tokens = model.tokens_of(picture)
    vectors: NDArray[np.float32] = model.embed_regions(picture, boxes)
    named: list[Classification] = model.classify_regions(picture, boxes, ["red", "green"])
    return vectors, named, model.ask(tokens, boxes=boxes), model.ask(tokens, points=[(5, 5)])


def watch(model: Model, source: str) -> list[NDArray[np.uint8]]:
    """The frames of a source, drawn upon."""
    with edgeclip.stream(model, source, ["a face"], threshold=0.3) as session:
        return [edgeclip.draw(result.frame.image, result.detections) for result in session]


def similarity(model: Model, frame: NDArray[np.uint8], text: str) -> float:
    """Cosine of a camera's BGR frame and a text."""
    image: NDArray[np.float32] = model.embed_images(frame, color="bgr")
    return float(image @ model.embed_texts(text))


def pack_labels(bundle: Bundle, file: Path) -> LabelPack:
    """Save a label pack and read it again."""
    with edgeclip.load(bundle) as model:
        model.make_labels(["a cat", "a dog"], ["a photo of a {}"]).save(file)
    pack = LabelPack.open(file)
    assert pack.model_id == bundle.manifest.model_id
    return pack


def build_ahead(bundle: Bundle, folder: Path) -> dict[str, int]:
    """Engines for RTX cards that are not here: bytes of each, by the graph that it is."""
    settings = edgeclip.BuildSettings(precision="fp32", archs=("sm86", "sm89"), output=folder)
    return {each.variant.id: each.size for each in edgeclip.build_engines(bundle, "tensorrt-rtx", settings)}
