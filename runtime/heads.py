"""How one call of `classify` is computed: by embeddings, by the labels baked into a graph, or by a graph that takes prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import Query
from edgeclip.runtime.prompts import Prompts, check_labels, check_templates
from edgeclip.runtime.results import to_scores
from edgeclip.runtime.towers import Tower

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What one call asks of the graphs, and what becomes of a picture's row."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    query: Query
    scores: Callable[[Vectors], NDArray[np.float64]]  # the query's row of one picture -> (P,) in 0-1


class Heads:
    """The ways in which a bundle can classify.

    Args:
        towers: of the image, by head: "embeddings", "labels" and "prompts", present in the bundle or not.
        prompts: makes vectors of labels where none are given.
    """

    def __init__(self, bundle: Bundle, towers: Mapping[str, Tower], prompts: Prompts) -> None:
        self._bundle, self._towers, self._prompts = bundle, towers, prompts
        self._baked: dict[str, LabelPack] = {}

    def has(self, head: str) -> bool:
        """Whether the bundle has an image tower with this head."""
        return bool(self._bundle.manifest.variants_of("image", head))

    @property
    def baked(self) -> LabelPack | None:
        """The pack that was baked into the image tower; None: none was."""
        return self.baked_in("image")

    def baked_in(self, kind: str) -> LabelPack | None:
        """The pack that was baked into a tower of this kind; None: none was. Raises BundleError if it does not fit its graph."""
        found = self._bundle.manifest.variants_of(kind, "labels")
        if kind not in self._baked and found:
            pack = LabelPack.open(self._bundle.path(found[0].labels))
            pack.require(self._bundle.manifest.model_id, self._bundle.manifest.embedding_dim)
            for variant in found:
                width = next(port.shape[-1] for port in variant.outputs if port.name == "logits")
                if (variant.labels, width) != (found[0].labels, len(pack.labels)):
                    raise BundleError(
                        f"{self._bundle.root}: {variant.id} gives {width} scores, its pack has {len(pack.labels)} "
                        "labels. The bundle is damaged: bake it again."
                    )
            self._baked[kind] = pack
        return self._baked.get(kind)

    def plans(self) -> Iterator[Plan]:
        """One call of each head, to warm it up."""
        if self.has("labels"):
            yield self._by_baked(None)
        if self.has("prompts"):
            yield self._by_prompts(
                ("",), np.eye(1, self._bundle.manifest.embedding_dim, dtype=np.float32), None
            )

    def plan(self, labels: Sequence[str] | LabelPack | None, templates: Sequence[str] | None) -> Plan:
        """How to classify by these labels; None: by the baked ones.

        Raises:
            InputError: labels, templates or a pack that cannot be used, or more labels than the graph takes.
            EngineError: the bundle has no graph for it.
        """
        if labels is None:
            return self._by_baked(templates)
        names, vectors, thresholds = self.vectors(labels, templates)
        if not self.has("embeddings") and self.has("prompts"):
            return self._by_prompts(names, vectors, thresholds)
        if not self.has("embeddings") and self.has("labels"):
            known = self._towers["labels"].variants[0].outputs[0].shape[1]
            raise EngineError(
                f"{self._bundle.root}: knows its {known} baked labels only. Pass no labels, or bake it with the head that takes prompts."
            )
        return self._by_embeddings(names, vectors, thresholds)

    def vectors(
        self, labels: Sequence[str] | LabelPack, templates: Sequence[str] | None
    ) -> tuple[tuple[str, ...], Vectors, tuple[float, ...] | None]:
        """Labels, their (P, D) unit vectors, and the thresholds that a pack brings."""
        facts = self._bundle.manifest
        if isinstance(labels, LabelPack):
            if templates is not None:
                raise InputError("templates: a label pack brings its own; drop them.")
            labels.require(facts.model_id, facts.embedding_dim)
            return labels.labels, labels.vectors, labels.thresholds
        names = check_labels(labels)
        return names, self._prompts.ensemble(names, check_templates(templates, facts.templates)), None

    def _by_baked(self, templates: Sequence[str] | None) -> Plan:
        pack = self.baked
        if pack is None:
            raise InputError(f"labels: {self._bundle.root} has none baked in. Pass labels, or a label pack.")
        if templates is not None:
            raise InputError("templates: baked labels bring their own; drop them.")
        return Plan(pack.labels, pack.thresholds, Query(self._towers["labels"], "logits"), self._activate)

    def _by_prompts(
        self, names: tuple[str, ...], vectors: Vectors, thresholds: tuple[float, ...] | None
    ) -> Plan:
        tower, count = self._towers["prompts"], len(names)
        beside, sizes = prompt_inputs(tower, vectors)
        query = Query(tower, "logits", beside, sizes)
        return Plan(names, thresholds, query, lambda row: self._activate(row[:count]))

    def _by_embeddings(
        self, names: tuple[str, ...], vectors: Vectors, thresholds: tuple[float, ...] | None
    ) -> Plan:
        tower, facts = self._towers["embeddings"], self._bundle.manifest

        def scores(row: Vectors) -> NDArray[np.float64]:
            fitted = facts.scores_of(tower.variant)  # known once the tower is open
            cosines = row[None] @ vectors.T
            every = to_scores(cosines, fitted.logit_scale, fitted.logit_bias, facts.activation)
            return np.asarray(every[0])

        return Plan(names, thresholds, Query(tower), scores)

    def _activate(self, logits: Vectors) -> NDArray[np.float64]:
        """(P,) logits to scores, in float64: a graph's own float32 scores no longer tell labels apart very near 1."""
        return np.asarray(to_scores(logits[None], 1.0, 0.0, self._bundle.manifest.activation)[0])


def prompt_inputs(tower: Tower, vectors: Vectors) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """(P, D) unit rows as a graph of head "prompts" takes them beside the pixels, padded and masked, and its symbolic sizes.

    Raises:
        InputError: more than it takes.
    """
    count = len(vectors)
    # the list looks for engines on disk, so only before the first call
    opened = tower.variant or tower.variants[0]
    most = next(port.shape[1] for port in opened.inputs if port.name == "prompt_embeddings")
    if isinstance(most, int) and count > most:
        raise InputError(
            f"labels: expected at most {most}, got {count}: this bundle was baked with --open {most}. "
            "Pass fewer, or bake it with more."
        )
    size = most if isinstance(most, int) else count
    rows = np.zeros((1, size, vectors.shape[1]), np.float32)
    rows[0, :count] = vectors
    return {"prompt_embeddings": rows, "prompt_mask": np.arange(size)[None] < count}, {"B": 1, "P": size}
