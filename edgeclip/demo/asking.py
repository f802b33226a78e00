"""What the page asks of the model. A still picture that is asked again is not looked at again.

A request's body is one line of JSON, then the bytes of a picture; without a picture, the page's last one is meant.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgeclip.bundle.manifest import Detection
from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime import stages
from edgeclip.runtime.detect.examples import Example, query_of
from edgeclip.runtime.detect.prompt_tree import parse_prompts, typed_prompts
from edgeclip.runtime.detect.proposals import Proposals
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import Model

MOST_PAGES, MOST_EXAMPLES, MOST_LABELS = (
    4,
    8,
    1000,
)  # pages whose pictures are kept; of each page; of each request
MAX_LINE = 1 << 16  # bytes of the JSON
BARS = 20  # labels of a classification that are shown

# One call at a time: the engine has the cores to itself, and the stages are timed for the whole process.
_turn = threading.Lock()


class NoPictureError(InputError):
    """The page's last picture is no longer kept: it has to be sent again."""


@dataclass(frozen=True)
class Query:
    """The line of JSON of a request. Unknown keys are refused."""

    page: str  # made up by the page
    prompts: str = ""
    threshold: float | None = None  # None: the label's own, or the bundle's
    nms_iou: float | None = None
    class_agnostic: bool | None = None
    like: tuple[str, ...] = ()  # labels of the page's examples that are looked for
    box: tuple[float, ...] | None = None  # of /example, xyxy pixels
    label: str = ""  # of /example

    @classmethod
    def of(cls, line: bytes) -> Query:
        """Read it. Raises InputError, naming the key."""
        try:
            given: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"request: expected a line of JSON before the picture, got {line[:40]!r}."
            ) from error
        if not isinstance(given, dict) or "page" not in given:
            raise InputError('request: expected {"page": "...", ...}, a name that the page made up.')
        for key, value in given.items():
            if key not in _KINDS:
                raise InputError(f"request: no such key {key[:40]!r}; it takes {', '.join(_KINDS)}.")
            if not _KINDS[key](value):
                raise InputError(f"request: {key} cannot be {json.dumps(value)[:60]}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)


def _number(value: object) -> bool:
    """No infinity, no NaN: Python's JSON reads both."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _maybe_number(value: object) -> bool:
    return value is None or _number(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "page": lambda v: _is_text(v) and 0 < len(v) <= 64,
    "prompts": _is_text,
    "threshold": _maybe_number,
    "nms_iou": _maybe_number,
    "class_agnostic": lambda v: v is None or isinstance(v, bool),
    "like": lambda v: isinstance(v, list) and all(map(_is_text, v)),
    "box": lambda v: isinstance(v, list) and len(v) == 4 and all(map(_number, v)),
    "label": lambda v: _is_text(v) and len(v) <= 64,
}


@dataclass
class Page:
    """What is kept for one open page."""

    picture: bytes | None = None
    seen: Proposals | None = None  # in that picture
    examples: dict[str, tuple[Example, LabelPack]] = field(default_factory=dict)


class Asking:
    """Answers the page's requests, from any thread.

    Args:
        model: open; it stays the caller's.
        pictures: offered by the page to begin with, beside those that the bundle holds.
        prompts: that stand on the page when it is opened.
    """

    def __init__(self, model: Model, pictures: Iterable[Path] = (), prompts: str = "") -> None:
        self._model, self._prompts = model, prompts
        own = [name for name in model.manifest.files if Path(name).suffix.lower() in PICTURE_SUFFIXES]
        self.pictures = [*map(model.bundle.path, sorted(own)), *pictures]
        heads = {variant.axes.head for variant in model.manifest.variants if variant.tower == "detector"}
        self._detects, self._keeps = bool(heads), "embeddings" in heads
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._closed = False

    def close(self) -> None:
        """Answer nothing more. Waits for the answer that is being computed."""
        with _turn:
            self._closed = True
            self._pages.clear()

    def facts(self) -> dict[str, Any]:
        """What the page has to know of the model, JSON-ready."""
        facts = self._model.manifest
        settings = facts.detection or Detection()
        spec = facts.preprocessing_of("detector" if self._detects else "image")
        return {
            "name": facts.name,
            "used": str(self._model.info()),
            "task": "detect" if self._detects else "classify",
            "examples": self._keeps,  # whether it finds by example
            "baked": list(self._model.labels),
            "prompts": self._prompts,
            "threshold": settings.threshold if self._detects else 0,
            "nms_iou": settings.nms_iou,
            "class_agnostic": settings.class_agnostic,
            "side": max(spec.size) if spec else 0,  # of the input, pixels
            "pictures": [path.name for path in self.pictures],
        }

    def detect(self, query: Query, picture: bytes) -> dict[str, Any]:
        """What is in the picture, or its labels where the model only classifies; with the times of the parts in ms.

        Raises:
            NoPictureError: it came without a picture, and none is kept.
            EdgeClipError: prompts, settings or a picture that cannot be used.
        """
        with _turn, stages.listen() as spans:
            begun = perf_counter_ns()
            page = self._page(query.page, picture)
            kept = page.seen is not None
            found = self._find(page, query) if self._detects else self._classify(page, query)
            times = stages.shares(spans, begun, perf_counter_ns())
        parts = sorted(times.items(), key=lambda part: stages.STAGES.index(part[0]))
        return {**found, "kept": kept, "times_ms": {name: round(ns / 1e6, 3) for name, ns in parts}}

    def example(self, query: Query, picture: bytes) -> dict[str, Any]:
        """Keep what is in the box as an example. A picture that comes with it is the example's only.

        Raises:
            NoPictureError, EdgeClipError: as of `detect`; or the box is none.
        """
        with _turn:
            page = self._page(query.page, b"")
            if not self._keeps:
                raise InputError(
                    f"{self._model.manifest.name}: this model finds nothing by example. Type prompts."
                )
            if len(page.examples) >= MOST_EXAMPLES:
                page.examples = {name: page.examples[name] for name in query.like if name in page.examples}
            if len(page.examples) >= MOST_EXAMPLES:
                raise InputError(f"examples: at most {MOST_EXAMPLES}. Remove one.")
            source = picture or page.picture
            if source is None:
                raise NoPictureError("example: no picture came, and none is kept. Send it again.")
            example = Example(source, query.box, query.label)
            example.check("example")
            seen = self._model.propose(source) if picture else self._seen(page)
            vector = query_of(seen, query.box, "example")
            pack = LabelPack((query.label,), ("{}",), vector[None], self._model.manifest.model_id)
            page.examples[query.label] = example, pack
        return {"label": query.label}

    def _page(self, name: str, picture: bytes) -> Page:
        if self._closed:
            raise InputError("the demo has ended.")
        page = self._pages.setdefault(name, Page())
        self._pages.move_to_end(name)
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)
        if picture:
            page.picture, page.seen = picture, None
        return page

    def _seen(self, page: Page) -> Proposals:
        if page.seen is None:
            page.seen = self._model.propose(_picture(page))
        return page.seen

    def _find(self, page: Page, query: Query) -> dict[str, Any]:
        labels = _labels(query.prompts)
        if lost := [name for name in query.like if name not in page.examples]:
            raise InputError(f"examples: {lost[0]!r} is no longer kept. Remove it, and show it again.")
        shown = {name: page.examples[name] for name in query.like}
        options: dict[str, Any] = {
            "threshold": query.threshold, "nms_iou": query.nms_iou, "class_agnostic": query.class_agnostic,
        }  # fmt: skip
        if labels is None and not shown and not self._model.labels:
            raise InputError("prompts: expected what to look for, e.g. a face, a red cup.")
        if isinstance(labels, str) or not self._keeps or (labels is None and not shown):
            examples = [example for example, _ in shown.values()]
            found = self._model.detect(_picture(page), labels, examples=examples, **options)
        else:
            found = self._model.detect_in(
                self._seen(page), self._pack(labels, [pack for _, pack in shown.values()]), **options
            )
        return {**found.to_dict(), "colours": _colours(found)}

    def _pack(self, labels: list[str] | None, packs: list[LabelPack]) -> LabelPack:
        """Texts, whose vectors the model keeps, and the packs of examples."""
        if labels is not None:
            packs = [self._model.make_prompts(labels), *packs]
        names = tuple(name for pack in packs for name in pack.labels)
        if len(set(names)) < len(names):
            raise InputError("prompts: one of them is also the name of an example. Call it otherwise.")
        return LabelPack(names, ("{}",), np.concatenate([pack.vectors for pack in packs]), packs[0].model_id)

    def _classify(self, page: Page, query: Query) -> dict[str, Any]:
        labels = _labels(query.prompts)
        if isinstance(labels, str):
            raise InputError(
                "prompts: this model classifies whole pictures; nothing is looked for within anything."
            )
        if labels is None and not self._model.labels:
            raise InputError("prompts: expected labels to choose from, e.g. a cat, a dog.")
        found = self._model.classify(_picture(page), labels, top_k=BARS, threshold=query.threshold)
        return {
            "label": found.label,
            "classes": [{"label": k, "score": round(v, 6)} for k, v in found.ranked()],
        }


def _picture(page: Page) -> bytes:
    if page.picture is None:
        raise NoPictureError("detect: no picture came, and none is kept. Send it again.")
    return page.picture


def _labels(prompts: str) -> list[str] | str | None:
    """Flat labels, or prompts within prompts as they were typed; None: nothing was."""
    if not prompts.strip():
        return None
    found = typed_prompts(prompts)
    if isinstance(found, str):
        tree = parse_prompts(found)
        return found if tree.nested else list(tree.labels)
    if len(found) > MOST_LABELS:
        raise InputError(f"prompts: expected at most {MOST_LABELS}, got {len(found)}.")
    return list(dict.fromkeys(found))


def _colours(found: Detections) -> Mapping[str, str]:
    from edgeclip.runtime.video.draw import colours_of  # late: OpenCV

    colours = zip(found.labels, colours_of(found.labels), strict=True)
    return {label: "#{:02x}{:02x}{:02x}".format(*rgb) for label, rgb in colours}
