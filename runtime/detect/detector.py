"""How one call of `detect` is computed: by regions and vectors, by a graph that takes prompts, or by the labels baked into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Detection
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime import stages
from edgeclip.runtime.detect.asked import Asked, Vocabulary
from edgeclip.runtime.detect.examples import Example, average, query_of
from edgeclip.runtime.detect.postprocess import Rules, choose, find
from edgeclip.runtime.detect.prompt_tree import PromptTree, parse_prompts
from edgeclip.runtime.detect.proposals import Proposals, Regions
from edgeclip.runtime.detect.search import Search
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.heads import Heads, prompt_inputs
from edgeclip.runtime.images.decode import Color, Picture
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import Pictures, Query
from edgeclip.runtime.prompts import check_templates
from edgeclip.runtime.towers import Tower

Pixels = NDArray[np.uint8]


class Detector:
    """The detector of a bundle, present or not.

    Args:
        towers: of the detector, by head: "embeddings", "labels" and "prompts", present in the bundle or not.
        heads: makes vectors of labels, and knows the baked ones.
        pictures: prepares them as the detector takes them.
    """

    def __init__(self, bundle: Bundle, towers: Mapping[str, Tower], heads: Heads, pictures: Pictures) -> None:
        self._bundle, self._towers, self._heads, self._pictures = bundle, towers, heads, pictures
        self._settings = bundle.manifest.detection or Detection()

    def has(self, head: str) -> bool:
        """Whether the bundle has a detector with this head."""
        return bool(self._bundle.manifest.variants_of("detector", head))

    def each(
        self, images: Iterable[Picture], asked: Asked, color: Color, batch_size: int, *, stop: bool
    ) -> Iterator[Detections | InputError]:
        """The detections of each picture, or its error, in order. `stop`: raise the first error instead."""
        vocabulary, rules = self._prepare(asked, color)
        search = Search(
            self._pictures, partial(self._query, vocabulary), vocabulary, rules, asked.tile, batch_size
        )
        return search.each(images, color, stop=stop)

    def propose(
        self, images: Iterable[Picture], color: Color, batch_size: int, *, stop: bool
    ) -> Iterator[Proposals | InputError]:
        """What it sees in each picture, or the picture's error."""
        self._require()
        if not self.has("embeddings"):
            raise EngineError(
                f"{self._bundle.root}: its detector answers {'prompts' if self.has('prompts') else 'its baked labels'} and gives no "
                "embeddings of regions. Pass labels to `detect`, or use the bundle that it was baked from."
            )
        model_id = self._bundle.manifest.model_id
        query = self._query_of("embeddings", lambda seen: seen.proposals(model_id, copy=True))
        return self._pictures.each(images, color, batch_size, stop=stop, query=query)

    def within(self, seen: Proposals, asked: Asked, color: Color) -> Detections:
        """Ask what was seen, by vectors."""
        facts = self._bundle.manifest
        if (seen.model_id, seen.embeddings.shape[1]) != (facts.model_id, facts.embedding_dim):
            raise InputError(
                f"proposals: expected those of model {facts.model_id[:12]}..., got those of {seen.model_id[:12]}.... Propose again."
            )
        vocabulary, rules = self._prepare(asked, color)
        if vocabulary.vectors is None:
            raise InputError("labels: expected some, or examples: proposals know nothing of baked labels.")
        if vocabulary.tree.nested:
            raise InputError(
                "labels: expected no prompts within prompts: proposals hold no pixels to look into. Use `detect`."
            )
        begun = stages.begin()
        logits = seen.logits(vocabulary.vectors)
        look = partial(choose, logits, seen.boxes, seen.objectness, rules)
        result = find(look, vocabulary.names, seen.size, rules)
        stages.end("head", begun)
        return result

    def pack(self, asked: Asked, color: Color) -> LabelPack:
        """Texts and examples as one pack."""
        self._require()
        if asked.labels is None and not asked.examples:
            raise InputError("labels: expected some, or examples, got none.")
        found = self._vocabulary(asked, color)
        assert found.vectors is not None
        return LabelPack(
            found.names,
            check_templates(asked.templates, self._bundle.manifest.templates),
            found.vectors.copy(),
            self._bundle.manifest.model_id,
            thresholds=found.own,
        )

    def vectors_of(
        self, examples: Sequence[Example], color: Color
    ) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """Labels of examples and their (P, D) vectors."""
        rows = []
        for i, example in enumerate(examples):
            if not isinstance(example, Example):
                raise InputError(f"examples[{i}]: expected an Example, got {type(example).__name__}.")
            example.check(f"examples[{i}]")
            own: Color = color if isinstance(example.picture, np.ndarray) else "rgb"
            (seen,) = self.propose([example.picture], own, 1, stop=False)
            if isinstance(seen, InputError):
                raise InputError(f"examples[{i}]: {seen}") from seen
            rows.append(query_of(seen, example.box, f"examples[{i}]"))
        return average([example.label for example in examples], rows)

    def warm_up(self, image: Pixels) -> None:
        """Run each head that `detect` may use once."""
        vector = np.eye(1, self._bundle.manifest.embedding_dim, dtype=np.float32)
        for head in ("embeddings", "prompts", "labels"):
            if self.has(head) and not (head == "prompts" and self.has("embeddings")):
                query = self._query_of(head, lambda seen: None, vector)
                list(self._pictures.each([image], "rgb", 1, stop=True, query=query))

    def _require(self) -> None:
        if not any(variant.tower == "detector" for variant in self._bundle.manifest.variants):
            _ = self._towers["embeddings"].variants  # says what the bundle can do

    def _prepare(self, asked: Asked, color: Color) -> tuple[Vocabulary, Rules]:
        self._require()
        begun = stages.begin()
        vocabulary = self._vocabulary(asked, color)
        rules = Rules(
            thresholds=asked.thresholds(vocabulary, self._settings.threshold),
            nms_iou=self._settings.nms_iou if asked.nms_iou is None else asked.nms_iou,
            class_agnostic=self._settings.class_agnostic
            if asked.class_agnostic is None
            else asked.class_agnostic,
            max_detections=asked.max_detections,
            objectness=self._settings.objectness,
        )
        stages.end("head", begun)
        return vocabulary, rules

    def _vocabulary(self, asked: Asked, color: Color) -> Vocabulary:
        labels, templates = asked.labels, asked.templates
        tree = parse_prompts(labels) if isinstance(labels, str) and labels.lstrip().startswith("[") else None
        if labels is None and not asked.examples:
            pack = self._heads.baked_in("detector")
            if pack is None:
                raise InputError(
                    f"labels: {self._bundle.root} has none baked in for its detector. Pass labels, a label pack, or examples."
                )
            if templates is not None:
                raise InputError("templates: baked labels bring their own; drop them.")
            return Vocabulary(pack.labels, None, pack.thresholds, PromptTree.flat(pack.labels))
        names: tuple[str, ...] = ()
        vectors, thresholds = np.empty((0, self._bundle.manifest.embedding_dim), np.float32), None
        if labels is not None and (isinstance(labels, LabelPack) or len(labels) or not asked.examples):
            names, vectors, thresholds = self._heads.vectors(tree.labels if tree else labels, templates)
        if asked.examples:
            more, rows = self.vectors_of(asked.examples, color)
            if both := set(names) & set(more):
                raise InputError(
                    f"examples: {sorted(both)[0]!r} is also a label; the two could not be told apart. Name it otherwise."
                )
            if thresholds is not None:
                thresholds = (*thresholds, *[self._settings.threshold] * len(more))
            tree = tree and tree.and_flat(more)
            names, vectors = (*names, *more), np.concatenate([vectors, rows])
        return Vocabulary(names, vectors, thresholds, tree or PromptTree.flat(names))

    def _query(self, vocabulary: Vocabulary, read: Callable[[Regions], Any]) -> Query:
        """How a graph is asked by these labels."""
        if vocabulary.vectors is None:
            return self._query_of("labels", read)
        if self.has("embeddings"):
            return self._query_of("embeddings", read)
        if self.has("prompts"):
            return self._query_of("prompts", read, vocabulary.vectors)
        raise EngineError(
            f"{self._bundle.root}: its detector knows its baked labels only. Pass no labels, or bake it with the head that takes prompts."
        )

    def _query_of(
        self, head: str, read: Callable[[Regions], Any], vectors: NDArray[np.float32] | None = None
    ) -> Query:
        tower, spec = self._towers[head], self._pictures.preprocessor.spec

        def regions(outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> Any:
            begun = stages.begin()
            result = read(Regions.of(outputs, spec, size))
            stages.end("head", begun)
            return result

        if head != "prompts" or vectors is None:
            return Query(tower, read=regions)
        beside, sizes = prompt_inputs(tower, vectors)
        return Query(tower, beside=beside, sizes=sizes, read=regions)
