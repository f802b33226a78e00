"""Store what a teacher says of the drawings, each in so many fixed views, and of every text that a batch can hold.

    python examples/nano/teach.py DATA TEACHER FOLDER [VIEWS]

FOLDER then holds views.npy (pictures, views, D) and texts.npy (texts, D), unit vectors in float16, and said.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pictograms import TEMPLATES, Pictograms, augment, of_views
from tokenizers import Tokenizer
from torch.nn import functional as F

from edgeclip.files import new_folder
from edgeclip.models.sources import load_source

VIEWS = 4
TOGETHER = 256  # drawings or texts in one pass


def all_texts(drawings: Pictograms) -> list[str]:
    """Every text that `Pictograms.batch` may show, sorted."""
    words = {*drawings.names, *(name for _, name, _ in drawings.clip_art)}
    words.update(*drawings.texts.values())
    return sorted({template.format(word) for word in words for template in TEMPLATES})


@torch.no_grad()
def main(data: Path, teacher: str, folder: Path, views: int = VIEWS) -> None:
    """Run the teacher over all of it and write the folder, whole or not at all."""
    source = load_source(teacher)
    model = source.model.eval()
    drawings = Pictograms(data, Tokenizer.from_str(source.tokenizer_json.decode()), steps=1)
    trained = [row for rows in drawings.by_name.values() for row in rows]
    rows = sorted({*trained, *(row for row, _, _ in drawings.clip_art)})
    side = model.config.image_size
    said = np.zeros((len(drawings.pictures), views, source.embedding_dim), np.float16)
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        pictures = torch.from_numpy(drawings.pictures[part])
        for view in range(views):
            pixels = augment(pictures, side, of_views(part, [view] * len(part)))
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            said[part, view] = F.normalize(model.encode_image(pixels), dim=-1).numpy()
        print(f"\r{start + len(part)} of {len(rows)} drawings", end="", flush=True)
    texts = all_texts(drawings)
    told = [
        F.normalize(model.encode_text(drawings.ids(texts[start : start + TOGETHER])), dim=-1).half().numpy()
        for start in range(0, len(texts), TOGETHER)
    ]
    with new_folder(folder) as scratch:
        np.save(scratch / "views.npy", said)
        np.save(scratch / "texts.npy", np.concatenate(told))
        scale = float(model.logit_scale.exp())
        (scratch / "said.json").write_text(json.dumps({"views": views, "scale": scale, "texts": texts}))
    print(f"; {len(texts)} texts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
