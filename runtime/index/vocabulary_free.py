"""Classification without labels: captions near the picture say what it may show, the model then says which of it.

    with edgeclip.load("clip-b32") as model, edgeclip.Index.open("captions.index") as captions:
        classify_freely(model, "cat.png", captions).label

Source: Conti et al. 2023, Vocabulary-free Image Classification (CaSED), arXiv:2306.00917.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.binding import check_model
from edgeclip.runtime.index.types import Hit
from edgeclip.runtime.index.words import Tagger, candidates
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import is_one
from edgeclip.runtime.results import Classification, check_choice, rank, to_scores

if TYPE_CHECKING:
    from edgeclip.runtime.images.decode import Color, Picture
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.model import Model

CAPTIONS = 10  # that are looked at for a picture
ALPHA = 0.7  # what the picture's own scores count; its captions' have the rest. Published; the released class has 0.5 unless told

WORD = ("{}",)  # how a candidate is asked: bare, as published


@overload
def classify_freely(  # type: ignore[overload-overlap]  # a str is also an iterable of str: the first line wins
    model: Model, images: Picture, captions: Index, *, nearest: int = ..., alpha: float = ..., tagger: Tagger | None = ...,
    vocabulary: LabelPack | None = ..., templates: Sequence[str] | None = ..., top_k: int | None = ..., threshold: float | None = ...,
    color: Color = ..., batch_size: int = ...,
) -> Classification: ...  # fmt: skip


@overload
def classify_freely(
    model: Model, images: Iterable[Picture], captions: Index, *, nearest: int = ..., alpha: float = ..., tagger: Tagger | None = ...,
    vocabulary: LabelPack | None = ..., templates: Sequence[str] | None = ..., top_k: int | None = ..., threshold: float | None = ...,
    color: Color = ..., batch_size: int = ...,
) -> list[Classification]: ...  # fmt: skip


def classify_freely(model: Model, images: Any, captions: Index, **settings: Any) -> Any:
    """Name what pictures show, from no list but the captions of an index. See `classify_freely_each` for the settings.

    Raises:
        InputError: a picture that cannot be used, an index without captions or of another model.
    """
    results = []
    for result in classify_freely_each(
        model, [images] if (one := is_one(images)) else images, captions, **settings
    ):
        if isinstance(result, InputError):
            raise result
        results.append(result)
    return results[0] if one else results


def classify_freely_each(
    model: Model,
    images: Iterable[Picture],
    captions: Index,
    *,
    nearest: int = CAPTIONS,
    alpha: float = ALPHA,
    tagger: Tagger | None = None,
    vocabulary: LabelPack | None = None,
    templates: Sequence[str] | None = WORD,
    top_k: int | None = None,
    threshold: float | None = None,
    color: Color = "rgb",
    batch_size: int = 8,
) -> Iterator[Classification | InputError]:
    """Like `classify_freely`, one at a time and never raising for a picture: yields its error in its place.

    Args:
        captions: an index of captions' embeddings, made with the model's own text tower.
        nearest: captions that are looked at for a picture.
        alpha: what the picture's own scores count, 0-1; the mean of its captions has the rest.
        tagger: see `words.candidates`.
        vocabulary: candidates are those of its labels that the captions hold, or all of them where they hold none;
            needs no text tower. None: any word, embedded when it comes.
        templates: prompts with a {} for a candidate; None: the bundle's own. The bare word unless told, as published.
        top_k, threshold: as of `Model.classify`.
    Raises:
        InputError: settings out of range, an index that is empty, holds no captions or is of another model.
    """
    check_model(captions.path, captions.origin, model)
    check_choice(top_k, threshold)
    if nearest < 1 or not 0 <= alpha <= 1:
        raise InputError(f"expected nearest >= 1 and alpha 0 to 1, got {nearest} and {alpha}.")
    if not len(captions):
        raise InputError(
            f"{captions.path}: holds no captions. Build it from texts with `edgeclip index build --captions`."
        )
    if vocabulary is not None:
        vocabulary.require(model.manifest.model_id, model.manifest.embedding_dim)
    return _each(
        model,
        images,
        captions,
        nearest,
        alpha,
        tagger,
        vocabulary,
        templates,
        top_k,
        threshold,
        color,
        batch_size,
    )


def _each(
    model: Model, images: Iterable[Picture], captions: Index, nearest: int, alpha: float, tagger: Tagger | None,
    vocabulary: LabelPack | None, templates: Sequence[str] | None, top_k: int | None, threshold: float | None, color: Color,
    batch_size: int,
) -> Iterator[Classification | InputError]:  # fmt: skip
    facts = model.manifest
    for image in model.embed_each(images, color=color, batch_size=batch_size):
        if isinstance(image, InputError):
            yield image
            continue
        found = captions.search_many(image[None], nearest)[0]
        pack = _candidates(
            model, [_caption(hit, captions.path) for hit in found], tagger, vocabulary, templates
        )
        scores = free_scores(
            image,
            captions.vectors([hit.key for hit in found]),
            pack.vectors,
            alpha=alpha,
            scale=facts.logit_scale,
        )
        yield rank(scores, pack.labels, top_k, None if threshold is None else (threshold,) * len(pack.labels))


def free_scores(
    image: NDArray[Any], captions: NDArray[Any], words: NDArray[Any], *, alpha: float, scale: float
) -> NDArray[np.float64]:
    """alpha softmax(s v W) + (1 - alpha) softmax(s t W), t the captions' mean made a unit vector.

    Args:
        image: (D,) unit vector v.
        captions: (C, D) unit rows.
        words: (P, D) unit rows W.
        scale: the model's logit scale s.
    Returns:
        (P,) 0-1, together 1.
    """
    mean = captions.astype(np.float64).mean(axis=0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    cosines = np.stack([image.astype(np.float64), mean]) @ words.astype(np.float64).T
    own, theirs = to_scores(cosines.astype(np.float32), scale, 0, "softmax")
    return np.asarray(alpha * own + (1 - alpha) * theirs)


def _candidates(
    model: Model,
    captions: Sequence[str],
    tagger: Tagger | None,
    vocabulary: LabelPack | None,
    templates: Sequence[str] | None,
) -> LabelPack:
    words = candidates(captions, tagger)
    if vocabulary is None:
        return model.make_labels(words, templates)
    places = {label: i for i, label in enumerate(vocabulary.labels)}
    known = [word for word in words if word in places] or list(vocabulary.labels)
    rows = vocabulary.vectors[[places[word] for word in known]]
    return LabelPack(tuple(known), vocabulary.templates, rows, vocabulary.model_id, vocabulary.variant)


def _caption(hit: Hit, index: Path) -> str:
    caption = hit.record.get("caption")
    if isinstance(caption, str) and caption:
        return caption
    if "path" in hit.record:
        raise InputError(
            f"{index}: holds pictures without captions, such as {hit.key!r}. Build one from texts with `edgeclip index build --captions`."
        )
    return hit.key
