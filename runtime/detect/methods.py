"""The methods of a model that find things in pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from edgeclip.errors import InputError
from edgeclip.runtime.detect.asked import Asked
from edgeclip.runtime.detect.examples import Example
from edgeclip.runtime.detect.proposals import Proposals
from edgeclip.runtime.detect.tiling import Tiling
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.images.decode import Color, Picture
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import is_one

if TYPE_CHECKING:
    from edgeclip.runtime.detect.detector import Detector

Labels = Sequence[str] | LabelPack | str
Threshold = float | Mapping[str, float] | None


class Detecting:
    """What `Model` offers beside classification and embedding."""

    _detector: Detector

    def _require_open(self) -> None:
        raise NotImplementedError

    @overload
    def detect(  # type: ignore[overload-overlap]  # a str is also an iterable of str: the first line wins
        self, images: Picture, labels: Labels | None = ..., *, examples: Sequence[Example] = ..., threshold: Threshold = ...,
        nms_iou: float | None = ..., class_agnostic: bool | None = ..., max_detections: int = ...,
        templates: Sequence[str] | None = ..., tile: Tiling | None = ..., color: Color = ..., batch_size: int = ...,
    ) -> Detections: ...  # fmt: skip

    @overload
    def detect(
        self, images: Iterable[Picture], labels: Labels | None = ..., *, examples: Sequence[Example] = ..., threshold: Threshold = ...,
        nms_iou: float | None = ..., class_agnostic: bool | None = ..., max_detections: int = ...,
        templates: Sequence[str] | None = ..., tile: Tiling | None = ..., color: Color = ..., batch_size: int = ...,
    ) -> list[Detections]: ...  # fmt: skip

    def detect(
        self,
        images: Any,
        labels: Labels | None = None,
        *,
        examples: Sequence[Example] = (),
        threshold: Threshold = None,
        nms_iou: float | None = None,
        class_agnostic: bool | None = None,
        max_detections: int = 300,
        templates: Sequence[str] | None = None,
        tile: Tiling | None = None,
        color: Color = "rgb",
        batch_size: int = 1,
    ) -> Detections | list[Detections]:
        """Find things in pictures by texts, by examples, or by both.

        Args:
            images: one picture (path, encoded bytes, PIL image, uint8 array) or several.
            labels: texts; or a LabelPack of this model; or prompts within prompts, "[a face [an eye, a nose], a cup]", whose inner
                ones are looked for in the crops of what the outer ones find; None: the examples', or the labels baked in.
            examples: pictures of what to look for; their labels come after the texts.
            threshold: smallest score, 0-1, for all or by label; None: the pack's own, or the bundle's.
            nms_iou: of two boxes of a label that overlap by more, the better one stays; 1: all stay. None: the bundle's.
            class_agnostic: True: also of two labels; each region then bears one (with nms_iou 1 all its labels stay). None: as the bundle says.
            max_detections: of one picture.
            templates: prompts with a {} for the label, averaged; None: the bundle's own.
            tile: look at large pictures in tiles; None: as a whole.
            color: of arrays: "rgb", "bgr", "nv12" or "yuyv".
            batch_size: pictures, tiles or crops in one call of the engine.
        Returns:
            One for one picture, else as many in the same order.
        Raises:
            InputError: an argument, or the first picture, that cannot be used. `detect_each` goes on instead.
            EngineError: the bundle has no detector, or none that does this.
        """
        asked = Asked(labels, examples, threshold, nms_iou, class_agnostic, max_detections, templates, tile)
        if one := is_one(images):
            images = [images]
        self._require_open()
        found = [
            result
            for result in self._detector.each(images, asked, color, batch_size, stop=True)
            if isinstance(result, Detections)
        ]
        return found[0] if one else found

    def detect_each(
        self,
        images: Iterable[Picture],
        labels: Labels | None = None,
        *,
        examples: Sequence[Example] = (),
        threshold: Threshold = None,
        nms_iou: float | None = None,
        class_agnostic: bool | None = None,
        max_detections: int = 300,
        templates: Sequence[str] | None = None,
        tile: Tiling | None = None,
        color: Color = "rgb",
        batch_size: int = 1,
    ) -> Iterator[Detections | InputError]:
        """Like `detect`, one at a time and never raising for a picture: yields its error in its place."""
        asked = Asked(labels, examples, threshold, nms_iou, class_agnostic, max_detections, templates, tile)
        self._require_open()
        return self._detector.each(images, asked, color, batch_size, stop=False)

    @overload
    def propose(self, images: Picture, *, color: Color = ..., batch_size: int = ...) -> Proposals: ...  # type: ignore[overload-overlap]

    @overload
    def propose(
        self, images: Iterable[Picture], *, color: Color = ..., batch_size: int = ...
    ) -> list[Proposals]: ...

    def propose(
        self, images: Any, *, color: Color = "rgb", batch_size: int = 1
    ) -> Proposals | list[Proposals]:
        """What the detector sees in each picture, to be asked by `detect_in` without running it again.

        Raises:
            InputError: the first picture that cannot be used.
            EngineError: the bundle has no detector that gives embeddings of regions.
        """
        if one := is_one(images):
            images = [images]
        self._require_open()
        found = [
            seen
            for seen in self._detector.propose(images, color, batch_size, stop=True)
            if isinstance(seen, Proposals)
        ]
        return found[0] if one else found

    def detect_in(
        self,
        proposals: Proposals,
        labels: Labels | None = None,
        *,
        examples: Sequence[Example] = (),
        threshold: Threshold = None,
        nms_iou: float | None = None,
        class_agnostic: bool | None = None,
        max_detections: int = 300,
        templates: Sequence[str] | None = None,
        color: Color = "rgb",
    ) -> Detections:
        """Like `detect`, in what was proposed before: other labels take no run of the image tower.

        Raises:
            InputError: prompts within prompts, for which there are no pixels; proposals of another model.
        """
        asked = Asked(labels, examples, threshold, nms_iou, class_agnostic, max_detections, templates)
        self._require_open()
        return self._detector.within(proposals, asked, color)

    def make_prompts(
        self,
        labels: Sequence[str] | LabelPack | None = None,
        *,
        examples: Sequence[Example] = (),
        templates: Sequence[str] | None = None,
        color: Color = "rgb",
    ) -> LabelPack:
        """Texts and examples as one pack, made once: to be saved, or given to every frame of a stream, without looking at the examples again."""
        self._require_open()
        return self._detector.pack(Asked(labels, examples, templates=templates), color)
