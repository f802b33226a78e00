"""Reinforced data: what teachers make of every view and every text, computed once and kept in shards, however often students learn from it.

A shard's content hangs on the plan alone, so a run that was killed goes on at the first shard that is not whole and ends in the same bytes.
Source: Vasu et al. 2024 (MobileCLIP), arXiv:2311.17049, "dataset reinforcement": augmentations kept by their parameters, captions that
another model wrote, embeddings of an ensemble.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edgeclip.errors import InputError, TrainingError
from edgeclip.export.distill.probe import clean, probe, views_of
from edgeclip.export.distill.reinforce_settings import ReinforceSettings
from edgeclip.export.distill.teachers import Teachers, Vectors
from edgeclip.files import sha256_file, write_file
from edgeclip.models.training.data import Pairs, open_pairs
from edgeclip.models.training.data.captions import digest_of, extra_captions, text_bank
from edgeclip.models.training.data.pairs import group_of
from edgeclip.models.training.data.pictures import open_pictures
from edgeclip.models.training.data.shuffled import fingerprint_of, split_by_hash
from edgeclip.models.training.data.stored import StoredFile, packed
from edgeclip.models.training.loop import told_once
from edgeclip.models.training.prefetch import prefetch
from edgeclip.models.training.progress import counting
from edgeclip.models.training.reinforced import (
    BANK,
    DIRECTIONS,
    HELD_OUT,
    MANIFEST,
    Manifest,
    Plan,
    principal,
    read_manifest,
)
from edgeclip.runtime.images import Preprocessor

CHUNK = 8  # pairs whose views are embedded at once
LEARN_FROM = 200_000  # rows of pictures and of texts, of which the principal directions are taken

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """A training pair that could be read."""

    index: int
    views: list[list[NDArray[np.float32]]]  # each for every preprocessing of the teachers
    texts: dict[str, int]  # every caption in every template -> the caption's group


@dataclass(frozen=True)
class Reinforcement:
    """What a finished run left."""

    folder: Path
    pairs: int  # training pairs with rows
    held_out: int
    unreadable: int  # left out
    size_bytes: int
    bytes_a_pair: float  # of the training pairs
    made: int  # shards made by this call; others were there


def reinforce(
    teachers: Teachers, data: str, output: Path, settings: ReinforceSettings, *, progress: bool = True
) -> Reinforcement:
    """Write what teachers make of the data, or go on where a killed run stopped; a whole folder is checked, and mended where it is damaged.

    Args:
        data: as a recipe's `data`; with a text bank a folder of pictures.
        output: the folder.
        progress: show a bar on stderr where that is a terminal.
    Raises:
        TrainingError: nothing there can be read, `output` holds what was made otherwise, or a teacher's embeddings are not finite or all
            alike.
        InputError: `output` cannot be written.
    """
    with told_once():
        run = _Run(teachers, data, Path(output), settings)
        probe(teachers, run.pairs, settings, run.bank)
        return run.go(progress)


class _Run:
    """One call of `reinforce`."""

    def __init__(self, teachers: Teachers, data: str, output: Path, settings: ReinforceSettings) -> None:
        self.teachers, self.output, self.settings = teachers, output, settings
        self.bank = text_bank(Path(settings.text_bank)) if settings.text_bank else ()
        self.pairs: Pairs = open_pictures(data) if self.bank else open_pairs(data, settings.data_format)
        keys = self.pairs.keys
        self.extra = extra_captions(Path(settings.captions), keys) if settings.captions else {}
        self.train, held_out = split_by_hash(keys, settings.validation_share)
        self.held_out = held_out[: settings.validation_pairs]
        if not len(self.train):
            raise TrainingError(
                f"{data}: all {len(keys)} pairs are held out. Set a smaller validation_share."
            )
        self.plan = Plan(
            teachers.records,
            fingerprint_of(keys),
            len(keys),
            settings.views,
            settings.seed,
            settings.augmentation,
            settings.templates,
            digest_of([text for key in sorted(self.extra) for text in (key, *self.extra[key])])
            if self.extra
            else "",
            digest_of(self.bank) if self.bank else "",
            settings.validation_share,
            settings.validation_pairs,
            settings.pairs_per_shard,
        )
        self.done = self._intact()

    def _intact(self) -> dict[str, StoredFile]:
        """Files of an earlier call that are whole."""
        if not (self.output / MANIFEST).is_file():
            # what begins with a dot is left of a run that was killed
            if self.output.is_dir() and any(not path.name.startswith(".") for path in self.output.iterdir()):
                raise TrainingError(
                    f"{self.output}: holds something else. Name another folder for the reinforced data."
                )
            return {}
        before = read_manifest(self.output)
        if difference := before.plan.difference(self.plan):
            raise TrainingError(
                f"{self.output}: was made with {difference}. Set it back, or name another folder for the reinforced data."
            )
        files = [file for file in (*before.shards, *before.files) if file.intact(self.output)]
        return {file.name: file for file in files}

    def go(self, progress: bool) -> Reinforcement:
        """All that is missing."""
        made, size = 0, self.settings.pairs_per_shard
        for left in self.output.glob(".*.safetensors.*"):  # of a run that was killed
            left.unlink()
        self._manifest().write(self.output)
        parts = [self.train[i : i + size] for i in range(0, len(self.train), size)]
        with counting("reinforce", len(self.train), progress) as tell:
            for number, part in enumerate(parts):
                name = f"shard-{number:05d}.safetensors"
                if name not in self.done:
                    self._keep(name, *self._shard(part, partial(_from, tell, number * size)))
                    made += 1
                tell(min((number + 1) * size, len(self.train)))
        if HELD_OUT not in self.done:
            self._keep(HELD_OUT, *self._held_out())
        if self.bank and BANK not in self.done:
            texts = self._texts(list(self.bank))
            self._keep(BANK, {"text": texts, **packed(self.bank)}, len(self.bank), 0)
        if DIRECTIONS not in self.done:
            self._keep(DIRECTIONS, self._directions(), 0, 0)
        manifest = self._manifest().finished()
        manifest.write(self.output)
        held = self.done[HELD_OUT]
        if manifest.unreadable:
            log.warning("%d pairs cannot be read; they are left out", manifest.unreadable)
        return Reinforcement(
            self.output,
            manifest.stored,
            held.pairs,
            manifest.unreadable,
            manifest.size_bytes,
            manifest.bytes_a_pair,
            made,
        )

    def _manifest(self) -> Manifest:
        files = sorted(self.done.values(), key=lambda file: file.name)
        shards = tuple(file for file in files if file.name.startswith("shard-"))
        return Manifest(self.plan, shards, tuple(file for file in files if file not in shards))

    def _keep(self, name: str, tensors: dict[str, NDArray[Any]], pairs: int, unreadable: int) -> None:
        """Write a file, then the manifest that lists it."""
        path = self.output / name
        write_file(path, save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))
        self.done[name] = StoredFile(name, path.stat().st_size, sha256_file(path), pairs, unreadable)
        self._manifest().write(self.output)

    def _shard(
        self, part: NDArray[np.int64], tell: Callable[[int], None]
    ) -> tuple[dict[str, NDArray[Any]], int, int]:
        """-> (tensors, pairs, unreadable) of the training pairs at `part`."""
        index: list[int] = []
        images: list[NDArray[np.float16]] = []
        texts: list[dict[str, int]] = []
        for seen, rows in enumerate(self._chunks(part), 1):
            tell(min(seen * CHUNK, len(part)))
            if not rows:
                continue
            # (n, views) of each preprocessing, as one row after the other
            by_spec = [
                np.stack([one[spec] for row in rows for one in row.views])
                for spec in range(len(self.teachers.specs))
            ]
            found = self.teachers.images(by_spec)
            names = [self.pairs.keys[row.index] for row in rows for _ in row.views]
            images.append(_halves(found, names).reshape(len(rows), self.settings.views, -1))
            index += [row.index for row in rows]
            texts += [row.texts for row in rows]
        if not index:
            raise TrainingError(
                f"{self.pairs.keys[int(part[0])]}: unreadable, and so are all {len(part)} pairs of its shard. Is the data still there?"
            )
        tensors: dict[str, NDArray[Any]] = {
            "index": np.array(index, np.int64),
            "image": np.concatenate(images),
        }
        if not self.bank:
            tensors |= self._text_tensors(texts)
        return tensors, len(index), len(part) - len(index)

    def _text_tensors(self, pairs: Sequence[dict[str, int]]) -> dict[str, NDArray[Any]]:
        places: dict[str, int] = {}  # equal texts of a shard, such as a class's name, are kept once
        groups = {text: group for texts in pairs for text, group in texts.items()}
        numbers = [[places.setdefault(text, len(places)) for text in texts] for texts in pairs]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in numbers])])
        return {
            "captions": np.array([n for row in numbers for n in row], np.int32),
            "offsets": offsets.astype(np.int64),
            "groups": np.array([groups[text] for text in places], np.int64),
            "text": self._texts(list(places)),
            **packed(list(places)),
        }

    def _held_out(self) -> tuple[dict[str, NDArray[Any]], int, int]:
        """The runtime's picture and the first text of every held-out pair: what a student is scored by."""
        prepare = [Preprocessor(spec) for spec in self.teachers.specs]
        index: list[int] = []
        rows: list[NDArray[np.float16]] = []
        texts: list[str] = []
        for i in map(int, self.held_out):
            try:
                picture, captions = self.pairs.read(i)
                views = [np.empty((1, 3, *one.spec.size), np.float32) for one in prepare]
                for one, slot in zip(prepare, views, strict=True):
                    one.into(picture, slot[0], where=self.pairs.keys[i])
            except (InputError, OSError) as error:
                log.warning("left out: %s", error)
                continue
            index.append(i)
            rows.append(_halves(self.teachers.images(views), [self.pairs.keys[i]]))
            texts += map(clean, captions[:1])
        empty = np.empty((0, self.teachers.dim), np.float16)
        tensors = {
            "index": np.array(index, np.int64),
            "image": np.concatenate([empty, *rows]),
            "text": self._texts([self.settings.templates[0].replace("{}", text) for text in texts]),
            "groups": np.array([group_of(text) for text in texts], np.int64),
        }
        return tensors, len(index), len(self.held_out) - len(index)

    def _directions(self) -> dict[str, NDArray[Any]]:
        """Eigenvectors of the rows' second moments: half of pictures', half of texts'."""
        moments = {name: np.zeros((self.teachers.dim,) * 2) for name in ("image", "text")}
        shards = self._manifest().shards
        share = max(1, LEARN_FROM // len(shards))
        for file in shards:
            opened = file.open(self.output)
            for name in moments.keys() & set(opened.keys()):
                held = opened.get_slice(name)
                rows = held[: min(share, held.get_shape()[0])].astype(np.float64)
                rows = rows.reshape(-1, self.teachers.dim)[:share]
                moments[name] += rows.T @ rows
        if self.bank:
            rows = self.done[BANK].open(self.output).get_tensor("text")[:LEARN_FROM].astype(np.float64)
            moments["text"] += rows.T @ rows
        directions, strength = principal(moments.values())
        return {"directions": directions, "strength": strength}

    def _chunks(self, part: NDArray[np.int64]) -> Iterator[list[_Row]]:
        """Those pairs of each chunk that can be read, in order."""
        chunks = [part[i : i + CHUNK] for i in range(0, len(part), CHUNK)]
        return prefetch(
            lambda number: [row for i in chunks[number] if (row := self._row(int(i)))],
            0,
            len(chunks),
            self.settings.workers,
        )

    def _row(self, index: int) -> _Row | None:
        key, settings = self.pairs.keys[index], self.settings
        try:
            picture, captions = self.pairs.read(index)
            views = views_of(self.teachers, picture, key, settings, settings.views)
        except (InputError, OSError) as error:
            log.debug("unreadable: %s", error)
            return None
        texts = {
            template.replace("{}", caption): group_of(caption)
            for caption in map(clean, (*captions, *self.extra.get(key, ())))
            for template in settings.templates
        }
        return _Row(index, views, texts)

    def _texts(self, texts: Sequence[str]) -> NDArray[np.float16]:
        found: Vectors = self.teachers.texts(texts) if texts else np.empty((0, self.teachers.dim), np.float32)
        return _halves(found, texts)


def _from(tell: Callable[[int], None], start: int, done: int) -> None:
    tell(start + done)


def _halves(rows: Vectors, names: Sequence[str]) -> NDArray[np.float16]:
    """As they are kept. Raises TrainingError: a row is not finite; names it."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise TrainingError(
            f"{names[int(bad[0])]!r}: the teacher makes an embedding of it that is not finite. Choose another teacher, or device=cpu."
        )
    return rows.astype(np.float16)
