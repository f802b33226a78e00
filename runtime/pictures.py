"""Pictures to vectors: decoded on several threads, in batches, in order, with a bad one never stopping the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime import fork, stages
from edgeclip.runtime.engines import Engine, Slot, rows_at_once, run
from edgeclip.runtime.images import DecodeLimits, Picture, Preprocessor
from edgeclip.runtime.images.decode import Color
from edgeclip.runtime.images.preprocess import Decode
from edgeclip.runtime.towers import Tower

MOST_PARTS = (
    4  # of one picture: on 16 cores 4 threads are the fastest, 16 take 1.5 times as long as one alone
)
Vectors = NDArray[np.float32]
Outcomes = Sequence[
    tuple[int, int] | InputError
]  # of each picture in a batch: its (H, W), or why it cannot be used
# One picture's rows of every output, good during the call only, and the picture's (H, W) -> what is given for it
Read = Callable[[dict[str, NDArray[Any]], tuple[int, int]], Any]


@dataclass(frozen=True)
class Query:
    """What is asked of each batch of pictures."""

    tower: Tower
    output: str = "embeddings"  # (N, ...) of the graph
    beside: Mapping[str, NDArray[Any]] = field(
        default_factory=dict
    )  # inputs beside the pixels, the same for all
    sizes: Mapping[str, int] = field(default_factory=dict)  # symbolic sizes beside N
    read: Read | None = None  # None: a copy of `output`'s row


class Pictures:
    """The image side of a model.

    Args:
        tower: what is asked where a query names none; its kind decides how pictures are prepared.
        threads: that decode at once.
    """

    def __init__(
        self, bundle: Bundle, tower: Tower, *, decode: Decode, limits: DecodeLimits | None, threads: int
    ) -> None:
        self._bundle, self._tower, self._threads = bundle, tower, threads
        spec = bundle.manifest.preprocessing_of(tower.kind)
        self._preprocessor = Preprocessor(spec, decode=decode, limits=limits) if spec else None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        fork.register(self)

    @property
    def preprocessor(self) -> Preprocessor:
        """Raises EngineError if the bundle has no image tower."""
        if self._preprocessor is None:
            raise EngineError(
                f"{self._bundle.root}: this bundle has no image tower; it can embed texts only."
            )
        return self._preprocessor

    def each(
        self,
        images: Iterable[Picture],
        color: Color,
        batch_size: int,
        *,
        stop: bool,
        query: Query | None = None,
    ) -> Iterator[Any]:
        """What the query reads, by default an embedding (D,), or the InputError, for each picture, in order.

        `stop`: raise the first error instead. An engine that works on its own (a GPU) computes one batch while the next is decoded.
        """
        _ = self.preprocessor
        if batch_size < 1:
            raise InputError(f"batch_size: expected 1 or more, got {batch_size}.")
        source, first = iter(images), 0
        ahead: tuple[Slot, Outcomes] | None = None
        asked = query or Query(self._tower)
        with asked.tower.lease() as engine:
            rows = rows_at_once(engine, batch_size)
            try:
                while chunk := list(islice(source, rows)):
                    slot = asked.tower.take(engine, len(chunk), asked.sizes)
                    for name, array in asked.beside.items():
                        slot.inputs[name][:] = array
                    outcomes = self._fill(slot, chunk, color, first)
                    if stop:
                        for outcome in outcomes:
                            if isinstance(outcome, InputError):
                                raise outcome
                    begun = stages.begin()
                    engine.submit(slot)
                    stages.end("image tower", begun)
                    behind, ahead = ahead, (slot, outcomes)
                    if behind:
                        yield from self._finish(asked, engine, *behind)
                    if not engine.overlaps:
                        done, ahead = ahead, None
                        yield from self._finish(asked, engine, *done)
                    first += len(chunk)
                if ahead:
                    done, ahead = ahead, None
                    yield from self._finish(asked, engine, *done)
            finally:
                if ahead:  # the engine still works on its arrays
                    engine.wait(ahead[0])

    def pixels(self, pixels: NDArray[Any], batch_size: int) -> Vectors:
        """What the open variant takes, preprocessed by the caller, to (N, D).

        Args:
            pixels: (N, 3, H, W) float32, normalised, or (N, H, W, 3) uint8 RGB for a variant that normalises in its graph.
        """
        _ = self.preprocessor
        found = np.empty((len(pixels), self._bundle.manifest.embedding_dim), np.float32)
        with self._tower.lease() as engine:
            port = engine.variant.inputs[0]
            if pixels.dtype != port.dtype or pixels.ndim != 4 or pixels.shape[1:] != port.shape[1:]:
                wanted = ", ".join(map(str, port.shape))
                raise InputError(
                    f"pixels: expected {port.dtype} ({wanted}), got {pixels.dtype} {pixels.shape}."
                )
            rows = rows_at_once(engine, batch_size)
            for start in range(0, len(pixels), rows):
                part = pixels[start : start + rows]
                slot = self._tower.take(engine, len(part))
                slot.inputs["pixels"][:] = part
                begun = stages.begin()
                outputs = run(engine, slot)
                stages.end("image tower", begun)
                found[start : start + len(part)] = outputs["embeddings"]
                self._tower.give(engine, slot)
        return found

    def close(self) -> None:
        """End the decoding threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None

    def after_fork(self) -> None:
        """In a forked child: the decoding threads stayed in the parent."""
        fork.abandon(self._pool)
        self._pool, self._lock = None, threading.Lock()

    def _fill(self, slot: Slot, chunk: Sequence[Picture], color: Color, first: int) -> Outcomes:
        """Preprocess into the slot's rows; one that failed leaves a row that nobody reads."""
        rows, preprocessor = slot.inputs["pixels"], self.preprocessor
        # one picture is shared out in rows; several take a thread each
        helpers = self._decoders() if len(chunk) == 1 and self._threads > 1 else None
        parts = min(self._threads, MOST_PARTS)

        def one(i: int) -> tuple[int, int] | InputError:
            try:
                where = f"images[{first + i}]"
                return preprocessor.into(
                    chunk[i], rows[i], color=color, where=where, helpers=helpers, parts=parts
                )
            except InputError as error:
                return error

        if len(chunk) == 1 or self._threads == 1:
            return [one(i) for i in range(len(chunk))]
        return list(self._decoders().map(one, range(len(chunk))))

    def _finish(self, asked: Query, engine: Engine, slot: Slot, outcomes: Outcomes) -> Iterator[Any]:
        begun = stages.begin()
        engine.wait(slot)
        stages.end("image tower", begun)
        if asked.read is None:
            found = list(slot.outputs[asked.output].astype(np.float32))  # a copy: the slot is used again
        else:
            found = [
                None if isinstance(size, InputError) else asked.read(_row(slot.outputs, i), size)
                for i, size in enumerate(outcomes)
            ]
        asked.tower.give(engine, slot)
        for row, outcome in zip(found, outcomes, strict=True):
            yield outcome if isinstance(outcome, InputError) else row

    def _decoders(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="edgeclip-decode")
            return self._pool


def is_one(images: object) -> bool:
    """Whether `images` is one picture rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))


def _row(outputs: Mapping[str, NDArray[Any]], i: int) -> dict[str, NDArray[Any]]:
    return {name: rows[i] for name, rows in outputs.items()}
