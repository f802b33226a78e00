"""Label packs: labels already turned into vectors, bound to the model that made them.

With a pack a device opens neither the text tower nor the tokenizer. The file is safetensors: `vectors` (P, D), `thresholds` (P,)
where there are any, and the rest as JSON in its metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.files import write_file

FORMAT = "edgeclip.labels"
VERSION = 1
MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LabelPack:
    """Labels and their prompt vectors."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: NDArray[np.float32]  # (P, D), each row of L2 norm 1
    model_id: str  # of the bundle whose text tower wrote it
    variant: str = ""  # that tower's variant
    thresholds: tuple[float, ...] | None = None  # of each label, 0-1: a lower score is no answer

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write the pack, whole or not at all. `half`: vectors as fp16, half the size, cosine within 1e-3."""
        write_file(Path(path), self.to_bytes(half=half))

    def to_bytes(self, *, half: bool = False) -> bytes:
        """The file's content; see `save`."""
        from safetensors.numpy import save

        tensors: dict[str, Any] = {"vectors": self.vectors.astype(np.float16 if half else np.float32)}
        if self.thresholds is not None:
            tensors["thresholds"] = np.asarray(self.thresholds, np.float32)
        facts = {**self.to_dict(), "format": FORMAT, "version": VERSION}
        facts.pop("thresholds")
        content: bytes = save(tensors, {"edgeclip": json.dumps(facts, ensure_ascii=False)})
        return content

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LabelPack:
        """Read a pack. Raises InputError if it is missing, damaged, of a newer version or no pack at all."""
        from safetensors import SafetensorError, safe_open

        try:
            if (size := Path(path).stat().st_size) > MAX_BYTES:
                raise InputError(f"{path}: {size} bytes; a label pack has at most {MAX_BYTES}.")
            with safe_open(path, framework="np") as file:
                facts = json.loads((file.metadata() or {}).get("edgeclip", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"{path}: not a label pack that can be read ({error}). Make it again with `edgeclip labels make`."
            ) from error
        return _parse(facts, tensors, str(path))

    def with_thresholds(self, thresholds: Sequence[float]) -> LabelPack:
        """The same pack with one threshold for each label."""
        if len(thresholds) != len(self.labels):
            raise InputError(
                f"thresholds: expected {len(self.labels)}, one for each label, got {len(thresholds)}."
            )
        return replace(self, thresholds=tuple(float(value) for value in thresholds))

    def require(self, model_id: str, dim: int) -> None:
        """Raise InputError unless the pack was made by this model."""
        if self.model_id != model_id or self.vectors.shape[1] != dim:
            raise InputError(
                f"this label pack was made by model {self.model_id[:12]}..., the bundle is {model_id[:12]}.... "
                "Make it again with `edgeclip labels make` and this bundle."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the vectors."""
        return {
            "labels": list(self.labels),
            "templates": list(self.templates),
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "model_id": self.model_id,
            "variant": self.variant,
            "dim": self.vectors.shape[1],
        }


def _parse(facts: Any, tensors: dict[str, Any], where: str) -> LabelPack:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{where}: not a label pack. Expected a file made by `edgeclip labels make`.")
    if facts.get("version") != VERSION:
        raise InputError(
            f"{where}: label pack version {facts.get('version')}, this edgeclip reads {VERSION}. Install a newer edgeclip."
        )
    labels, templates = _texts(facts.get("labels")), _texts(facts.get("templates"))
    vectors, thresholds = tensors.get("vectors"), tensors.get("thresholds")
    good = (
        len(labels) > 0
        and isinstance(facts.get("model_id"), str)
        and vectors is not None
        and vectors.dtype in (np.float16, np.float32)
        and vectors.shape[:1] == (len(labels),)
        and vectors.ndim == 2
        and (thresholds is None or thresholds.shape == (len(labels),))
    )
    if not good or vectors is None:
        raise InputError(
            f"{where}: a damaged label pack: labels, vectors and thresholds do not match. Make it again."
        )
    rows = vectors.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.abs(norms - 1) < 0.01):  # also catches NaN
        raise InputError(f"{where}: a damaged label pack: its vectors are not of unit length. Make it again.")
    return LabelPack(
        labels=labels,
        templates=templates,
        vectors=rows / norms,
        model_id=facts["model_id"],
        variant=str(facts.get("variant", "")),
        thresholds=None if thresholds is None else tuple(float(value) for value in thresholds),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """A list of strings as a tuple; anything else as none at all."""
    return tuple(value) if isinstance(value, list) and all(isinstance(text, str) for text in value) else ()
