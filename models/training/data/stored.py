"""Rows of teachers in shards: read by memory map, each file checked against its SHA-256 once, when it is first read.

A shard holds `index` (n,) int64, places of its pairs in the data's keys; `image` (n, views, D) float16; and of the different texts of
its pairs `text` (m, D) float16, with `texts`, UTF-8 bytes, text j from `ends[j]` to `ends[j + 1]`, and `groups` (m,) int64, which texts of one caption share. Pair i has
those texts that `captions[offsets[i] : offsets[i + 1]]` names. Of pictures without texts all but the first two are absent.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgeclip.errors import TrainingError
from edgeclip.files import sha256_file

Half = NDArray[np.float16]

AGAIN = "Reinforce the data again, into the same folder: only what is missing or damaged is made anew."


@dataclass(frozen=True)
class StoredFile:
    """A file that a manifest lists."""

    name: str
    size: int  # bytes
    sha256: str
    pairs: int = 0  # that have rows
    unreadable: int = 0  # pairs that could not be read and are left out

    def check_size(self, folder: Path) -> None:
        """Raises TrainingError: it is missing, or longer or shorter."""
        path = folder / self.name
        size = path.stat().st_size if path.is_file() else None
        if size != self.size:
            came = "missing" if size is None else f"{size} bytes long"
            raise TrainingError(f"teacher_data: {path} is {came}, expected {self.size} bytes. {AGAIN}")

    def intact(self, folder: Path) -> bool:
        """Whether it is there with the content that the manifest states."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.size and sha256_file(path) == self.sha256

    def open(self, folder: Path) -> Any:
        """The file as `safetensors.safe_open` gives it. Raises TrainingError: its content is not what was written."""
        path = folder / self.name
        try:
            if sha256_file(path) != self.sha256:
                raise TrainingError(f"teacher_data: {path} does not match its SHA-256. {AGAIN}")
            return safe_open(path, "numpy")
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"teacher_data: {path} cannot be read ({error}). {AGAIN}") from error


class _Shard:
    """One shard, opened and checked at its first use."""

    def __init__(self, file: StoredFile, folder: Path) -> None:
        self._file = file.open(folder)
        self.image = self._file.get_slice("image")
        self.labelled = "text" in self._file.keys()  # noqa: SIM118 (no mapping)
        if self.labelled:
            self.text, self.texts = self._file.get_slice("text"), self._file.get_slice("texts")
            self.captions, self.offsets, self.ends, self.groups = (
                self._file.get_tensor(name) for name in ("captions", "offsets", "ends", "groups")
            )


class Stored:
    """The rows of all pairs. Any number of threads may read."""

    def __init__(self, folder: Path, shards: Sequence[StoredFile], pairs: int) -> None:
        self._folder, self._files = folder, shards
        self._lock = threading.Lock()
        self._opened: dict[int, _Shard] = {}
        self._shard, self._row = np.full(pairs, -1, np.int32), np.zeros(pairs, np.int32)
        for number, file in enumerate(shards):
            index = _index(folder / file.name)
            if len(index) != file.pairs or not ((index >= 0) & (index < pairs)).all():
                raise TrainingError(
                    f"teacher_data: {folder / file.name} names pairs that are not there. {AGAIN}"
                )
            self._shard[index], self._row[index] = number, np.arange(len(index))

    @property
    def there(self) -> NDArray[np.bool_]:
        """(pairs,) whether a pair has rows."""
        found: NDArray[np.bool_] = self._shard >= 0
        return found

    def image(self, index: int, view: int) -> Half:
        """(D,) of one view. Raises TrainingError: the shard is damaged."""
        shard, row = self._find(index)
        found: Half = shard.image[row : row + 1, view : view + 1][0, 0]
        return found

    def text(self, index: int, rng: Generator) -> tuple[str, int, Half]:
        """One of the pair's texts, drawn, its group, and its (D,). Raises TrainingError: the shard is damaged."""
        shard, row = self._find(index)
        start, stop = shard.offsets[row : row + 2]
        j = int(shard.captions[int(rng.integers(start, stop))])
        text = shard.texts[int(shard.ends[j]) : int(shard.ends[j + 1])].tobytes().decode()
        return text, int(shard.groups[j]), shard.text[j : j + 1][0]

    def _find(self, index: int) -> tuple[_Shard, int]:
        number = int(self._shard[index])
        with self._lock:
            if number not in self._opened:
                self._opened[number] = _Shard(self._files[number], self._folder)
            return self._opened[number], int(self._row[index])


def _index(path: Path) -> NDArray[np.int64]:
    try:
        with safe_open(path, "numpy") as opened:
            index: NDArray[np.int64] = opened.get_tensor("index")
            return index
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"teacher_data: {path} cannot be read ({error}). {AGAIN}") from error


def packed(texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Texts as tensors: `texts` and `ends`."""
    raw = [text.encode() for text in texts]
    ends = np.concatenate([[0], np.cumsum([len(one) for one in raw], dtype=np.int64)]).astype(np.int64)
    return {"texts": np.frombuffer(b"".join(raw), np.uint8), "ends": ends}


def unpacked(texts: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[str]:
    """What `packed` packed."""
    return [texts[a:b].tobytes().decode() for a, b in pairwise(ends)]
