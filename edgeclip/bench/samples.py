"""The inputs of a run, in memory before any clock runs: pictures as encoded bytes, texts as they are."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.bench.report import PictureSet


@dataclass(frozen=True)
class Inputs:
    """What queries draw from, with replacement."""

    pictures: tuple[bytes, ...]  # encoded files, as a device reads them
    texts: tuple[str, ...]
    facts: PictureSet
