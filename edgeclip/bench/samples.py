"""The inputs of a run, in memory before any clock runs: pictures as encoded bytes, texts as they are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Literal

import numpy as np

from edgeclip.bench.generated import HEIGHT, SENTENCES, WIDTH, generated_pictures
from edgeclip.bench.report import PictureSet
from edgeclip.bench.settings import Settings
from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime.images.decode import decode
from edgeclip.runtime.threads import usable_cores

MOST_PICTURES, MOST_BYTES = 256, 256 << 20  # more would tell nothing new, and a small device must hold them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What queries draw from, with replacement."""

    pictures: tuple[bytes, ...]  # encoded files, as a device reads them
    texts: tuple[str, ...]
    facts: PictureSet


def load_inputs(images: Path | None, task: str, settings: Settings) -> Inputs:
    """Read, or make, what the task's queries draw from.

    Args:
        images: a picture, or a folder that is searched below; of more than 256 pictures or 256 MB the seed chooses. One that cannot be
            decoded is left out and logged. None: pictures that edgeclip makes.
        task: an entry of `edgeclip.bench.tasks.TASKS`.
        settings: `labels` are the texts of a task that takes texts; (): sixteen sentences. `seed` chooses pictures.
    Raises:
        InputError: no such task, no usable picture, or a folder given to a task that reads none.
    """
    from edgeclip.bench.tasks import unit_of  # late: tasks are typed by what is here

    if unit_of(task) == "text":
        if images is not None:
            raise InputError(f"{images}: task {task!r} reads texts, no pictures. Drop --images.")
        return _texts(settings.labels or SENTENCES)
    if images is None:
        pictures = generated_pictures()
        return _pictures(pictures, [WIDTH * HEIGHT] * len(pictures), "generated")
    usable = list(_usable(_chosen(images, settings.seed)))
    if not usable:
        raise InputError(f"{images}: none of its pictures can be used. Pass a folder of photographs.")
    return _pictures([data for data, _ in usable], [pixels for _, pixels in usable], "pictures")


def _texts(texts: Sequence[str]) -> Inputs:
    encoded = [text.encode() for text in texts]
    facts = PictureSet("texts", len(texts), median_low(map(len, encoded)), 0, _digest(encoded))
    return Inputs((), tuple(texts), facts)


def _pictures(data: list[bytes], pixels: list[int], kind: Literal["pictures", "generated"]) -> Inputs:
    facts = PictureSet(kind, len(data), median_low(map(len, data)), median_low(pixels), _digest(data))
    return Inputs(tuple(data), (), facts)


def _chosen(images: Path, seed: int) -> list[Path]:
    """The files to read, in a stable order."""
    try:
        if images.is_file():
            return [images]
        folder = images.is_dir()
    except OSError as error:  # a name too long
        raise InputError(
            f"{images}: cannot be read ({error.strerror}). Expected a folder of pictures."
        ) from error
    if not folder:
        raise InputError(f"{images}: no such file or folder. Expected a folder of pictures.")
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not found:
        endings = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{images}: the folder holds no pictures. Their names end in {endings}.")
    order = (
        np.random.default_rng(seed).permutation(len(found))
        if len(found) > MOST_PICTURES
        else range(len(found))
    )
    kept, size = list[Path](), 0
    for i in islice(order, MOST_PICTURES):
        size += found[i].stat().st_size
        if kept and size > MOST_BYTES:
            break
        kept.append(found[i])
    return kept


def _usable(paths: Sequence[Path]) -> Iterator[tuple[bytes, int]]:
    """Bytes and pixels of each picture that decodes to its end."""

    def read(path: Path) -> tuple[bytes, int] | InputError:
        try:
            data = path.read_bytes()
            width, height = decode(data, at_least=_small, where=str(path)).size
        except OSError as error:
            return InputError(f"{path}: cannot be read ({error.strerror}).")
        except InputError as error:
            return error
        return data, width * height

    with ThreadPoolExecutor(usable_cores()) as pool:
        for found in pool.map(read, paths):
            if isinstance(found, InputError):
                log.warning("left out: %s", found)
            else:
                yield found


def _small(width: int, height: int) -> tuple[int, int]:
    """An eighth will do: every byte is read all the same."""
    return width // 8, height // 8


def _digest(parts: Sequence[bytes]) -> str:
    """SHA-256 over all, in order, each with its length before it."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
