"""Pictures encoded once and asked often: by boxes, by points, by texts. And what a detector's regions say of the same boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime import stages
from edgeclip.runtime.detect.detector import Detector
from edgeclip.runtime.detect.nms import iou_matrix
from edgeclip.runtime.detect.proposals import Proposals
from edgeclip.runtime.engines import rows_at_once, run
from edgeclip.runtime.images.decode import Color, Picture
from edgeclip.runtime.images.geometry import to_input, to_picture
from edgeclip.runtime.pictures import Pictures, Query
from edgeclip.runtime.results import to_scores
from edgeclip.runtime.towers import Tower

Floats = NDArray[np.float32]

ASKING = (
    "regions",
    "grounding",
)  # towers that ask tokens; one without weights has but one precision, whatever the caller wants
_ROUNDING = 1e-6  # of a point on the border
AT_ONCE = 256  # boxes or texts of a picture in one call: 4,096 tokens x 256 are 4 MB of weights


@dataclass(frozen=True, eq=False)
class Tokens:
    """One picture, encoded: what `ask` asks."""

    rows: Floats  # (T, W) as the bundle's tokens tower gives them
    size: tuple[int, int]  # (H, W) of the picture
    model_id: str  # of the bundle that encoded it


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found in one picture, a row for each box, point or text, in the caller's order."""

    embeddings: Floats  # (R, D) unit rows
    boxes: Floats | None = (
        None  # (R, 4) xyxy, pixels of the picture: where each text was found. None: boxes or points were asked
    )


@dataclass(frozen=True, eq=False)
class Embedded:
    """Regions of one picture, ready to be compared with labels."""

    rows: Floats  # (R, D) unit rows
    variant: Any  # that gave them; its scores are fitted by `scores_of`
    # of a detector, (R,): a label's logit is scales x cosine + biases, and objectness counts where the bundle says so
    scales: Floats | None = None
    biases: Floats | None = None
    objectness: Floats | None = None


class Regions:
    """The towers of a bundle that know of regions, present or not.

    Args:
        towers: "tokens", "regions" and "grounding".
        pictures: prepares them as the tokens tower takes them.
        detector: answers in their place; of its regions the one that overlaps a box best stands for it.
    """

    def __init__(
        self, bundle: Bundle, towers: Mapping[str, Tower], pictures: Pictures, detector: Detector
    ) -> None:
        self._bundle, self._towers, self._pictures, self._detector = bundle, towers, pictures, detector
        self._spec = bundle.manifest.preprocessing_of("tokens")

    def tokens(
        self, images: Iterable[Picture], color: Color, batch_size: int, *, stop: bool
    ) -> Iterator[Tokens | InputError]:
        """Encode each picture, or give its error. Raises EngineError if the bundle has no tokens tower."""
        tower, model_id = self._towers["tokens"], self._bundle.manifest.model_id
        _ = tower.variant or tower.variants
        query = Query(
            tower,
            "tokens",
            read=lambda rows, size: Tokens(rows["tokens"].astype(np.float32), size, model_id),
        )
        return self._pictures.each(images, color, batch_size, stop=stop, query=query)

    def embed(
        self,
        images: Sequence[Picture],
        boxes: Sequence[ArrayLike],
        color: Color,
        batch_size: int,
        *,
        stop: bool,
        one: bool = False,
    ) -> Iterator[Embedded | InputError]:
        """The regions of each picture, or its error. `one`: the caller has one picture, whose boxes messages count by themselves."""
        if len(images) != len(boxes):
            raise InputError(
                f"boxes: expected one list for each of {len(images)} pictures, got {len(boxes)}."
            )
        by_detector = self._by_detector()
        seen: Iterator[Any] = (
            self._detector.propose(images, color, batch_size, stop=stop)
            if by_detector
            else self.tokens(images, color, batch_size, stop=stop)
        )
        first = 0
        while chunk := list(islice(seen, batch_size)):
            asked = [
                self._attempt(picture, boxes[i], "boxes" if one else f"boxes[{i}]", by_detector)
                for i, picture in enumerate(chunk, first)
            ]
            if stop and (error := next((found for found in asked if isinstance(found, InputError)), None)):
                raise error
            yield from self._of(chunk, asked, by_detector)
            first += len(chunk)

    def ask(self, tokens: Tokens, kind: str, asked: Floats) -> Answer:
        """Ask one picture.

        Args:
            kind: "regions" or "grounding".
            asked: (R, 4) boxes in 0-1 of the input, or (P, D) unit rows of texts.
        """
        facts = self._bundle.manifest
        if tokens.model_id != facts.model_id:
            raise InputError(
                f"tokens: expected those of model {facts.model_id[:12]}..., got those of {tokens.model_id[:12]}.... "
                "Encode the picture again."
            )
        found = self._ask(kind, [tokens], [asked])[0]
        boxes = None
        if "boxes" in found:
            assert self._spec is not None
            edge = np.array([tokens.size[1], tokens.size[0]] * 2, np.float32)
            boxes = np.clip(to_picture(found["boxes"], self._spec, tokens.size), 0, edge)
        return Answer(found["embeddings"], boxes)

    def warm_up(self, image: Picture) -> None:
        """Encode a picture, and ask it one box."""
        if self._bundle.manifest.variants_of("regions"):
            list(self.embed([image], [[(0, 0, 1, 1)]], "rgb", 1, stop=True))

    def close(self) -> None:
        """End the decoding threads."""
        self._pictures.close()

    def placed(self, boxes: Floats, size: tuple[int, int], where: str) -> Floats:
        """(R, 4) checked boxes in pixels -> the same in 0-1 of the input. Raises InputError for one that the tower does not see."""
        assert self._spec is not None
        found = to_input(boxes, self._spec, size)
        missed = ((found[:, 2:] < -_ROUNDING) | (found[:, :2] > 1 + _ROUNDING)).any(axis=1)
        if len(bad := np.flatnonzero(missed)):
            raise InputError(
                f"{where}[{bad[0]}]: {_shown(boxes[bad[0]])} lies in the part of the picture that this bundle crops away."
            )
        return np.clip(found, 0, 1)

    def scores(self, found: Embedded, vectors: Floats) -> NDArray[np.float64]:
        """(P, D) labels -> (R, P) in 0-1."""
        facts, cosines = self._bundle.manifest, found.rows @ vectors.T
        if found.scales is None or found.biases is None:
            fitted = facts.scores_of(found.variant)
            return to_scores(cosines, fitted.logit_scale, fitted.logit_bias, facts.activation)
        logits = found.scales[:, None] * cosines + found.biases[:, None]
        scores = to_scores(logits, 1.0, 0.0, "sigmoid")
        counts = facts.detection is not None and facts.detection.objectness and found.objectness is not None
        return scores * found.objectness[:, None] if counts and found.objectness is not None else scores

    def _by_detector(self) -> bool:
        """Whether the detector must answer. Without either the refusal is the region encoder's."""
        facts = self._bundle.manifest
        return not facts.variants_of("regions") and self._detector.has("embeddings")

    def _attempt(self, picture: Any, boxes: ArrayLike, where: str, by_detector: bool) -> Floats | InputError:
        """Boxes of a picture as they are asked, or why they cannot be."""
        if isinstance(picture, InputError):
            return picture
        try:
            found = check_boxes(boxes, picture.size, where)
            if by_detector and len(picture) == 0:
                raise InputError(f"{where}: the detector sees nothing in this picture.")
            return found if by_detector else self.placed(found, picture.size, where)
        except InputError as error:
            return error

    def _of(
        self, seen: Sequence[Any], asked: Sequence[Any], by_detector: bool
    ) -> Iterator[Embedded | InputError]:
        """The regions of some pictures at once, those that failed apart."""
        good = [i for i, boxes in enumerate(asked) if not isinstance(boxes, InputError)]
        if by_detector:
            rows = {i: _nearest(seen[i], asked[i]) for i in good}
        else:
            found = self._ask("regions", [seen[i] for i in good], [asked[i] for i in good])
            used = self._towers["tokens"].variant
            rows = {i: Embedded(each["embeddings"], used) for i, each in zip(good, found, strict=True)}
        for i, boxes in enumerate(asked):
            yield boxes if isinstance(boxes, InputError) else rows[i]

    def _ask(self, kind: str, tokens: Sequence[Tokens], asked: Sequence[Floats]) -> list[dict[str, Floats]]:
        """Ask several pictures at once, each padded to the longest list: a row does not depend on those beside it."""
        tower = self._towers[kind]
        longest = max((len(rows) for rows in asked), default=0)
        parts: list[list[dict[str, Floats]]] = [[] for _ in tokens]
        with tower.lease() as engine:
            given, symbol = engine.variant.inputs[1].name, engine.variant.inputs[1].shape[1]
            outputs = engine.variant.outputs
            batch = rows_at_once(engine, max(len(tokens), 1))
            for first in range(0, len(tokens), batch):
                some = range(first, min(first + batch, len(tokens)))
                for start in range(0, longest, AT_ONCE):
                    width = min(AT_ONCE, longest - start)
                    slot = tower.take(engine, len(some), {str(symbol): width})
                    slot.inputs[given][:] = 0
                    for row, i in enumerate(some):
                        part = asked[i][start : start + width]
                        slot.inputs["tokens"][row] = tokens[i].rows
                        slot.inputs[given][row, : len(part)] = part
                    begun = stages.begin()
                    found = run(engine, slot)
                    stages.end("head", begun)
                    for row, i in enumerate(some):
                        count = len(asked[i][start : start + width])
                        parts[i].append({name: rows[row, :count].copy() for name, rows in found.items()})
                    tower.give(engine, slot)
        empty = {port.name: np.empty((0, int(port.shape[2])), np.float32) for port in outputs}
        return [
            {name: np.concatenate([none, *[part[name] for part in mine]]) for name, none in empty.items()}
            for mine in parts
        ]


def check_boxes(boxes: ArrayLike, size: tuple[int, int], where: str = "boxes") -> Floats:
    """Boxes as a caller gives them -> (R, 4) float32 xyxy pixels, cut at the picture's border. None, or [], gives (0, 4).

    Args:
        size: (H, W) of the picture.
    Raises:
        InputError: another shape, or the first box that is not finite, has no area or lies outside the picture.
    """
    found = _numbers(boxes, 4, where, "(x1, y1, x2, y2) in pixels")
    height, width = size
    bad = np.flatnonzero((found[:, 2:] <= found[:, :2]).any(axis=1))
    if len(bad):
        raise InputError(f"{where}[{bad[0]}]: expected x1 < x2 and y1 < y2, got {_shown(found[bad[0]])}.")
    cut = found.clip(0, np.array([width, height] * 2, np.float32))
    bad = np.flatnonzero((cut[:, 2:] <= cut[:, :2]).any(axis=1))
    if len(bad):
        raise InputError(
            f"{where}[{bad[0]}]: expected a box in the picture of {width} x {height} pixels, got {_shown(found[bad[0]])}."
        )
    return np.asarray(cut, np.float32)


def check_points(points: ArrayLike, size: tuple[int, int], where: str = "points") -> Floats:
    """Points as a caller gives them -> (R, 4) float32 boxes without an extent, (x, y, x, y) pixels. Raises InputError as `check_boxes`."""
    found = _numbers(points, 2, where, "(x, y) in pixels")
    bad = np.flatnonzero(((found < 0) | (found > np.array(size[::-1]))).any(axis=1))
    if len(bad):
        raise InputError(
            f"{where}[{bad[0]}]: expected a point in the picture of {size[1]} x {size[0]} pixels, got {_shown(found[bad[0]])}."
        )
    return np.concatenate([found, found], axis=1)


def _numbers(given: ArrayLike, columns: int, where: str, what: str) -> Floats:
    try:
        found = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected rows of {what}, got {_short(given)}.") from None
    if found.size == 0:
        return np.empty((0, columns), np.float32)
    if found.ndim != 2 or found.shape[1] != columns:
        raise InputError(f"{where}: expected rows of {what}, got an array of shape {found.shape}.")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise InputError(f"{where}[{bad[0]}]: expected {what}, got {_shown(found[bad[0]])}.")
    return found


def _nearest(seen: Proposals, boxes: Floats) -> Embedded:
    """Of a detector's regions those that overlap the boxes best; the nearest centre where nothing does."""
    overlap = iou_matrix(boxes, seen.boxes)
    centres = [(sides[:, :2] + sides[:, 2:]) / 2 for sides in (boxes, seen.boxes)]
    away = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    best = np.where(overlap.any(axis=1), overlap.argmax(axis=1), away.argmin(axis=1))
    objectness = None if seen.objectness is None else seen.objectness[best]
    return Embedded(seen.embeddings[best], None, seen.logit_scales[best], seen.logit_biases[best], objectness)


def _shown(row: Floats) -> str:
    return f"({', '.join(f'{x:g}' for x in row.tolist())})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
