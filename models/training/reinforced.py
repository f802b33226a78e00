"""What teachers said of a data set, as a folder: written once by `reinforce`, read by any number of students.

    reinforced.json         what it was made from and how, every file's size and SHA-256, and its own digest
    shard-00000.safetensors the training pairs' rows, see data/stored.py
    held-out.safetensors    what held-out pairs are scored by
    directions.safetensors  `directions` (D, D) float32: principal directions of all rows, not centred, the strongest first; `strength` (D,)
    bank.safetensors        of unlabelled pictures: the bank's texts and their rows

Views are stored by number: their dice are (seed, key of the picture, number), so that a student draws the crop that its teacher saw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Licence
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import BundleError, TrainingError
from edgeclip.files import write_file
from edgeclip.models.training.data.stored import StoredFile, unpacked
from edgeclip.models.training.recipe import Augmentation
from edgeclip.models.training.validation import recall_at_1

FORMAT, VERSION = "edgeclip.reinforced", 1
MANIFEST = "reinforced.json"
HELD_OUT, DIRECTIONS, BANK = "held-out.safetensors", "directions.safetensors", "bank.safetensors"
_DIGEST = ',\n "digest": "'

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class TeacherRecord:
    """One teacher of an ensemble."""

    spec: str  # as the user named it
    digest: str  # of its weights, or of its bundle
    dim: int
    scale: float  # factor on its cosines
    parameters: int
    licence: Licence


@dataclass(frozen=True)
class Plan:
    """All that decides what is stored; a folder is gone on with only by the plan that it was begun with."""

    teachers: tuple[TeacherRecord, ...]
    fingerprint: str  # of the data's keys
    pairs: int  # of the data, held-out ones too
    views: int  # of each training picture
    seed: int  # of the views
    augmentation: Augmentation
    templates: tuple[str, ...]
    captions: str  # digest of extra captions; "": none
    bank: str  # digest of the text bank; "": pictures have texts of their own
    validation_share: float
    validation_pairs: int
    pairs_per_shard: int

    @property
    def dim(self) -> int:
        """Width of the stored rows: the teachers' widths one after the other."""
        return sum(teacher.dim for teacher in self.teachers)

    @property
    def scale(self) -> float:
        """Factor on the rows' cosines: the mean of the teachers'."""
        return sum(teacher.scale for teacher in self.teachers) / len(self.teachers)

    def difference(self, other: Plan) -> str:
        """The first setting in which two plans differ, with both values; "" where what they would store is the same."""
        one, two = (
            {**json.loads(json.dumps(asdict(plan))), "teachers": plan._weights} for plan in (self, other)
        )
        name = next((name for name in one if one[name] != two[name]), "")
        return f"{name} = {one[name]!r}, now it is {two[name]!r}" if name else ""

    @property
    def _weights(self) -> list[str]:
        return [teacher.digest for teacher in self.teachers]  # a spec may be a path, and move


@dataclass(frozen=True)
class Manifest:
    """reinforced.json."""

    plan: Plan
    shards: tuple[StoredFile, ...] = ()  # training pairs, in the data's order
    files: tuple[StoredFile, ...] = field(default=())  # the others
    complete: bool = False

    @property
    def unreadable(self) -> int:
        """Pairs that could not be read and are left out."""
        return sum(file.unreadable for file in (*self.shards, *self.files))

    @property
    def identity(self) -> str:
        """What tells one folder's content from another's, wherever it lies and however its teachers are named."""
        told = [
            self.plan.fingerprint,
            *self.plan._weights,
            *(file.sha256 for file in (*self.shards, *self.files)),
        ]
        return _sha256(json.dumps(told))

    @property
    def stored(self) -> int:
        """Training pairs that have rows."""
        return sum(shard.pairs for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Of all files but this one."""
        return sum(file.size for file in (*self.shards, *self.files))

    @property
    def bytes_a_pair(self) -> float:
        """Of the shards, for each training pair."""
        return sum(shard.size for shard in self.shards) / self.stored if self.stored else 0.0

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        told = {
            "bytes_a_pair": round(self.bytes_a_pair, 1),
            "stored": self.stored,
            "size_bytes": self.size_bytes,
        }
        body = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self), "told": told}, indent=1)
        body = body.removesuffix("\n}")
        write_file(folder / MANIFEST, f'{body}{_DIGEST}{_sha256(body)}"\n}}\n')

    def finished(self) -> Manifest:
        """The same, said to be whole."""
        return replace(self, complete=True)


def read_manifest(folder: Path) -> Manifest:
    """Parse and check reinforced.json, whole or begun.

    Raises:
        TrainingError: it is missing, damaged, edited or of another format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        if data.get("version") != VERSION:
            raise ValueError(f"version {data.get('version')!r}, this edgeclip reads {VERSION}")
        if data.get("digest") != _sha256(text.rpartition(_DIGEST)[0]):
            raise ValueError("the content does not match its own digest: it was edited or damaged")
        facts = {name: data[name] for name in ("plan", "shards", "files", "complete")}
        return from_json_value(Manifest, facts, str(path))
    except FileNotFoundError as error:
        raise TrainingError(
            f"teacher_data: {folder} holds no {MANIFEST}. Name the folder that `edgeclip distill` or `reinforce` wrote."
        ) from error
    except (OSError, ValueError, KeyError, BundleError) as error:
        raise TrainingError(
            f"teacher_data: {path} cannot be read ({error}). Reinforce the data again."
        ) from error


def open_reinforced(location: str | Path) -> tuple[Path, Manifest]:
    """A whole folder, its sizes checked; contents are checked when they are first read.

    Raises:
        TrainingError: none is named or there, it is damaged, unfinished, or a file of it is missing or of another size.
    """
    if not str(location):
        raise TrainingError(
            "teacher_data: not set. Name the folder of the teacher's embeddings, e.g. --set teacher_data=student/reinforced."
        )
    folder = Path(location)
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise TrainingError(
            f"teacher_data: {folder} is not finished ({manifest.stored} pairs so far). Run what wrote it again; it goes on from there."
        )
    for file in (*manifest.shards, *manifest.files):
        file.check_size(folder)
    return folder, manifest


def principal(moments: Iterable[NDArray[Any]]) -> tuple[Rows, Rows]:
    """Directions that rows of several kinds use most, every kind with the same weight, not centred.

    Args:
        moments: of each kind, (D, D) its rows' second moments: rows.T @ rows.
    Returns:
        (D, D) orthonormal columns, the strongest first, each with its largest number positive; (D,) strength of each.
    """
    strength, vectors = np.linalg.eigh(sum(moment / np.trace(moment) for moment in moments))
    vectors = vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))])
    return vectors.astype(np.float32), np.maximum(strength[::-1], 0).astype(np.float32)


def projection(folder: Path, manifest: Manifest, width: int) -> Rows | None:
    """What brings the teachers' rows to a student's width: (D, width) orthonormal columns; None where the widths are equal.

    A wider teacher keeps the principal directions of its own rows, so that their cosines change least; a narrower one gets zeros.

    Raises:
        TrainingError: the file is damaged.
    """
    dim = manifest.plan.dim
    if width == dim:
        return None
    if width > dim:
        return np.eye(dim, width, dtype=np.float32)
    found: Rows = _file(manifest, DIRECTIONS).open(folder).get_tensor("directions")[:, :width]
    return np.ascontiguousarray(found)


def kept(folder: Path, manifest: Manifest, width: int) -> float:
    """Share of the rows' squared length that the projection to `width` keeps, 0-1. Raises TrainingError: the file is damaged."""
    strength = _file(manifest, DIRECTIONS).open(folder).get_tensor("strength").astype(np.float64)
    return float(strength[:width].sum() / strength.sum())


def projected(rows: NDArray[Any], columns: Rows | None) -> Rows:
    """(..., D) stored rows -> (..., width) float32 of unit length."""
    found = rows.astype(np.float32) if columns is None else rows.astype(np.float32) @ columns
    unit: Rows = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
    return unit


def held_out(folder: Path, manifest: Manifest) -> tuple[NDArray[np.int64], Rows, Rows, NDArray[np.int64]]:
    """(indices in the data, image rows, text rows, groups) of the held-out pairs; text rows and groups are empty without texts.

    Raises:
        TrainingError: the file is damaged.
    """
    opened = _file(manifest, HELD_OUT).open(folder)
    index, image, text, groups = (opened.get_tensor(name) for name in ("index", "image", "text", "groups"))
    return index, projected(image, None), projected(text, None), groups


def bank(folder: Path, manifest: Manifest) -> tuple[list[str], Rows]:
    """The text bank and its (K, D) rows. Raises TrainingError: the file is damaged."""
    opened = _file(manifest, BANK).open(folder)
    return unpacked(opened.get_tensor("texts"), opened.get_tensor("ends")), projected(
        opened.get_tensor("text"), None
    )


def teacher_score(location: str | Path, pairs: int = 0) -> float | None:
    """What the teachers score on the held-out pairs: retrieval as `validation.retrieval` measures students, from the stored rows.

    Args:
        pairs: only the first so many of them, as a recipe's validation_pairs; 0 = all.
    Returns:
        Mean of both directions' recall at 1, 0-1; None where nothing is held out, or pictures have no texts.
    Raises:
        TrainingError: as `open_reinforced`.
    """
    folder, manifest = open_reinforced(location)
    _, image, text, groups = held_out(folder, manifest)
    if not len(text):
        return None
    some = slice(pairs or None)
    images, texts, same = (torch.from_numpy(rows[some]) for rows in (image, text, groups))
    return (recall_at_1(images, texts, same) + recall_at_1(texts, images, same)) / 2


def _file(manifest: Manifest, name: str) -> StoredFile:
    return next(file for file in manifest.files if file.name == name)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
