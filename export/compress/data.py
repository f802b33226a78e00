"""The user's pictures, texts and labels, and the two halves that they are split into."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Preprocessing
from edgeclip.errors import InputError
from edgeclip.export.compress.figures import Half
from edgeclip.export.samples import SUFFIXES, TEXTS, encode, made_up_pictures, texts_in
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.prompts import check_labels

Array = NDArray[Any]
log = logging.getLogger(__name__)

MIN_SAMPLES = 8  # four to calibrate on, four held out
MAX_PICTURES = 256  # evenly spread over the folder; 154 MB of pixels at 224
# Of a detector so many that they give as many regions, but these at least: at 840 pixels one takes 8.5 MB, and 2.6 TFLOP in ViT-L.
MAX_REGIONS, MIN_PICTURES = 20_000, 16


@dataclass(frozen=True)
class Labels:
    """What the top-1 figure is about."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    given: bool  # by the user; False: built-in texts stand in

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every label in every template, label by label."""
        return tuple(t.replace("{}", name) for name in self.names for t in self.templates)

    def ensemble(self, rows: Array) -> Array:
        """(P * T, D) rows of the prompts -> (P, D) unit rows."""
        means = rows.reshape(len(self.names), len(self.templates), -1).astype(np.float64).mean(axis=1)
        unit: Array = means / np.linalg.norm(means, axis=1, keepdims=True)
        return unit


@dataclass(frozen=True)
class Data:
    """Everything that is measured on."""

    pixels: Mapping[
        str, Array
    ]  # "float32": (N, 3, H, W), "uint8": (N, H, W, 3), as far as a variant takes them
    truth: Array | None  # (N,) label number of each picture
    input_ids: Array | None  # (M, L): texts, then the label prompts
    texts: int  # how many of them are texts
    labels: Labels | None
    source: str  # of the pictures, for the report
    detector: Mapping[str, Array] = field(default_factory=dict)  # its pixels, by dtype as above

    @property
    def made_up(self) -> bool:
        """No pictures were given: the figures say little of real ones."""
        return self.source == ""


def halves(count: int) -> dict[Half, Array]:
    """Every other sample to each half: pictures of one folder, or one day, land in both."""
    return {"calibration": np.arange(0, count, 2), "held_out": np.arange(1, count, 2)}


def read_data(
    bundle: Bundle,
    *,
    images: Path | None,
    texts: Path | None,
    labels: Sequence[str],
    labels_from: Path | None,
) -> Data:
    """Read and prepare them.

    Args:
        images: folder of pictures; None: `labels_from`, else made-up ones.
        texts: file of texts, one a line; None: built-in ones.
        labels: for the top-1 figure; none: the class folders' names, else the texts stand in.
        labels_from: folder that holds one folder of pictures for each label.
    Raises:
        InputError: a folder or file that cannot be used, or too few samples.
    """
    manifest = bundle.manifest
    if labels_from is not None and (images is not None or labels):
        raise InputError(
            "--labels-from: brings pictures and labels of its own; drop --images and --labels, or drop it."
        )
    if (labels or labels_from) and manifest.text is None:
        raise InputError(f"{bundle.root}: has no text tower, so that labels mean nothing to it. Drop them.")
    if images is not None and manifest.preprocessing is None:
        raise InputError(f"{bundle.root}: has no image tower. Drop --images.")
    pixels: Mapping[str, Array] = {}
    regions: Mapping[str, Array] = {}
    truth: Array | None = None
    if manifest.preprocessing is not None:
        paths, classes, labels = _pictures(images, labels_from, labels)
        if manifest.variants_of("image"):
            pixels, kept = _pixels(paths, manifest.preprocessing, _kinds(bundle, "image"))
            truth = classes[kept] if classes is not None else None
        if detectors := manifest.variants_of("detector"):
            count = detectors[0].outputs[0].shape[1]
            assert isinstance(count, int), "a detector's regions are a fixed grid"
            spec = manifest.preprocessing_of("detector")
            assert spec is not None
            few = _spread(paths, max(MIN_PICTURES, MAX_REGIONS // count))
            regions, _ = _pixels(few, spec, _kinds(bundle, "detector"))
    input_ids, count, wanted = None, 0, None
    if manifest.text is not None:
        lines = texts_in(texts) if texts else TEXTS
        _enough(len(lines), f"--texts {texts}", "texts")
        wanted = (
            Labels(check_labels(labels), manifest.templates, True)
            if labels
            else Labels(lines, ("{}",), False)
        )
        every = [*lines, *(wanted.prompts if wanted.given else ())]
        input_ids = encode(every, bundle.path(manifest.text.tokenizer), manifest.text).input_ids
        count = len(lines)
    return Data(pixels, truth, input_ids, count, wanted, str(images or labels_from or ""), regions)


def _kinds(bundle: Bundle, tower: str) -> set[str]:
    return {variant.inputs[0].dtype for variant in bundle.manifest.variants_of(tower)}


def _pictures(
    images: Path | None, labels_from: Path | None, labels: Sequence[str]
) -> tuple[list[Any], Array | None, Sequence[str]]:
    """-> (pictures, label numbers or None, labels)."""
    if labels_from is not None:
        folders = sorted(path for path in _folder(labels_from, "--labels-from").iterdir() if path.is_dir())
        found = [(path, i) for i, folder in enumerate(folders) for path in _below(folder)]
        if len(folders) < 2 or not found:
            raise InputError(
                f"--labels-from {labels_from}: expected a folder of pictures for each of at least 2 labels, "
                f"found {len(folders)} folders with {len(found)} pictures."
            )
        found = _spread(found)
        return [path for path, _ in found], np.array([i for _, i in found]), [f.name for f in folders]
    if images is not None:
        return _spread(_below(_folder(images, "--images"))), None, labels
    return made_up_pictures(), None, labels


def _folder(path: Path, option: str) -> Path:
    if not path.is_dir():
        raise InputError(f"{option} {path}: no such folder.")
    return path


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _spread(found: list[Any], most: int = MAX_PICTURES) -> list[Any]:
    count = min(len(found), most)
    return [found[i * len(found) // count] for i in range(count)]


def _pixels(
    pictures: Sequence[Any], spec: Preprocessing, kinds: set[str]
) -> tuple[dict[str, Array], list[int]]:
    """Inputs by dtype, and which pictures they are: one that cannot be used, or was there already, is left out."""
    preprocessor = Preprocessor(spec, decode="exact")
    found: dict[str, list[Array]] = {kind: [] for kind in kinds | {"float32"}}
    kept: list[int] = []
    seen: set[bytes] = set()  # a picture that is there twice would stand in both halves
    for i, picture in enumerate(pictures):
        row = np.empty((3, *spec.size), np.float32)
        try:
            preprocessor.into(picture, row)
        except InputError as error:
            log.warning("left out: %s", error)
            continue
        if (digest := hashlib.sha256(row.tobytes()).digest()) in seen:
            continue
        seen.add(digest)
        kept.append(i)
        found["float32"].append(row)
        if "uint8" in found:
            found["uint8"].append(preprocessor.uint8(picture))
    _enough(len(kept), "--images", "different usable pictures")
    return {kind: np.stack(rows) for kind, rows in found.items()}, kept


def _enough(count: int, where: str, what: str) -> None:
    if count < MIN_SAMPLES:
        raise InputError(
            f"{where}: at least {MIN_SAMPLES} {what} are needed (half to calibrate on, half held out), found {count}."
        )
