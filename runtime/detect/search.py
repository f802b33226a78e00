"""One call of `detect`: each picture as a whole, in tiles, and within what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime import stages
from edgeclip.runtime.detect.asked import Vocabulary
from edgeclip.runtime.detect.nested import search_within
from edgeclip.runtime.detect.postprocess import Candidates, Rules, choose, find
from edgeclip.runtime.detect.proposals import Regions
from edgeclip.runtime.detect.tiling import Tiling, is_cut, merge
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.images.decode import Color, Picture, decode
from edgeclip.runtime.pictures import Pictures, Query

Pixels = NDArray[np.uint8]
Columns = NDArray[np.int64] | None  # of labels; None: all


@dataclass(frozen=True)
class Search:
    """What is looked for, and how."""

    pictures: Pictures
    query: Callable[
        [Callable[[Regions], Any]], Query
    ]  # what becomes of a picture's regions -> how the graph is asked
    vocabulary: Vocabulary
    rules: Rules
    tile: Tiling | None
    batch_size: int

    def each(
        self, images: Iterable[Picture], color: Color, *, stop: bool
    ) -> Iterator[Detections | InputError]:
        """The detections of each picture, or its error, in order. `stop`: raise the first error instead."""
        plain = self.query(self._whole)
        if self.tile is None and not self.vocabulary.tree.nested:
            yield from self.pictures.each(images, color, self.batch_size, stop=stop, query=plain)
            return
        for i, image in enumerate(images):
            try:
                yield self._in_parts(image, plain, color, f"images[{i}]")
            except InputError as error:
                if stop:
                    raise
                yield error

    def _in_parts(self, image: Picture, plain: Query, color: Color, where: str) -> Detections:
        pixels = self._decode(image, color, where)
        size = pixels.shape[:2]
        tiles = None if self.tile is None else self.tile.tiles(size)
        if tiles is None or len(tiles) == 1:  # as without tiles to the last bit: also decoded as then
            (found,) = self.pictures.each([image], color, 1, stop=True, query=plain)
        else:
            found = self._in_tiles(pixels, tiles, size)
        tree = self.vocabulary.tree
        if not tree.nested:
            return found  # type: ignore[no-any-return]
        return search_within(
            found,
            tree,
            self.rules.max_detections,
            lambda boxes, columns: self._look(pixels, boxes, lambda seen: self._settle(seen, columns)),
        )

    def _in_tiles(self, pixels: Pixels, tiles: NDArray[np.int64], size: tuple[int, int]) -> Detections:
        if self.tile is not None and self.tile.whole:
            tiles = np.concatenate([[[0, 0, size[1], size[0]]], tiles])
        parts = self._look(pixels, tiles, lambda seen: self._choose(seen, self.vocabulary.tree.columns))
        begun = stages.begin()
        cuts = [is_cut(part.boxes, tile, size) for part, tile in zip(parts, tiles, strict=True)]
        moved = [part.moved(tile) for part, tile in zip(parts, tiles, strict=True)]
        found = merge(list(zip(moved, cuts, strict=True)), self.vocabulary.names, size, self.rules)
        stages.end("head", begun)
        return found

    def _look(self, pixels: Pixels, boxes: NDArray[np.int64], read: Callable[[Regions], Any]) -> list[Any]:
        """What is read of the crops at (K, 4) whole pixels."""
        crops = (pixels[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes.tolist())
        return list(self.pictures.each(crops, "rgb", self.batch_size, stop=True, query=self.query(read)))

    def _whole(self, seen: Regions) -> Detections:
        return self._settle(seen, self.vocabulary.tree.columns)

    def _settle(self, seen: Regions, columns: Columns) -> Detections:
        return find(
            lambda most: self._choose(seen, columns, most), self.vocabulary.names, seen.size, self.rules
        )

    def _choose(self, seen: Regions, columns: Columns, most: int | None = None) -> Candidates:
        """What reaches the thresholds of the labels in these columns; of too many the best."""
        if "logits" in seen.rows:  # of a graph that takes more prompts than there are labels, the first
            logits = np.asarray(seen.rows["logits"][:, : len(self.vocabulary.names)], np.float32)
        else:
            assert self.vocabulary.vectors is not None
            logits = seen.proposals("", copy=False).logits(self.vocabulary.vectors)
        if columns is None:
            return choose(logits, seen.boxes, seen.objectness, self.rules, most)
        found = choose(logits[:, columns], seen.boxes, seen.objectness, self.rules.of(columns), most)
        return replace(found, labels=columns[found.labels])

    def _decode(self, image: Picture, color: Color, where: str) -> Pixels:
        """(H, W, 3) RGB, upright, every pixel."""
        preprocessor, begun = self.pictures.preprocessor, stages.begin()
        found = decode(
            image,
            color=color,
            background=preprocessor.spec.background,
            limits=preprocessor.limits,
            where=where,
        )
        stages.end("decode", begun)
        return np.asarray(found.image)
