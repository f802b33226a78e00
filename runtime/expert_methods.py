"""The methods of a model that tell what the experts of its mixtures do."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.bundle.manifest import Experts
from edgeclip.errors import InputError
from edgeclip.runtime.engines import rows_at_once, run
from edgeclip.runtime.experts import (
    ExpertUse,
    Grid,
    Routing,
    Shares,
    UseCounter,
    check_shares,
    grid_of,
    require_routing,
)
from edgeclip.runtime.images.decode import Color, Picture
from edgeclip.runtime.pictures import Query, is_one

if TYPE_CHECKING:
    from edgeclip.runtime.pictures import Pictures
    from edgeclip.runtime.prompts import Prompts
    from edgeclip.runtime.towers import Tower

AT_ONCE = 256  # texts that are tokenized and sorted by length together

log = logging.getLogger(__name__)


class Mixing:
    """What `Model` offers where feed-forwards are mixtures of experts. It is asked of a graph of its own, in fp32."""

    bundle: Bundle
    _pictures: Pictures
    _prompts: Prompts
    _routing: Mapping[str, Tower]  # by kind

    def _require_open(self) -> None:
        raise NotImplementedError

    def expert_use(
        self,
        images: Iterable[Picture] | None = None,
        *,
        texts: Iterable[str] | None = None,
        color: Color = "rgb",
        batch_size: int = 8,
        keep: int = 0,
    ) -> ExpertUse:
        """Count how much each expert is used, over pictures or over texts: any number of them, in constant memory.

        Args:
            images: pictures (paths, encoded bytes, PIL images, uint8 arrays); one that cannot be used is warned of and counted.
            texts: in place of pictures, those of the text tower.
            color: of arrays: "rgb", "bgr", "nv12" or "yuyv".
            batch_size: pictures or texts in one call of the engine.
            keep: patches to keep of each expert: those that it took most surely.
        Raises:
            InputError: none or both of images and texts, or a text that cannot be used.
            EngineError: the tower has no mixtures, or the bundle has no routing graph.
        """
        if (images is None) == (texts is None):
            raise InputError("expert_use: expected either images or texts.")
        tower = "image" if texts is None else "text"
        experts = self._experts(tower)
        counter: UseCounter | None = None
        skipped = 0
        for number, shares in self._shares(images, texts, color, batch_size, stop=False):
            if isinstance(shares, InputError):
                log.warning("skipped: %s", shares)
                skipped += 1
                continue
            if counter is None:
                check_shares(self.bundle, experts, shares.shape)
                counter = UseCounter(tower, experts, grid=self._grid(tower, shares.shape[1]), keep=keep)
            counter.add(number, shares)
        return (counter or UseCounter(tower, experts)).use(skipped)

    @overload
    def routing_of(self, images: Picture, *, color: Color = ..., batch_size: int = ...) -> Routing: ...  # type: ignore[overload-overlap]

    @overload
    def routing_of(
        self, images: Iterable[Picture], *, color: Color = ..., batch_size: int = ...
    ) -> list[Routing]: ...

    def routing_of(
        self, images: Any, *, color: Color = "rgb", batch_size: int = 8
    ) -> Routing | list[Routing]:
        """Which experts take which patches of a picture.

        Args:
            images: one picture (path, encoded bytes, PIL image, uint8 array) or several.
            color: of arrays: "rgb", "bgr", "nv12" or "yuyv".
            batch_size: pictures in one call of the engine.
        Raises:
            InputError: the first picture that cannot be used.
            EngineError: as for `expert_use`.
        """
        experts = self._experts("image")
        given = [images] if is_one(images) else images
        found = []
        for _, shares in self._shares(given, None, color, batch_size, stop=True):
            assert not isinstance(shares, InputError)
            check_shares(self.bundle, experts, shares.shape)
            grid = self._grid("image", shares.shape[1])
            found.append(Routing("image", experts.blocks, experts.counts, shares, grid))
        return found[0] if is_one(images) else found

    def _experts(self, tower: str) -> Experts:
        self._require_open()
        return require_routing(self.bundle, tower)

    def _grid(self, tower: str, tokens: int) -> Grid | None:
        preprocessing = self.bundle.manifest.preprocessing if tower == "image" else None
        return None if preprocessing is None else grid_of(tokens, preprocessing.size)

    def _shares(
        self,
        images: Iterable[Picture] | None,
        texts: Iterable[str] | None,
        color: Color,
        batch_size: int,
        *,
        stop: bool,
    ) -> Iterator[tuple[int, Shares | InputError]]:
        """The number of each sample and its (R, T, E), or why it cannot be used."""
        if images is None:
            assert texts is not None
            return self._of_texts(texts, batch_size)
        query = Query(self._routing["image"], "shares")
        return enumerate(self._pictures.each(images, color, batch_size, stop=stop, query=query))

    def _of_texts(self, texts: Iterable[str], batch_size: int) -> Iterator[tuple[int, Shares]]:
        if batch_size < 1:
            raise InputError(f"batch_size: expected 1 or more, got {batch_size}.")
        if isinstance(texts, str):
            texts = [texts]
        tower, source, first = self._routing["text"], iter(texts), 0
        with tower.lease() as engine:
            length = engine.variant.inputs[0].shape[1]
            rows = rows_at_once(engine, batch_size)
            while chunk := list(islice(source, AT_ONCE)):
                encoded = self._prompts.encoder.encode(chunk, numbers=range(first, first + len(chunk)))
                order = sorted(range(len(chunk)), key=encoded.lengths.__getitem__)  # less padding
                for start in range(0, len(order), rows):
                    part = order[start : start + rows]
                    longest = encoded.lengths[part[-1]]
                    sizes = {length: longest} if isinstance(length, str) else None
                    slot = tower.take(engine, len(part), sizes)
                    slot.inputs["input_ids"][:] = encoded.input_ids[part, :longest]
                    shares = run(engine, slot)["shares"].astype(np.float32)
                    tower.give(engine, slot)
                    yield from zip((first + i for i in part), shares, strict=True)
                first += len(chunk)
