"""How well a bundle of nano names pictures of a style that it has never seen. Runs on the bundle alone, without PyTorch.

    python examples/nano/evaluate.py DATA BUNDLE[,BUNDLE ...] [training]

Several bundles are an ensemble: their cosines are averaged. With `training`, the held-out pictures of the training styles.
Every picture of DATA/unseen.* is classified among all emoji names, those included that were never trained. "untrained"
is the same over the pictures of those names alone, once among all names and once among their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import edgeclip


def evaluate(data: Path, bundles: str, style: str = "unseen") -> dict[str, float]:
    """Top-1 and top-5, in 0-1.

    Args:
        data: what prepare.py wrote.
        bundles: one, or several with commas between them.
        style: the file of pictures, `unseen` or `training`; of the latter the held-out pictures are taken.
    """
    items = json.loads((data / f"{style}.json").read_text())
    wanted = [i for i, item in enumerate(items) if style == "unseen" or item["split"] == "validation"]
    names = sorted({item["name"] for item in json.loads((data / "unseen.json").read_text())})
    stored = np.load(data / f"{style}.npy", mmap_mode="r")
    pictures = [Image.fromarray(stored[i]) for i in wanted]
    cosines = np.zeros((len(pictures), len(names)), np.float32)
    for bundle in bundles.split(","):
        with edgeclip.load(bundle) as model:
            pack = model.make_labels(names)
            cosines += model.embed_images(pictures, batch_size=64) @ pack.vectors.T
    place = {name: column for column, name in enumerate(names)}
    target = np.array([place[items[i]["name"]] for i in wanted])
    found = {"pictures": float(len(wanted)), "names": float(len(names)), **_hits(cosines, target)}
    rare = np.array([items[i]["split"] == "untrained" for i in wanted])
    if rare.any():
        columns = np.unique(target[rare])
        own = np.searchsorted(columns, target[rare])
        found |= {f"untrained_{key}": value for key, value in _hits(cosines[rare], target[rare]).items()}
        among = _hits(cosines[rare][:, columns], own)
        found |= {f"untrained_among_{len(columns)}_{key}": value for key, value in among.items()}
        found |= {f"trained_{key}": value for key, value in _hits(cosines[~rare], target[~rare]).items()}
    return found


def _hits(cosines: NDArray[np.float32], target: NDArray[np.int64]) -> dict[str, float]:
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    right = best == target[:, None]
    return {"top1": float(right[:, 0].mean()), "top5": float(right.any(axis=1).mean())}


if __name__ == "__main__":
    folder, style = Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else "unseen"
    for key, value in evaluate(folder, sys.argv[2], style).items():
        print(f"{key:32} {value:.4g}")
