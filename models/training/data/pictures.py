"""A folder of pictures that nobody described."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.folder import SUFFIXES


class Pictures:
    """Every picture below a folder, whatever texts lie beside it. Its pairs have no captions."""

    def __init__(self, root: Path) -> None:
        self._root = root
        found = sorted(
            str(p.relative_to(root)) for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
        )
        self.keys: Sequence[str] = found

    def read(self, index: int) -> tuple[Path, list[str]]:
        """The picture's path, and no text."""
        return self._root / self.keys[index], []


def open_pictures(location: str) -> Pictures:
    """List the folder once; nothing is decoded.

    Raises:
        TrainingError: no such folder, or no picture is in it.
    """
    root = Path(location)
    if not location or not root.is_dir():
        raise TrainingError(
            f"data: expected a folder of pictures beside a text bank, got {location or 'nothing'!r}."
        )
    pictures = Pictures(root)
    if not pictures.keys:
        raise TrainingError(f"{location}: holds no pictures. They end in {', '.join(sorted(SUFFIXES))}.")
    return pictures
