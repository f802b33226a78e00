"""What the frozen image tower makes of composed scenes, stored once: a detection head then learns at a third of the cost.

N scenes, K values a scene (all features of all scales, flattened), M objects, D embedding width.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scenes import Drawings, Scene, compose
from torch import Tensor

from edgeclip.export.nano_towers import folded
from edgeclip.models.nano import NanoCLIP
from edgeclip.models.nano_detector import pyramid, split

log = logging.getLogger(__name__)

SHARD = 250  # scenes a file: 115 MB


@dataclass(frozen=True)
class Objects:
    """What stands in one stored scene."""

    boxes: NDArray[np.float32]  # (M, 4) xyxy pixels
    names: tuple[str, ...]  # M
    rows: tuple[int, ...]  # M: which drawing


@dataclass(frozen=True)
class Stored:
    """Scenes as the head sees them."""

    features: list[NDArray[np.float16]]  # of each shard (SHARD, K), mapped
    objects: list[Objects]

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        """(B, K)."""
        return np.stack([self.features[i // SHARD][i % SHARD] for i in indices.tolist()])


def store(folder: Path, model: NanoCLIP, source: Drawings, seed: int, count: int) -> Stored:
    """The features of scenes 0 to `count` of a seed: those that are not in `folder` yet are made first.

    Args:
        count: a multiple of SHARD.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features, objects = [], []
    for start in range(0, count, SHARD):
        values, described = folder / f"{seed}-{start}.npy", folder / f"{seed}-{start}.json"
        if not described.exists():
            log.info("scenes %d to %d of seed %d", start, start + SHARD, seed)
            scenes = [compose(source, seed, number) for number in range(start, start + SHARD)]
            np.save(
                values, np.concatenate([_features(model, scenes[i : i + 10]) for i in range(0, SHARD, 10)])
            )
            rows = [{"boxes": s.boxes.tolist(), "names": s.names, "rows": s.rows} for s in scenes]
            described.write_text(json.dumps(rows))
        features.append(np.load(values, mmap_mode="r"))
        for row in json.loads(described.read_text()):
            boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
            objects.append(Objects(boxes, tuple(row["names"]), tuple(row["rows"])))
    return Stored(features, objects)


@torch.no_grad()
def teachers(path: Path, model: NanoCLIP, source: Drawings) -> Tensor:
    """(P, D) the classifier's own embedding of every stored drawing, alone on white; rows that no scene shows are zero."""
    if not path.exists():
        side = model.config.image_size
        found = torch.zeros(len(source.pictures), model.config.embed_dim)
        rows = sorted({row for rows in source.by_name.values() for row in rows})
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            alone = [_on_white(source.pictures[row], side) for row in part]
            found[part] = model.encode_image(pixels(np.stack(alone)))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, torch.nn.functional.normalize(found, dim=-1).numpy())
    return torch.from_numpy(np.load(path))


def pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) RGB -> (N, 3, H, W) as nano's preprocessing gives them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def unpack(model: NanoCLIP, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(B, K) -> what the head takes."""
    detector = model.detector
    assert detector is not None
    _, fine, coarse = split(model.image.stages)
    shapes = []
    for scale in range(detector.config.scales):
        side = detector.config.image_size // detector.head.stride // 2**scale
        shapes += [(fine, side, side), (coarse, side // 2, side // 2)]
    parts = values.float().split([c * h * w for c, h, w in shapes], dim=1)
    maps = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    return list(zip(maps[::2], maps[1::2], strict=True))


@torch.no_grad()
def _features(model: NanoCLIP, scenes: list[Scene]) -> NDArray[np.float16]:
    assert model.detector is not None
    stages = folded(model.image.stages).to(memory_format=torch.channels_last)
    batch = pixels(np.stack([scene.picture for scene in scenes])).contiguous(
        memory_format=torch.channels_last
    )
    found = pyramid(stages, batch, model.detector.config.scales)
    return torch.cat([part.flatten(1) for pair in found for part in pair], 1).half().numpy()


def _on_white(drawing: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    alpha = drawing[:, :, 3:] / 255
    composed = np.round(drawing[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.asarray(cv2.resize(composed, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
