"""Pairs of a picture and its captions, whatever they are stored in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

from edgeclip.errors import TrainingError
from edgeclip.models.training.settings import nearest
from edgeclip.runtime.images.decode import Picture


class Pairs(Protocol):
    """A table of pairs, open for reading by any number of threads."""

    keys: Sequence[
        str
    ]  # one for each picture, the same on every machine: the split and the shuffle hang on it

    def read(self, index: int) -> tuple[Picture, Sequence[str]]:
        """The picture as `runtime.images.decode` takes it, and its captions, at least one. May raise OSError or InputError."""
        ...


# Tried in this order when data_format is "auto". Each module offers matches(location) -> bool and open_pairs(location).
FORMATS = {
    "shapes": "edgeclip.models.training.data.shapes",
    "csv": "edgeclip.models.training.data.csv_table",
    "jsonl": "edgeclip.models.training.data.jsonl",
    "shards": "edgeclip.models.training.data.shards",
    "folder": "edgeclip.models.training.data.folder",
}

# How pairs become batches: module, class. A class takes (recipe, source, shard).
BATCHES = {
    "pairs": ("edgeclip.models.training.data.pairs", "ShuffledPairs"),
    "clustered": ("edgeclip.models.training.data.clustered", "ClusteredPairs"),
    "mosaics": ("edgeclip.models.training.data.mosaics", "Mosaics"),
    "regions": ("edgeclip.models.training.data.region_batches", "RegionPairs"),
    "reinforced": ("edgeclip.models.training.data.reinforced", "ReinforcedPairs"),
    "unlabelled": ("edgeclip.models.training.data.unlabelled", "UnlabelledPictures"),
}


def open_pairs(location: str, data_format: str = "auto") -> Pairs:
    """Open a folder, .csv, .tsv, .jsonl, tar shards, or `shapes:N`.

    Raises:
        TrainingError: nothing is there, no format fits, or no pair was found.
    """
    if not location:
        raise TrainingError(
            "data: not set. Pass --set data=FOLDER (or a .csv, .jsonl, shards/*.tar, shapes:2000)."
        )
    if data_format != "auto" and data_format not in FORMATS:
        raise TrainingError(
            f"data_format: no {data_format!r}{nearest(data_format, FORMATS)} There are auto, {', '.join(FORMATS)}."
        )
    for name, module_name in FORMATS.items():
        module = import_module(module_name)
        if name == data_format or (data_format == "auto" and module.matches(location)):
            pairs: Pairs = module.open_pairs(location)
            if not len(pairs.keys):
                raise TrainingError(
                    f"{location}: read as {name}, but it holds no pair of a picture and a text."
                )
            return pairs
    raise TrainingError(
        f"{location}: no such folder or file, or a format that is not known. There are {', '.join(FORMATS)}."
    )


def batches(entry: str | Callable[..., Any]) -> Callable[..., Any]:
    """The table's class, or the user's own callable.

    Raises:
        TrainingError: no such entry.
    """
    if callable(entry):
        return entry
    if entry not in BATCHES:
        raise TrainingError(
            f"batches: no {entry!r}{nearest(entry, BATCHES)} There are {', '.join(BATCHES)}, or pass a callable."
        )
    module, name = BATCHES[entry]
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
