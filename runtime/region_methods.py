"""The methods of a model that ask what is in a region of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.images.decode import Color, Picture
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import is_one
from edgeclip.runtime.regions import Answer, Embedded, Tokens, check_boxes, check_points
from edgeclip.runtime.results import Classification, check_choice, rank

if TYPE_CHECKING:
    from edgeclip.runtime.heads import Heads
    from edgeclip.runtime.regions import Regions

Vectors = NDArray[np.float32]
Labels = Sequence[str] | LabelPack


class Asking:
    """What `Model` offers where a bundle knows of regions: a region encoder, or a detector in its place.

    Of a detector's regions the one that overlaps a box best stands for it, and labels are scored as it scores them.
    """

    _regions: Regions
    _heads: Heads

    def _require_open(self) -> None:
        raise NotImplementedError

    @overload
    def embed_regions(  # type: ignore[overload-overlap]  # a str is also an iterable of str: the first line wins
        self, images: Picture, boxes: ArrayLike, *, color: Color = ..., batch_size: int = ...
    ) -> Vectors: ...

    @overload
    def embed_regions(
        self,
        images: Iterable[Picture],
        boxes: Sequence[ArrayLike],
        *,
        color: Color = ...,
        batch_size: int = ...,
    ) -> list[Vectors]: ...

    def embed_regions(
        self, images: Any, boxes: Any, *, color: Color = "rgb", batch_size: int = 8
    ) -> Vectors | list[Vectors]:
        """Boxes of pictures to unit vectors in the space of the texts.

        Args:
            images: one picture (path, encoded bytes, PIL image, uint8 array) or several.
            boxes: (R, 4) xyxy in pixels of the picture, cut at its border; of several pictures, one such list each.
            color: of arrays: "rgb", "bgr", "nv12" or "yuyv".
            batch_size: pictures in one call of the engine.
        Returns:
            (R, D) float32 for one picture, else a list of them.
        Raises:
            InputError: a picture, or the first box, that cannot be used. `embed_regions_each` goes on instead.
            EngineError: the bundle has neither a region encoder nor a detector.
        """
        found = [each.rows for each in self._embedded(images, boxes, color, batch_size)]
        return found[0] if is_one(images) else found

    def embed_regions_each(
        self,
        images: Iterable[Picture],
        boxes: Sequence[ArrayLike],
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> Iterator[Vectors | InputError]:
        """Like `embed_regions`, one at a time and never raising for a picture or its boxes: yields the error in its place."""
        self._require_open()
        for found in self._regions.embed(list(images), boxes, color, batch_size, stop=False):
            yield found.rows if isinstance(found, Embedded) else found

    @overload
    def classify_regions(  # type: ignore[overload-overlap]
        self, images: Picture, boxes: ArrayLike, labels: Labels | None = ..., templates: Sequence[str] | None = ...,
        top_k: int | None = ..., threshold: float | None = ..., *, color: Color = ..., batch_size: int = ...,
    ) -> list[Classification]: ...  # fmt: skip

    @overload
    def classify_regions(
        self, images: Iterable[Picture], boxes: Sequence[ArrayLike], labels: Labels | None = ...,
        templates: Sequence[str] | None = ..., top_k: int | None = ..., threshold: float | None = ..., *, color: Color = ...,
        batch_size: int = ...,
    ) -> list[list[Classification]]: ...  # fmt: skip

    def classify_regions(
        self,
        images: Any,
        boxes: Any,
        labels: Labels | None = None,
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> list[Classification] | list[list[Classification]]:
        """Say which label fits each box best (zero-shot): `embed_regions`, then as `classify`, whose arguments these are.

        Returns:
            One for each box of one picture; of several pictures a list of such lists.
        """
        judge = self._judge(labels, templates, top_k, threshold)
        found = [judge(each) for each in self._embedded(images, boxes, color, batch_size)]
        return found[0] if is_one(images) else found

    def classify_regions_each(
        self,
        images: Iterable[Picture],
        boxes: Sequence[ArrayLike],
        labels: Labels | None = None,
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> Iterator[list[Classification] | InputError]:
        """Like `classify_regions`, one at a time and never raising for a picture or its boxes: yields the error in its place."""
        judge = self._judge(labels, templates, top_k, threshold)
        for found in self._regions.embed(list(images), boxes, color, batch_size, stop=False):
            yield judge(found) if isinstance(found, Embedded) else found

    @overload
    def tokens_of(self, images: Picture, *, color: Color = ..., batch_size: int = ...) -> Tokens: ...  # type: ignore[overload-overlap]

    @overload
    def tokens_of(
        self, images: Iterable[Picture], *, color: Color = ..., batch_size: int = ...
    ) -> list[Tokens]: ...

    def tokens_of(self, images: Any, *, color: Color = "rgb", batch_size: int = 8) -> Tokens | list[Tokens]:
        """Encode pictures once, to be asked by `ask` as often as one likes: what costs time is done here.

        Raises:
            InputError: the first picture that cannot be used.
            EngineError: the bundle has no region encoder (`propose` is what a detector offers).
        """
        self._require_open()
        given = [images] if is_one(images) else images
        found = self._regions.tokens(given, color, batch_size, stop=True)
        every = [tokens for tokens in found if isinstance(tokens, Tokens)]
        return every[0] if is_one(images) else every

    def ask(
        self,
        tokens: Tokens,
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        texts: Labels | None = None,
    ) -> Answer:
        """Ask an encoded picture by one of three.

        Args:
            boxes: (R, 4) xyxy in pixels of the picture.
            points: (R, 2) xy in pixels of the picture.
            texts: what to look for, or a LabelPack of this model: each gives the embedding of what fits it, and its box.
        Raises:
            InputError: none or several of the three, what cannot be used of it, or tokens of another model.
            EngineError: texts, and the bundle has no grounding tower.
        """
        self._require_open()
        if sum(given is not None for given in (boxes, points, texts)) != 1:
            raise InputError("ask: expected one of boxes, points and texts.")
        if texts is not None:
            return self._regions.ask(tokens, "grounding", self._heads.vectors(texts, None)[1])
        if boxes is not None:
            pixels, where = check_boxes(boxes, tokens.size), "boxes"
        else:
            assert points is not None
            pixels, where = check_points(points, tokens.size), "points"
        return self._regions.ask(tokens, "regions", self._regions.placed(pixels, tokens.size, where))

    def _embedded(self, images: Any, boxes: Any, color: Color, batch_size: int) -> list[Embedded]:
        self._require_open()
        one = is_one(images)
        given = ([images], [boxes]) if one else (list(images), list(boxes))
        found = self._regions.embed(*given, color, batch_size, stop=True, one=one)
        return [each for each in found if isinstance(each, Embedded)]

    def _judge(
        self,
        labels: Labels | None,
        templates: Sequence[str] | None,
        top_k: int | None,
        threshold: float | None,
    ) -> Any:
        """What makes a list of classifications of a picture's regions."""
        self._require_open()
        check_choice(top_k, threshold)
        pack = (self._heads.baked or self._heads.baked_in("detector")) if labels is None else labels
        if pack is None:
            raise InputError("labels: expected some: none are baked into this bundle.")
        names, vectors, own = self._heads.vectors(pack, templates)
        thresholds = own if threshold is None else (threshold,) * len(names)

        def judge(found: Embedded) -> list[Classification]:
            scores = self._regions.scores(found, vectors)
            return [rank(row, names, top_k, thresholds) for row in scores]

        return judge
