"""Embeddings made small for retrieval: truncated, fp16, int8 and 1-bit codes, fitted to a model's own vectors.

    codecs = model.codecs
    codes = codecs["bits"].encode(vectors)                       # (N, D / 8) uint8
    finer = codecs["int8"].encode(vectors)
    rows, scores = codecs["bits"].search(queries, 10, codes, rescore=(codecs["int8"], finer))

Ranking by cosine lets a mean be taken off the stored vectors: for one query it moves every score by the same amount. Pictures and
texts have means far apart (the modality gap), so each kind has its own. `fit.py` fits and measures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.files import write_file
from edgeclip.runtime.codecs.kinds import Bits, Codec, Half, Int8, Kind, Truncated, Vectors

FORMAT, VERSION = "edgeclip.codecs", 1
MAX_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Codecs:
    """Every codec that was fitted to one model. A bundle carries them as one file."""

    model_id: str  # of the model whose vectors they were fitted to
    dim: int
    cut: Mapping[int, bool]  # widths of the truncated codecs -> whether they are rotated first
    # "<kind>.mean", ".scale", ".spread" (D,), and where they earned their place "rotation" (d, D), "bits.rotation" (D, D)
    tensors: Mapping[str, Vectors]
    measured: Mapping[str, Any] = field(default_factory=dict)  # as fit.measure gives it

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for, largest first."""
        return ("fp16", *(f"d{width}" for width in sorted(self.cut, reverse=True)), "int8", "bits")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the fit saw."""
        return tuple(kind for kind in ("image", "text") if f"{kind}.mean" in self.tensors)

    def __getitem__(self, name: str) -> Codec:
        return self.codec(name)

    def codec(self, name: str, stored: Kind | None = None) -> Codec:
        """One codec.

        Args:
            name: of `names`.
            stored: what its codes are made from; None: pictures, or texts where no picture was fitted.
        Raises:
            InputError: no such codec, or int8 or bits of a kind that was not fitted.
        """
        kind = stored or self.kinds[0]
        if name not in self.names:
            raise InputError(f"codec {name!r}: not in this bundle. Choose from {', '.join(self.names)}.")
        if name == "fp16":
            return Half(name, self.dim)
        if name.startswith("d"):
            width = int(name[1:])
            return Truncated(
                name, self.dim, self.tensors["rotation"][:width] if self.cut[width] else None, width
            )
        if kind not in self.kinds:
            raise InputError(
                f"codec {name}: was fitted without vectors of kind {kind!r}. Fit it again with them."
            )
        if name == "int8":
            return Int8(name, self.dim, self.tensors[f"{kind}.mean"], self.tensors[f"{kind}.scale"])
        means = {each: self.tensors[f"{each}.mean"] for each in self.kinds}
        spread, rotation = self.tensors[f"{kind}.spread"], self.tensors.get("bits.rotation")
        return Bits(name, self.dim, means, kind, spread, rotation)

    def require(self, model_id: str, dim: int) -> None:
        """Raise InputError unless they were fitted to this model."""
        if self.model_id != model_id or self.dim != dim:
            raise InputError(
                f"these codecs were fitted to model {self.model_id[:12]}... (width {self.dim}), the bundle is {model_id[:12]}... "
                f"(width {dim}). Fit them again with `edgeclip codecs` and this bundle."
            )

    def to_bytes(self) -> bytes:
        """The file: safetensors, with the rest as JSON in its metadata."""
        from safetensors.numpy import save

        facts = {
            "format": FORMAT,
            "version": VERSION,
            "model_id": self.model_id,
            "dim": self.dim,
            "cut": {str(width): rotated for width, rotated in self.cut.items()},
            "measured": dict(self.measured),
        }
        tensors = {
            name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()
        }  # as save takes them
        content: bytes = save(tensors, {"edgeclip": json.dumps(facts)})
        return content

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        write_file(Path(path), self.to_bytes())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Codecs:
        """Read the file. Raises InputError if it is missing, damaged, of a newer version or none at all."""
        from safetensors import SafetensorError, safe_open

        try:
            if (size := Path(path).stat().st_size) > MAX_BYTES:
                raise InputError(f"{path}: {size} bytes; a file of codecs has at most {MAX_BYTES}.")
            with safe_open(path, framework="np") as file:
                facts = json.loads((file.metadata() or {}).get("edgeclip", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"{path}: not a file of codecs that can be read ({error}). Make it with `edgeclip codecs`."
            ) from error
        return _parse(facts, tensors, str(path))


def _parse(facts: Any, tensors: dict[str, Any], where: str) -> Codecs:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{where}: not a file of codecs. Expected one made by `edgeclip codecs`.")
    if facts.get("version") != VERSION:
        raise InputError(
            f"{where}: codecs of version {facts.get('version')}, this edgeclip reads {VERSION}. Install a newer edgeclip."
        )
    try:
        dim, cut = int(facts["dim"]), {int(width): bool(rotated) for width, rotated in facts["cut"].items()}
        found = Codecs(str(facts["model_id"]), dim, cut, tensors, dict(facts["measured"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: damaged codecs ({error!r}). Make them again with `edgeclip codecs`."
        ) from error
    wanted: dict[str, tuple[int, ...]] = {
        f"{kind}.{part}": (dim,) for kind in found.kinds for part in ("mean", "scale", "spread")
    }
    if any(cut.values()):
        wanted["rotation"] = (max(width for width, rotated in cut.items() if rotated), dim)
    if "bits.rotation" in tensors:
        wanted["bits.rotation"] = (dim, dim)
    good = bool(found.kinds) and set(tensors) == set(wanted) and all(0 < width < dim for width in cut)
    if not good or not all(_usable(name, tensors[name], shape) for name, shape in wanted.items()):
        raise InputError(
            f"{where}: damaged codecs: tensors and facts do not match. Make them again with `edgeclip codecs`."
        )
    return found


def _usable(name: str, tensor: Any, shape: tuple[int, ...]) -> bool:
    good = tensor.dtype == np.float32 and tensor.shape == shape and bool(np.isfinite(tensor).all())
    return good and not (name.endswith(".scale") and bool((tensor <= 0).any()))
