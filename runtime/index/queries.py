"""Questions of several parts: texts and pictures, wanted and unwanted, as one vector.

    index.search(Query(texts=["blue"], images=["red-car.jpg"], not_texts=["red"]))

The vector is norm(sum of w x wanted - sum of w x unwanted), each part a unit vector (Jia et al. 2021, arXiv:2102.05918, section 5.4).
The weights were chosen with the embedded model on 1,641 emoji of a style that it was never trained on. "This picture, but b in place of
a" found its picture first in 72 % of 704 questions (53 % without the unwanted text, 68 % with all weights 1). "An apple, not red" put
what was wanted above what was not in 72 % of the pairs (50 % without the unwanted text), while its average precision fell from 0.46 to
0.39; at weight 1 that is 79 % and 0.15.

Pictures and texts of a CLIP lie apart (the modality gap). As long as all that is stored is of one kind, that moves the scores of a question
nearly alike: centring each part found as much (68 % of those 704 questions with it and without, all weights 1) and is off. It is for an
index that holds texts beside pictures: of 400 pictures that asked one of all 1,641 pictures and their names, 35 % found their own name
among the first ten, centred 65 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.images.decode import Picture
from edgeclip.runtime.index.places import is_text
from edgeclip.runtime.pictures import is_one

if TYPE_CHECKING:
    from edgeclip.runtime.codecs.kinds import Kind
    from edgeclip.runtime.index.types import Item
    from edgeclip.runtime.model import Model

Vectors = NDArray[np.float32]
# A term may bring its own weight. A picture may be a vector already: (D,) float32, e.g. one that is stored.
Text = str | tuple[str, float]
Image = Picture | Vectors | tuple[Picture | Vectors, float]

FEWEST, MOST = (
    64,
    16_384,
)  # stored vectors of a kind that a mean is taken of; and those that are looked at for it
LEAST = 1e-3  # of the weights' sum: what is shorter points nowhere, but where rounding led it


class Stored(Protocol):
    """What is asked of an index here."""

    def batches(self, size: int = ...) -> Iterable[tuple[NDArray[np.int64], Vectors, list[Item]]]:
        """(n,) ids, (n, D) vectors and n items at a time."""


@dataclass(frozen=True)
class Query:
    """What is wanted and what is not. One term may stand alone, without a list. Raises InputError for what is no term or weight."""

    texts: Text | Sequence[Text] = ()
    images: Image | Sequence[Image] = ()
    not_texts: Text | Sequence[Text] = ()
    not_images: Image | Sequence[Image] = ()
    text_weight: float = 1.0  # of each text without a weight of its own
    image_weight: float = (
        0.7  # of each picture; scores of pictures with pictures differ more than those with texts
    )
    negative_weight: float = 0.5  # times that, of what is not wanted
    centre: bool = False  # take each kind's mean off first

    def __post_init__(self) -> None:
        for name in ("text_weight", "image_weight", "negative_weight"):
            _check_weight(getattr(self, name), name)
        for name in ("texts", "images", "not_texts", "not_images"):
            object.__setattr__(self, name, _terms(getattr(self, name), name))
        if not (self.texts or self.images or self.not_texts or self.not_images):
            raise InputError("query: expected a text or a picture, got neither.")

    def parts(self) -> Iterator[tuple[Kind, Any, float]]:
        """Each term as kind, text or picture, and signed weight."""
        kinds: tuple[tuple[Kind, Any, float], ...] = (
            ("text", self.texts, self.text_weight),
            ("image", self.images, self.image_weight),
            ("text", self.not_texts, -self.negative_weight * self.text_weight),
            ("image", self.not_images, -self.negative_weight * self.image_weight),
        )
        for kind, terms, weight in kinds:
            for term in terms:
                own = isinstance(term, tuple)
                sign = -1.0 if terms is self.not_texts or terms is self.not_images else 1.0
                yield kind, term[0] if own else term, sign * term[1] if own else weight


def compose(
    model: Model | None, query: Query, *, means: Mapping[Kind, NDArray[Any]] | None = None
) -> Vectors:
    """One unit vector for a question, to be compared with stored vectors.

    Args:
        model: embeds texts and pictures; None will do where every term is a vector.
        means: (D,) of vectors of texts and of pictures, for centring; None: those in the bundle's codecs. `compose_for` knows more.
    Returns:
        (D,) float32, of norm 1. It does not depend on the order of terms.
    Raises:
        InputError: a term that cannot be used, terms that cancel out, or centring without a mean of that kind.
        EngineError: centring, and the bundle has no codecs; or a tower that it does not have.
    Source: Jia et al. 2021, arXiv:2102.05918, section 5.4.
    """
    parts = list(query.parts())
    rows: list[NDArray[np.float64]] = []
    for kind in ("text", "image"):
        terms = [(term, weight) for of, term, weight in parts if of == kind]
        vectors = _embed(model, kind, [term for term, _ in terms])
        if query.centre and terms:
            vectors = _centred(vectors, kind, _means(model) if means is None else means)
        rows += [weight * vector for (_, weight), vector in zip(terms, vectors, strict=True)]
    found = np.sum(rows, axis=0)
    norm = float(np.linalg.norm(found))
    if norm <= LEAST * sum(abs(weight) for *_, weight in parts):
        raise InputError(
            "query: its terms cancel out, so that nothing is left to look for. Change a weight, or leave out what is both wanted "
            "and unwanted."
        )
    return np.asarray(found / norm, np.float32)


def compose_for(index: Stored, model: Model | None, query: Query) -> Vectors:
    """`compose` for what an index holds: centred by its own means where the bundle has no codecs. Raises as `compose`."""
    own = query.centre and (model is None or not model.manifest.codecs)
    return compose(model, query, means=stored_means(index) if own else None)


def stored_means(index: Stored) -> dict[Kind, Vectors]:
    """(D,) of the stored texts and of the stored pictures; of a kind with fewer than 64 vectors none."""
    rows: dict[Kind, list[Vectors]] = {"text": [], "image": []}
    seen = 0
    for _, vectors, items in index.batches():
        texts = np.array([is_text(item) for item in items], bool)
        rows["text"].append(vectors[texts])
        rows["image"].append(vectors[~texts])
        seen += len(items)
        if seen >= MOST:
            break
    found = {kind: np.concatenate(parts) for kind, parts in rows.items() if parts}
    return {kind: part.mean(axis=0) for kind, part in found.items() if len(part) >= FEWEST}


def _embed(model: Model | None, kind: str, terms: Sequence[Any]) -> NDArray[np.float64]:
    """(N, D) unit rows of N terms of one kind."""
    pictures = [i for i, term in enumerate(terms) if not _is_vector(term)]
    if pictures and model is None:
        raise InputError(f"query: {terms[pictures[0]]!r:.60} needs the model. Open the index with it.")
    made: Iterable[Any] = ()
    if pictures and model is not None:
        asked = [terms[i] for i in pictures]
        made = model.embed_texts(asked) if kind == "text" else model.embed_images(asked)
    rows = dict(zip(pictures, made, strict=True))
    found = [np.asarray(rows.get(i, term), np.float64) for i, term in enumerate(terms)]
    if len({row.shape for row in found}) > 1:
        raise InputError(
            f"query: vectors of widths {', '.join(str(len(row)) for row in found)}; expected one width."
        )
    return np.stack([row / np.linalg.norm(row) for row in found]) if found else np.empty((0, 0))


def _means(model: Model | None) -> dict[Kind, Vectors]:
    if model is None:
        raise InputError(
            "query: centring needs the model, whose codecs hold the means. Pass one, or `means`."
        )
    codecs = model.codecs
    return {kind: codecs.tensors[f"{kind}.mean"] for kind in codecs.kinds}


def _centred(
    rows: NDArray[np.float64], kind: Kind, means: Mapping[Kind, NDArray[Any]]
) -> NDArray[np.float64]:
    if kind not in means:
        raise InputError(
            f"query: no mean of kind {kind!r} is known, so it cannot be centred. Fit codecs to both pictures and texts "
            f"(`edgeclip codecs --texts`), or ask an index of {FEWEST} or more of each."
        )
    found = rows - np.asarray(means[kind], np.float64)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(norms, 1e-12))


def _terms(given: Any, name: str) -> tuple[Any, ...]:
    """One term or several -> several, checked."""
    pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], (int, float))
    alone = isinstance(given, str) or _is_vector(given) or (name.endswith("images") and is_one(given))
    found = (given,) if pair or alone else tuple(given)
    for i, term in enumerate(found):
        where = name if pair or alone else f"{name}[{i}]"
        what = term
        if isinstance(term, tuple):
            if len(term) != 2:
                raise InputError(f"{where}: expected a term or (term, weight), got {term!r:.60}.")
            what = term[0]
            _check_weight(term[1], where)
        if name.endswith("texts") and not isinstance(what, str):
            raise InputError(f"{where}: expected a text, got {type(what).__name__}.")
        if name.endswith("images"):
            _check_picture(what, where)
    return found


def _check_picture(picture: Any, where: str) -> None:
    if _is_vector(picture):
        if not np.isfinite(picture).all() or not picture.any():
            raise InputError(f"{where}: expected a vector of finite length above 0.")
    elif not is_one(picture):
        raise InputError(
            f"{where}: expected a picture (path, bytes, PIL image, uint8 array) or a (D,) vector, got {type(picture).__name__}."
        )


def _check_weight(weight: Any, where: str) -> None:
    if not isinstance(weight, (int, float)) or not np.isfinite(weight) or weight < 0:
        raise InputError(f"{where}: expected a weight of 0 or more, got {weight!r}.")


def _is_vector(term: Any) -> bool:
    return isinstance(term, np.ndarray) and term.ndim == 1 and term.dtype.kind == "f"
