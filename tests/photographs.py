"""Pictures for tests: photographs where they lie beside the repository, made-up ones otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgeclip.export.samples import made_up_pictures

FOLDER = Path(__file__).parents[1] / ".." / "shared" / "data" / "coco64" / "images"
needs_photographs = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs photographs in {FOLDER}")


def photographs(count: int | None = None) -> list[Path]:
    """The photographs (none where the folder is absent), or the first few."""
    return sorted(FOLDER.glob("*.jpg"))[:count]


def pictures(folder: Path, count: int) -> list[Path]:
    """So many JPEG files: photographs, or made-up pictures written into `folder`."""
    if found := photographs(count):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02}.jpg" for i in range(count)]
    for path, picture in zip(paths, made_up_pictures(count), strict=True):
        Image.fromarray(picture).resize((640, 427)).save(path, quality=90)
    return paths
