"""Texts to vectors, with what was embedded before kept: the same labels come with every picture."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime import fork, stages
from edgeclip.runtime.engines import rows_at_once, run
from edgeclip.runtime.text import TextEncoder
from edgeclip.runtime.towers import Tower

Vectors = NDArray[np.float32]


class Prompts:
    """The text side of a model.

    Args:
        tower: the text tower; opened when a text is not in the cache.
        capacity: texts kept, least recently used go first. One entry takes 4 * D bytes and the text.
        batch_size: texts in one call of the engine.
    """

    def __init__(self, bundle: Bundle, tower: Tower, *, capacity: int = 8192, batch_size: int = 32) -> None:
        self._bundle, self._tower, self._capacity, self._batch_size = bundle, tower, capacity, batch_size
        self._known: OrderedDict[str, Vectors] = OrderedDict()
        # the last ensemble, by labels and templates: a program asks for the same with every picture, and to put 20 labels together
        # from 80 templates each takes 3 ms
        self._last: tuple[tuple[tuple[str, ...], tuple[str, ...]], Vectors] | None = None
        self._lock = threading.Lock()
        self._encoder: TextEncoder | None = None
        fork.register(self)

    @property
    def encoder(self) -> TextEncoder:
        """The tokenizer, read at its first use. Raises EngineError if the bundle has none."""
        settings = self._bundle.manifest.text
        if settings is None:
            raise EngineError(
                f"{self._bundle.root}: this bundle has no text tower. Use a label pack, or embed pictures only."
            )
        if self._encoder is None:
            self._encoder = TextEncoder.open(self._bundle.path(settings.tokenizer), settings)
        return self._encoder

    def embed(self, texts: Sequence[str], *, strict: bool = False) -> Vectors:
        """(N, D) unit rows, in the order of `texts`."""
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{i}]: expected a str, got {type(text).__name__}.")
        if strict:  # also refuses a text that was cut, and kept, before
            self.encoder.encode(texts, strict=True)
        with self._lock:
            rows = {text: self._known[text] for text in texts if text in self._known}
        missing = [i for i, text in enumerate(texts) if text not in rows]
        if self._capacity:
            missing = list({texts[i]: i for i in reversed(missing)}.values())
        for text, vector in self._run([texts[i] for i in missing], missing):
            rows[text] = vector
        with self._lock:
            for text in texts:
                self._known[text] = rows[text]
                self._known.move_to_end(text)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return np.stack([rows[text] for text in texts]) if texts else np.empty((0, self._dim), np.float32)

    def ensemble(self, labels: Sequence[str], templates: Sequence[str], *, strict: bool = False) -> Vectors:
        """(P, D) unit rows, to be read only: the mean over the templates of each label's unit vectors, of unit length again."""
        asked, last = (tuple(labels), tuple(templates)), self._last
        if last is not None and not strict and asked == last[0]:
            return last[1]
        vectors = self.embed(
            [template.replace("{}", label) for label in labels for template in templates], strict=strict
        )
        if len(templates) > 1:
            means = vectors.reshape(len(labels), len(templates), -1).mean(axis=1)
            vectors = np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)
        if len(vectors) <= self._capacity:
            self._last = (asked, vectors)
        return vectors

    def keep(self, most: int) -> None:
        """Keep so many texts from now on; 0: none, and a text that comes twice in one call is computed twice."""
        with self._lock:
            self._capacity, self._last = most, None
            while len(self._known) > most:
                self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget every vector."""
        with self._lock:
            self._known.clear()
            self._last = None

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held."""
        self._lock = threading.Lock()

    @property
    def _dim(self) -> int:
        return self._bundle.manifest.embedding_dim

    def _run(self, texts: list[str], numbers: list[int]) -> Iterator[tuple[str, Vectors]]:
        if not texts:
            return
        encoder, begun = self.encoder, stages.begin()
        encoded = encoder.encode(texts, numbers=numbers)
        stages.end("tokenize", begun)
        order = sorted(
            range(len(texts)), key=encoded.lengths.__getitem__
        )  # like lengths share a batch: less padding
        with self._tower.lease() as engine:
            length = engine.variant.inputs[0].shape[1]
            rows = rows_at_once(engine, self._batch_size)
            for start in range(0, len(order), rows):
                part = order[start : start + rows]
                longest = encoded.lengths[part[-1]]
                sizes = {length: longest} if isinstance(length, str) else None
                slot = self._tower.take(engine, len(part), sizes)
                slot.inputs["input_ids"][:] = encoded.input_ids[part, :longest]
                begun = stages.begin()
                outputs = run(engine, slot)
                stages.end("text tower", begun)
                vectors = outputs["embeddings"].astype(np.float32)
                self._tower.give(engine, slot)
                yield from zip((texts[i] for i in part), vectors, strict=True)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels as a tuple. Raises InputError for none, one string, an empty one, no string, or the same one twice."""
    if isinstance(labels, str):
        raise InputError(
            f'labels: expected a list of labels, got the one string {labels[:40]!r}. Pass ["{labels[:40]}", ...].'
        )
    seen: dict[str, int] = {}
    for i, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"labels[{i}]: expected a text, got {label!r}.")
        if label in seen:
            raise InputError(
                f"labels[{i}]: {label!r} is also labels[{seen[label]}]; the two would share their score. Drop one."
            )
        seen[label] = i
    if not seen:
        raise InputError("labels: expected at least one, got none.")
    return tuple(seen)


def check_templates(templates: Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Templates as a tuple. Raises InputError for one without a {}."""
    if templates is None:
        return default
    found = (templates,) if isinstance(templates, str) else tuple(templates)
    for template in found:
        if "{}" not in template:
            raise InputError(
                f"templates: {template!r} has no {{}} where the label goes. Write it like 'a photo of a {{}}.'."
            )
    return found or default
