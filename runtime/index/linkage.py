"""Records that mean the same thing: a picture and its text pooled into one vector, linked to the nearest of a reference, or to each other.

    records = pool(images, texts, has_text, weight=0.6)       z = norm(w v + (1 - w) t); without a text the picture's own vector

Source: Arora et al. 2023, Linking Representations with Multimodal Contrastive Learning (CLIPPINGS), arXiv:2304.03464.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.files import write_file
from edgeclip.runtime.index.components import ROUNDING, InMemory, Numbers, Progress, Rows, Vectors, join_near
from edgeclip.runtime.index.types import Hit, Item

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

FORMAT = "edgeclip.linkage"
ROWS = 4096  # pooled at once, in float64


@dataclass(frozen=True)
class Linkage:
    """How records are linked. Raises InputError for a weight or threshold out of range."""

    weight: float  # of the picture, 0-1; the text has the rest
    threshold: float  # greatest distance (1 - cosine) of a link
    field: str = "caption"  # of a record, that holds its text
    model_id: str = ""  # of the model that it was tuned for

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(
                f"weight: expected 0 (the text alone) to 1 (the picture alone), got {self.weight}."
            )
        if not 0 <= self.threshold <= 2:
            raise InputError(f"threshold: expected a distance, 0 to 2 (1 - cosine), got {self.threshold}.")

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_file(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def open(cls, path: Path, model_id: str) -> Linkage:
        """Read it. Raises InputError if it is damaged, or was tuned for another model."""
        try:
            facts = json.loads(path.read_bytes())
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            found = cls(
                float(facts["weight"]), float(facts["threshold"]), str(facts["field"]), str(facts["model_id"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}). Expected what `edgeclip index link --tune` writes; tune again."
            ) from error
        if found.model_id != model_id:
            raise InputError(
                f"{path}: was tuned for model {found.model_id[:12]}..., the index is of {model_id[:12]}.... Tune again."
            )
        return found


@dataclass(frozen=True)
class Link:
    """A record, and what it was linked to."""

    left: Hit  # score 1
    right: Hit | None  # score: cosine; None: nothing is near enough

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if self.right is None:
            return {"left": self.left.key, "right": None}
        return {"left": self.left.key, "right": self.right.key, "score": round(self.right.score, 6)}


@dataclass(frozen=True, eq=False)
class Records:
    """Pictures with their texts, both as vectors, in memory: 8 * D bytes a record."""

    ids: Numbers  # (N,) ascending
    items: list[Item]
    images: Vectors  # (N, D) unit rows
    texts: Vectors  # (N, D) unit rows; where there is no text, the picture's
    has_text: NDArray[np.bool_]  # (N,)

    @classmethod
    def read(
        cls, rows: Rows, model: Model, field: str = "caption", *, only: Iterable[int] | None = None
    ) -> Records:
        """The records of an index of pictures.

        Args:
            model: the index's own; embeds the texts.
            field: of each record, that holds its text; one without it is its picture alone.
            only: ids of those that are wanted; None: all.
        Raises:
            InputError: no record has the field.
        """
        parts: list[tuple[Numbers, Vectors, Vectors, NDArray[np.bool_]]] = []
        items: list[Item] = []
        wanted = None if only is None else np.fromiter(only, np.int64)
        for numbers, images, some in rows.batches():
            if wanted is not None:
                inside = np.flatnonzero(np.isin(numbers, wanted))
                numbers, images, some = numbers[inside], images[inside], [some[i] for i in inside.tolist()]
            texts = [str(item.record.get(field) or "").strip() for item in some]
            known = np.array([bool(text) for text in texts], bool)
            beside = images.copy()
            if known.any():
                beside[known] = model.embed_texts([text for text in texts if text])
            parts.append((numbers, images, beside, known))
            items += some
        if not any(part[3].any() for part in parts):
            fields = ", ".join(sorted({name for item in items for name in item.record}))
            raise InputError(f"text field {field!r}: no record has it. They have {fields or 'no fields'}.")
        ids, images, texts_, known = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(ids, items, images, texts_, known)

    def take(self, places: Sequence[int] | Numbers) -> Records:
        """Some of them."""
        some = np.asarray(places, np.int64)
        items = [self.items[i] for i in some.tolist()]
        return Records(self.ids[some], items, self.images[some], self.texts[some], self.has_text[some])

    def pooled(self, weight: float) -> InMemory:
        """As what is searched and grouped; see `pool`."""
        return InMemory(self.ids, pool(self.images, self.texts, self.has_text, weight=weight), self.items)


def pool(
    images: NDArray[Any], texts: NDArray[Any], has_text: NDArray[np.bool_] | None = None, *, weight: float
) -> Vectors:
    """One vector for a picture and its text.

    Args:
        images: (N, D) unit rows.
        texts: (N, D) unit rows.
        has_text: (N,); where False the picture's vector stands alone. None: all have one.
        weight: of the picture, 0-1.
    Returns:
        (N, D) unit rows.
    Raises:
        InputError: other shapes, or a weight outside 0-1.
    """
    Linkage(weight, 0)
    if images.ndim != 2 or images.shape != texts.shape:
        raise InputError(f"pool: expected both (N, D), got images {images.shape} and texts {texts.shape}.")
    found = np.empty(images.shape, np.float32)
    for start in range(0, len(images), ROWS):
        part = slice(start, start + ROWS)
        mixed = weight * images[part].astype(np.float64) + (1 - weight) * texts[part]
        lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
        alone = lengths < 1e-6  # they cancel out: opposite vectors of equal weight
        if has_text is not None:
            alone |= ~np.asarray(has_text[part], bool)[:, None]
        found[part] = np.where(alone, images[part], mixed / np.maximum(lengths, 1e-6))
    return found


def records_of(rows: Rows, model: Model | None, weight: float, field: str = "caption") -> Rows:
    """What `link` compares: the index itself where the picture counts alone, else its records pooled in memory.

    Raises:
        InputError: a weight below 1 without the index's model, one outside 0-1, or no record that has the field.
    """
    Linkage(weight, 0)
    if weight == 1:
        return rows
    if model is None:
        raise InputError(f"weight {weight}: to pool in the texts takes the model. Pass it, or weight 1.")
    return Records.read(rows, model, field).pooled(weight)


def link(
    left: Rows, right: Rows, threshold: float, *, exact: bool = False, progress: Progress | None = None
) -> Iterator[Link]:
    """Link each record of `left` to the nearest of `right` if it is near enough. Both by one weight, of one model.

    Args:
        threshold: greatest distance (1 - cosine); 0 links equal vectors only.
        exact: compare every vector, where an index would walk a graph.
    Raises:
        InputError: a threshold that is no distance.
    """
    Linkage(1, threshold)
    left, right = left.pinned(), right.pinned()
    names: dict[int, Item] = {}
    for numbers, _, items in right.batches():
        names |= zip(numbers.tolist(), items, strict=True)
    for numbers, vectors, items in left.batches():
        found, cosines = right.search_ids(vectors, 1, exact=exact)
        for number, item, other, cosine in zip(
            numbers.tolist(), items, found[:, 0].tolist(), cosines[:, 0].tolist(), strict=True
        ):
            near = other >= 0 and cosine >= 1 - threshold - ROUNDING
            target = Hit(names[other].key, min(cosine, 1), other, names[other].record) if near else None
            yield Link(Hit(item.key, 1.0, number, item.record), target)
        if progress:
            progress(len(numbers))


def link_within(
    rows: Rows, threshold: float, *, exact: bool = False, progress: Progress | None = None
) -> tuple[Numbers, Numbers]:
    """Entities of one index: single linkage of records, so that the relation is symmetric and transitive.

    Args:
        threshold: greatest distance (1 - cosine) of a link.
    Returns:
        (N,) ids and (N,) entities, numbered 0, 1, 2, ... in the order of their first record.
    Raises:
        InputError: a threshold that is no distance.
    """
    Linkage(1, threshold)
    found = join_near(rows, 1 - threshold, exact=exact, progress=progress)
    return found.ids, np.unique(found.labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
