"""A folder of pictures, each with its captions beside it (x.jpg and x.txt) or named by its subfolder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}

log = logging.getLogger(__name__)


def matches(location: str) -> bool:
    """Whether this is a folder."""
    return Path(location).is_dir()


class Folder:
    """Captions from `x.txt`, one a line, where any picture has one; else the subfolder's name, "_" read as a space."""

    def __init__(self, root: Path) -> None:
        self._root = root
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        texts = {name for name in names if name.endswith(".txt")}
        pictures = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        with_text = [name for name in pictures if str(Path(name).with_suffix(".txt")) in texts]
        self._captioned = bool(with_text)
        self.keys: Sequence[str] = with_text or [name for name in pictures if len(Path(name).parts) > 1]
        if alone := len(pictures) - len(self.keys):
            log.warning(
                "%s: %d of %d pictures have no caption; they are left out", root, alone, len(pictures)
            )

    def read(self, index: int) -> tuple[Path, list[str]]:
        """The picture's path, with the lines of the text beside it or the name of its folder."""
        path = self._root / self.keys[index]
        if not self._captioned:
            return path, [path.parent.name.replace("_", " ")]
        text = path.with_suffix(".txt").read_text(encoding="utf-8-sig", errors="replace")
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise InputError(f"{path.with_suffix('.txt')}: empty.")
        return path, captions


def open_pairs(location: str) -> Folder:
    """List the folder once; nothing is decoded."""
    return Folder(Path(location))
