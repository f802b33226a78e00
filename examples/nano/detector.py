"""nano's detection head, learned on composed scenes while both towers stay as they are.

Command:  python examples/nano/prepare.py DOWNLOADS SCENES 128
          edgeclip train examples/nano/detector.py -o runs/nano-detector --set data=SCENES --set init_from=runs/nano-towers/model
          python examples/nano/calibrate.py SCENES runs/nano-detector/model runs/nano/model
Hours:    0.7 on 2 CPU cores, of which 0.2 for the features of 6,000 scenes
Score:    0.51 AP50 on 250 scenes of held-out Noto drawings, among the names of a scene and 20 others; 0.55 once calibrated
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from evaluate_detection import Found, asked, average_precision, best_threshold
from numpy.typing import NDArray
from recipe import LICENCE
from scene_features import Objects, Stored, store, teachers, unpack
from scenes import drawings, held_out, trained
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgeclip.bundle.manifest import Detection
from edgeclip.models.nano import NanoCLIP
from edgeclip.models.nano_detector import NanoDetectorConfig
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard
from edgeclip.runtime.detect.nms import nms

SCENES, VALIDATION = 6000, 250  # stored; the latter of drawings that no training scene shows
SEED, VALIDATION_SEED = 1, 2
TEMPLATES = ("{}", "a {}", "an icon of a {}")
# Longer sides, in cells of its grid, of the objects that a cell of the finest, the middle and the coarsest grid answers for.
FITS = ((0.0, 5.0), (1.75, 7.0), (2.5, 99.0))
NEAR = 1.5  # cells from an object's centre, within which cells answer for it


@dataclass(frozen=True)
class Batch:
    """One step's material: B scenes, M objects in all, Q cells, C names."""

    features: Tensor  # (B, K)
    target: Tensor  # (B, Q) the object that a cell answers for; -1: none
    boxes: Tensor  # (M, 4) xyxy, 0-1 of the scene
    names: Tensor  # (C, D) unit text vectors
    name: Tensor  # (M,) the row of `names` of each object
    teacher: Tensor  # (M, D) what the classifier makes of each object's drawing alone


class Scenes:
    """Stored scenes, and the vectors of all names that stand in them."""

    def __init__(self, recipe: Recipe, source: Source) -> None:
        model = source.model
        assert isinstance(model, NanoCLIP)
        model.eval()  # a tower in training would move its running means
        self.model, self.batch_size, self.seed = model, recipe.batch_size, recipe.seed
        folder = Path(recipe.data)
        shown = drawings(folder, "training", trained)
        others = drawings(folder, "training", held_out)
        assert model.detector is not None
        head = model.detector.head
        self.centres, self.strides = head.centres.numpy(), head.strides.numpy()
        self.names = sorted(shown.by_name)
        self.row = {name: row for row, name in enumerate(self.names)}
        self.source = source
        self.texts = torch.stack([vectors(source, [t.format(n) for n in self.names]) for t in TEMPLATES])
        self.teachers = teachers(folder / "scenes" / "teachers.npy", model, shown)
        self.validation = store(folder / "scenes", model, others, VALIDATION_SEED, VALIDATION)
        self.stored = store(folder / "scenes", model, shown, SEED, SCENES)
        self.fingerprint = f"{SCENES} scenes of {len(self.names)} names"

    def batch(self, step: int) -> Batch:
        """Scenes drawn evenly."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.stored.objects), self.batch_size, replace=False)
        objects = [self.stored.objects[i] for i in chosen.tolist()]
        targets, first = [], 0
        for scene in objects:
            target = assign(scene.boxes, self.centres, self.strides[:, 0])
            targets.append(np.where(target >= 0, target + first, -1))
            first += len(scene.boxes)
        template = rng.integers(len(TEMPLATES), size=len(self.names))
        return Batch(
            torch.from_numpy(self.stored.read(chosen)),
            torch.from_numpy(np.stack(targets)),
            torch.from_numpy(np.concatenate([scene.boxes for scene in objects])) / 256,
            self.texts[torch.from_numpy(template), torch.arange(len(self.names))],
            torch.tensor([self.row[name] for scene in objects for name in scene.names]),
            self.teachers[[row for scene in objects for row in scene.rows]],
        )

    @torch.no_grad()
    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """AP50 on scenes of held-out drawings."""
        assert isinstance(model, NanoCLIP)
        model.eval()
        found = find(replace(self.source, model=model), self.validation)
        scores = average_precision(self.validation.objects, found)
        threshold, f1 = best_threshold(self.validation.objects, found)
        return {"score": scores["AP50"], **scores, "threshold": threshold, "F1": f1}


@torch.no_grad()
def vectors(source: Source, texts: list[str]) -> Tensor:
    """(N, D) of unit length."""
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode())
    assert source.text is not None
    rows = [torch.tensor(tokenizer.encode(text).ids[: source.text.context_length]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return F.normalize(torch.cat([source.model.encode_text(part) for part in ids.split(512)]), dim=-1)


@torch.no_grad()
def find(source: Source, stored: Stored) -> list[Found]:
    """What a model finds in stored scenes, each asked for its names and 20 others."""
    model = source.model
    assert isinstance(model, NanoCLIP)
    assert model.detector is not None
    prompts = asked(stored.objects, others=20, seed=0)
    every = sorted({name for names in prompts for name in names})
    texts = dict(zip(every, vectors(source, every), strict=True))
    found = []
    for start in range(0, len(stored.objects), 10):
        values = stored.read(np.arange(start, start + 10))
        regions = model.detector.head(unpack(model, torch.from_numpy(values)))
        unit = F.normalize(regions.embeddings, dim=-1)
        for i, names in enumerate(prompts[start : start + 10]):
            cosines = unit[i] @ torch.stack([texts[name] for name in names]).T
            logits = regions.scales[i, :, None] * cosines + regions.biases[i, :, None]
            scores = (torch.sigmoid(logits) * regions.objectness[i, :, None]).numpy()
            found.append(_best((regions.boxes[i] * 256).numpy(), scores, names))
    return found


def _best(boxes: NDArray[np.float32], scores: NDArray[np.float32], names: list[str]) -> Found:
    rows, labels = np.nonzero(scores > 0.001)
    values = scores[rows, labels]
    kept = nms(boxes[rows], values, labels, 0.5, most=100)
    return Found(boxes[rows[kept]], values[kept], [names[i] for i in labels[kept].tolist()])


def assign(
    boxes: NDArray[np.float32], centres: NDArray[np.float32], strides: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The object that each cell answers for: one of a fitting size, near whose centre it lies; of several the smallest.

    Args:
        boxes: (M, 4) xyxy pixels.
        centres, strides: (Q, 2) and (Q,) of the cells, pixels.
    Returns:
        (Q,) rows of `boxes`; -1: none. Each object has a cell, unless smaller ones take it.
    """
    target = np.full(len(centres), -1)
    grids = {stride: FITS[i] for i, stride in enumerate(np.unique(strides).tolist())}
    low, high = np.array([grids[stride] for stride in strides.tolist()]).T
    for i in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable").tolist():
        size = boxes[i, 2:] - boxes[i, :2]
        cells = size.max() / strides
        fits = (cells >= low) & (cells < high)
        away = np.abs(centres - (boxes[i, :2] + boxes[i, 2:]) / 2)
        near = fits & (away < size / 2).all(1) & (away < NEAR * strides[:, None]).all(1)
        if not near.any():
            distance = np.where(fits, away.max(1), np.inf)
            near = distance == distance.min()
        target[near] = i
    return target


def with_detector(recipe: Recipe) -> Source:
    """The released towers and a new head, whose embeddings begin as the classifier's own."""
    source = load_source(recipe.init_from)
    old = source.model
    assert isinstance(old, NanoCLIP)
    torch.manual_seed(recipe.seed)
    model = NanoCLIP(replace(old.config, detector=NanoDetectorConfig()))
    model.load_state_dict(old.state_dict(), strict=False)
    assert model.detector is not None
    model.detector.head.start_from(model.image.projection)
    assert source.preprocessing is not None
    side = model.detector.config.image_size
    own = replace(source.preprocessing, size=(side, side))
    detection = Detection(threshold=0.2, objectness=True, preprocessing=own)
    return replace(source, model=model.eval(), detection=detection)


def scenes(recipe: Recipe, source: Source, shard: Shard) -> Scenes:
    """The batches; features of scenes that are not stored yet are made first: 0.15 s a scene."""
    return Scenes(recipe, source)


def encode(model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
    """What the head says, of all cells and of the P that answer for an object."""
    assert isinstance(model, NanoCLIP)
    assert model.detector is not None
    regions = model.detector.head(unpack(model, batch.features))
    answering = batch.target >= 0
    target = batch.target[answering]
    cells = torch.bincount(target, minlength=len(batch.boxes))[target]
    boxes, wanted = regions.boxes[answering], batch.boxes[target]
    overlap, giou = overlaps(boxes, wanted)
    quality = torch.zeros_like(regions.objectness)
    quality[answering] = overlap.detach()
    return {
        "objectness": regions.objectness,
        "quality": quality,
        "giou": giou,
        "distance": ((boxes - wanted).abs() / (wanted[:, 2:] - wanted[:, :2]).repeat(1, 2)).mean(1),
        "share": 1 / cells / len(batch.boxes),
        "cosines": F.normalize(regions.embeddings[answering], dim=-1) @ batch.names.T,
        "scales": regions.scales[answering],
        "biases": regions.biases[answering],
        "name": batch.name[target],
        "likeness": F.cosine_similarity(regions.embeddings[answering], batch.teacher[target], dim=-1),
    }


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """-> intersection over union and its generalised form, of each pair of rows. (P, 4) xyxy -> (P,), (P,).

    Source: Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    overlap = shared / union
    return overlap, overlap - (hull - union) / hull


def finding(objectness: Tensor, quality: Tensor) -> Tensor:
    """Is an object here, and how well is its box placed? Summed over cells, for each answering one.

    Source: Li et al. 2020 (quality focal loss), arXiv:2006.04388.
    """
    error = F.binary_cross_entropy(objectness, quality, reduction="none")
    return ((objectness - quality).detach().square() * error).sum() / (quality > 0).sum().clamp(min=1)


def placing(giou: Tensor, distance: Tensor, share: Tensor) -> Tensor:
    """Boxes: each object counts once, however many cells answer for it."""
    return ((1 - giou + distance) * share).sum()


def naming(cosines: Tensor, name: Tensor, share: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of the object's name among all, smoothed as the classifier's was; the scale stays the classifier's."""
    losses = F.cross_entropy(scale.detach() * cosines, name, label_smoothing=0.1, reduction="none")
    return (losses * share).sum()


def asking(cosines: Tensor, scales: Tensor, biases: Tensor, name: Tensor, share: Tensor) -> Tensor:
    """Yes or no to each name: what a score at run time is made of. The embeddings are left to `naming`."""
    logits = scales[:, None] * cosines.detach() + biases[:, None]
    losses = F.binary_cross_entropy_with_logits(
        logits, F.one_hot(name, logits.shape[1]).float(), reduction="none"
    )
    return (losses.sum(1) * share).sum()


def resembling(likeness: Tensor, share: Tensor) -> Tensor:
    """A region's embedding is the classifier's of the drawing alone: so it is for names that never had a box."""
    return ((1 - likeness) * share).sum()


RECIPE = Recipe(
    name="nano",
    model=with_detector,
    batches=scenes,
    encode=encode,
    objectives=((finding, 2.0), (placing, 1.0), (naming, 0.5), (asking, 0.1), (resembling, 3.0)),
    licence=LICENCE,
    steps=2000,
    batch_size=16,
    optimizer="muon",  # after 20 steps where AdamW at 2e-3 is after 40
    learning_rate=6e-3,
    weight_decay=0.02,
    betas=(0.9, 0.99),
    warmup_steps=50,
    clip_grad=5.0,
    ema_decay=0.99,
    checkpoint_every=100,
    workers=1,
)


__all__ = ["RECIPE", "Objects", "assign", "encode"]
