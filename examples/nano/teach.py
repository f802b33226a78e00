"""Store what a teacher says of the drawings, each in so many fixed views, and of every text that a batch can hold.

    python examples/nano/teach.py DATA TEACHER FOLDER [VIEWS]

TEACHER is a source (runs/teacher/model), or a bundle (bundle:nano is the one that is shipped). FOLDER then holds views.npy (pictures, views, D) and texts.npy (texts, D), unit vectors in float16, and said.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pictograms import TEMPLATES, Pictograms, augment, of_views
from tokenizers import Tokenizer

from edgeclip.export.distill.teachers import open_teachers
from edgeclip.files import new_folder

VIEWS = 4
TOGETHER = 256  # drawings or texts in one pass


def all_texts(drawings: Pictograms) -> list[str]:
    """Every text that `Pictograms.batch` may show, sorted."""
    words = {*drawings.names, *(name for _, name, _ in drawings.clip_art)}
    words.update(*drawings.texts.values())
    return sorted({template.format(word) for word in words for template in TEMPLATES})


def main(data: Path, teacher: str, folder: Path, views: int = VIEWS) -> None:
    """Run the teacher over all of it and write the folder, whole or not at all."""
    drawings = Pictograms(data, Tokenizer.from_file(str(data / "tokenizer.json")), steps=1)
    trained = [row for rows in drawings.by_name.values() for row in rows]
    rows = sorted({*trained, *(row for row, _, _ in drawings.clip_art)})
    texts = all_texts(drawings)
    with open_teachers([teacher], device="cpu") as opened:
        side = opened.specs[0].size[0]
        said = np.zeros((len(drawings.pictures), views, opened.dim), np.float16)
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            pictures = torch.from_numpy(drawings.pictures[part])
            for view in range(views):
                pixels = augment(pictures, side, of_views(part, [view] * len(part)))
                said[part, view] = opened.images([pixels.contiguous().numpy()])
            print(f"\r{start + len(part)} of {len(rows)} drawings", end="", flush=True)
        told = [
            opened.texts(texts[start : start + TOGETHER]).astype(np.float16)
            for start in range(0, len(texts), TOGETHER)
        ]
        scale = opened.scale
    with new_folder(folder) as scratch:
        np.save(scratch / "views.npy", said)
        np.save(scratch / "texts.npy", np.concatenate(told))
        (scratch / "said.json").write_text(json.dumps({"views": views, "scale": scale, "texts": texts}))
    print(f"; {len(texts)} texts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
