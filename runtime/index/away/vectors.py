"""What is read from elsewhere: batches of vectors with their items, and the model they are said to come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import Item, Origin

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Batches = Iterator[tuple[Ids, Vectors, list[Item]]]
PREFIX = "edgeclip."  # of what a file's metadata says
_ORIGIN = tuple(field.name for field in fields(Origin))
AT_ONCE = 4096  # vectors in memory: 8 MB at width 512


class Source(Protocol):
    """A QdrantIndex, or a file of vectors."""

    @property
    def dim(self) -> int:
        """Their width."""

    @property
    def origin(self) -> Origin | None:
        """The model; None where it is not known."""

    def __len__(self) -> int:
        """Vectors."""

    def batches(self, size: int = AT_ONCE) -> Batches:
        """(n,) ids, (n, D) float32 unit rows, n items."""


def unit_rows(rows: NDArray[Any], first: int, where: object) -> Vectors:
    """(n, D) float32 of length 1. Rows that rounding to fp16 or int8 made 5 % longer or shorter are set right, no others.

    Raises:
        InputError: a row that no unit vector rounds to, by its number from `first` on.
    """
    found = np.array(rows, np.float32)
    norms = np.linalg.norm(found, axis=1)
    off = np.abs(norms - 1)
    if not np.all(off < 0.05):  # also NaN
        i = int(np.argmax(~(off < 0.05)))
        raise InputError(
            f"{where}: row {first + i}: expected a vector of length 1, got length {norms[i]:.4g}. "
            "Divide each by its norm where the file is written; cosines are what an index compares."
        )
    found[off > 1e-5] /= norms[off > 1e-5, None]
    return found


def origin_facts(origin: Origin) -> dict[str, str]:
    """An origin as texts under names of our own, for a file's metadata."""
    return {
        f"{PREFIX}{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in asdict(origin).items()
    }


def read_origin(facts: Mapping[str, Any], dim: int, where: object) -> Origin | None:
    """What `origin_facts` wrote; None where no model is named.

    Raises:
        InputError: facts that contradict the vectors, or cannot be read.
    """
    own = {name: str(facts[PREFIX + name]) for name in _ORIGIN if PREFIX + name in facts}
    if not own.get("model_id"):
        return None
    try:
        variants, stated = json.loads(own.get("variants", "[]")), int(own.get("dim", dim))
        preprocessing = json.loads(own.get("preprocessing", "null"))
        found = Origin(own["model_id"], own.get("name", ""), stated, tuple(map(str, variants)), preprocessing)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: its note on the model cannot be read ({error}). Export the index again."
        ) from error
    if found.dim != dim:
        raise InputError(
            f"{where}: says vectors of width {found.dim} and holds width {dim}. Export the index again."
        )
    return found


def known_origin(source: Source, given: Origin | None, where: object) -> Origin:
    """The model of vectors: as their file says, or else as the caller does.

    Raises:
        InputError: nobody says, or they disagree.
    """
    stated = source.origin
    if stated is None and given is None:
        raise InputError(
            f"{where}: does not say which model made its vectors. If you know, name it (-b BUNDLE); "
            "queries of another model would find nonsense."
        )
    if stated is not None and given is not None and stated.model_id != given.model_id:
        raise InputError(
            f"{where}: vectors of {stated.name or 'a model'} ({stated.model_id[:12]}), expected {given.name} "
            f"({given.model_id[:12]}). Embed the pictures again with that model."
        )
    found = stated or given
    assert found is not None
    if source.dim != found.dim:
        raise InputError(
            f"{where}: vectors of width {source.dim}, those of {found.name} are {found.dim} wide. Name the model that made them."
        )
    return found
