"""Who a student learns from: sources in PyTorch, bundles in their engine, or several of both at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional as F

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.bundle.manifest import Preprocessing
from edgeclip.bundle.store import MANIFEST
from edgeclip.errors import BundleError, InputError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.distributed import pick_device
from edgeclip.models.training.reinforced import TeacherRecord
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.model import Model, load
from edgeclip.runtime.text import TextEncoder

# A bundle's variant is chosen by the bundle's order, among these engines: their results are the same on every machine of a kind.
ENGINES = ("onnxruntime-cpu",)
AT_ONCE = 32  # rows in one call

Vectors = NDArray[np.float32]
View = NDArray[np.float32]  # (3, H, W), normalised


class Teacher(Protocol):
    """One model, whatever runs it."""

    record: TeacherRecord
    spec: Preprocessing  # of the views that it takes

    def images(self, views: NDArray[np.float32]) -> Vectors:
        """(N, 3, H, W) normalised -> (N, D) of unit length."""
        ...

    def texts(self, texts: Sequence[str]) -> Vectors:
        """N texts -> (N, D) of unit length."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class SourceTeacher:
    """A source, run by PyTorch in fp32."""

    def __init__(self, source: Source, device: torch.device) -> None:
        if source.preprocessing is None or source.text is None:
            raise InputError(f"{source.spec}: a teacher needs an image tower and a text tower.")
        self._model: DualEncoder = source.model.to(device).eval()
        self._device = device
        self._text = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
        self.spec = source.preprocessing
        self.record = TeacherRecord(
            source.spec,
            source.digest or _weights_digest(source),
            source.embedding_dim,
            float(source.model.logit_scale.detach().exp()),
            sum(parameter.numel() for parameter in source.model.parameters()),
            source.licence,
        )

    @property
    def model(self) -> DualEncoder:
        """What runs."""
        return self._model

    def images(self, views: NDArray[np.float32]) -> Vectors:
        """(N, 3, H, W) -> (N, D)."""
        return self._rows(self._model.encode_image, torch.from_numpy(views))

    def texts(self, texts: Sequence[str]) -> Vectors:
        """N texts -> (N, D)."""
        return self._rows(
            self._model.encode_text, torch.from_numpy(self._text.encode(texts).input_ids).long()
        )

    def close(self) -> None:
        """Back to the CPU, so that a GPU's memory is free for the student."""
        self._model.cpu()

    @torch.no_grad()
    def _rows(self, encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> Vectors:
        if not len(inputs):
            return np.empty((0, self.record.dim), np.float32)
        parts = [
            F.normalize(encode(part.to(self._device)).float(), dim=-1).cpu().numpy()
            for part in torch.split(inputs, AT_ONCE)
        ]
        return np.concatenate(parts)


class BundleTeacher:
    """A bundle, run by ONNX Runtime as it would be served."""

    def __init__(self, bundle: Bundle, spec: str) -> None:
        facts = bundle.manifest
        if facts.preprocessing is None or not all(facts.variants_of(tower) for tower in ("image", "text")):
            raise InputError(
                f"{spec}: a teacher needs an image tower and a text tower, both giving embeddings."
            )
        self._model: Model = load(bundle, ENGINES)
        self._model.keep_texts(0)
        self.spec = facts.preprocessing
        self.record = TeacherRecord(
            spec,
            bundle.digest,
            facts.embedding_dim,
            facts.logit_scale,
            bundle_parameters(bundle),
            facts.licence,
        )

    def images(self, views: NDArray[np.float32]) -> Vectors:
        """(N, 3, H, W) -> (N, D)."""
        if not len(views):
            return np.empty((0, self.record.dim), np.float32)
        tower = next(t for t in self._model.towers if t.name == "image")
        with tower.lease() as engine:
            takes_bytes = engine.variant.axes.input == "uint8"
        pixels = np.stack([bytes_of(view, self.spec) for view in views]) if takes_bytes else views
        return _unit(self._model.embed_pixels(pixels, batch_size=AT_ONCE))

    def texts(self, texts: Sequence[str]) -> Vectors:
        """N texts -> (N, D)."""
        return _unit(self._model.embed_texts(list(texts)))

    def close(self) -> None:
        """Close the engines."""
        self._model.close()


@dataclass(frozen=True)
class Teachers:
    """One teacher or several as one: their unit rows stand side by side, so that a cosine is the mean of the members' cosines."""

    members: tuple[Teacher, ...]

    def __enter__(self) -> Teachers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def records(self) -> tuple[TeacherRecord, ...]:
        """What is known of each member."""
        return tuple(member.record for member in self.members)

    @property
    def dim(self) -> int:
        """Width D of the rows: the members' together."""
        return sum(record.dim for record in self.records)

    @property
    def scale(self) -> float:
        """Factor on the rows' cosines: the mean of the members'."""
        return sum(record.scale for record in self.records) / len(self.records)

    @property
    def parameters(self) -> int:
        """Of all members."""
        return sum(record.parameters for record in self.records)

    @property
    def digest(self) -> str:
        """SHA-256 over the members' digests, in their order."""
        return hashlib.sha256(json.dumps([record.digest for record in self.records]).encode()).hexdigest()

    @property
    def specs(self) -> tuple[Preprocessing, ...]:
        """Different preprocessings of the members: a view is made once for each."""
        return tuple(dict.fromkeys(member.spec for member in self.members))

    def images(self, views: Sequence[NDArray[np.float32]]) -> Vectors:
        """Embed the same pictures as each member sees them.

        Args:
            views: for each of `specs`, (N, 3, H, W) float32 normalised.
        Returns:
            (N, D) of unit length.
        """
        by_spec = dict(zip(self.specs, views, strict=True))
        return side_by_side([member.images(by_spec[member.spec]) for member in self.members])

    def texts(self, texts: Sequence[str]) -> Vectors:
        """N texts, each member with its own tokenizer -> (N, D) of unit length."""
        return side_by_side([member.texts(texts) for member in self.members])

    def close(self) -> None:
        """Free what the members hold."""
        for member in self.members:
            member.close()


def side_by_side(rows: Sequence[Vectors]) -> Vectors:
    """(N, D_1), (N, D_2), ... of unit length -> (N, D_1 + D_2 + ...) of unit length, whose cosines are the mean of the members'."""
    joined: Vectors = np.concatenate(rows, axis=1) / np.float32(np.sqrt(len(rows)))
    return joined


def open_teachers(specs: Sequence[str], *, device: str = "auto", allow_pickle: bool = False) -> Teachers:
    """Open sources and bundles.

    Args:
        specs: of each, what `edgeclip export` takes, a bundle's folder or .zip, or bundle:NAME for an embedded bundle or one of the
            Hub (bundle:hf:ORG/NAME).
        device: of sources: auto, cpu, cuda, cuda:1. Bundles run in ONNX Runtime on the CPU.
        allow_pickle: read .bin and .pt weights too.
    Raises:
        InputError: none is named, one twice, or one lacks a tower.
        SourceError, BundleError: one is missing or damaged.
        TrainingError: no such device.
    """
    if not specs:
        raise InputError(
            "teacher: none is named. Name a source or a bundle, e.g. hf:openai/clip-vit-base-patch32."
        )
    where = pick_device(device)
    with contextlib.ExitStack() as stack:
        members = []
        for spec in specs:
            members.append(_open(spec, where, allow_pickle))
            stack.callback(members[-1].close)
        digests = [member.record.digest for member in members]
        for i, digest in enumerate(digests):
            if digest in digests[:i]:
                raise InputError(
                    f"teacher: {specs[i]} has the weights of {specs[digests.index(digest)]}. Name each once."
                )
        stack.pop_all()
    return Teachers(tuple(members))


def is_bundle(spec: str) -> bool:
    """Whether `open_teachers` opens this as a bundle."""
    path = Path(spec).expanduser()
    return (
        spec.startswith("bundle:")
        or (path.is_file() and path.suffix == ".zip")
        or (path / MANIFEST).is_file()
    )


def bundle_parameters(bundle: Bundle) -> int:
    """Numbers that the first image and text variant hold in their graphs; integers of shapes and of quantisation are few."""
    import onnx

    total = 0
    for tower in ("image", "text"):
        graph = bundle.path(bundle.manifest.variants_of(tower)[0].files[0])
        try:
            held = onnx.load(str(graph), load_external_data=False).graph.initializer
        except Exception as error:  # protobuf raises its own
            raise BundleError(
                f"{graph}: no graph that can be read ({error}). Export or pull the bundle again."
            ) from error
        total += sum(int(np.prod(one.dims)) for one in held if one.data_type != onnx.TensorProto.INT64)
    return total


def _open(spec: str, device: torch.device, allow_pickle: bool) -> Teacher:
    if is_bundle(spec):
        return BundleTeacher(open_bundle(spec.removeprefix("bundle:")), spec)
    return SourceTeacher(load_source(spec, allow_pickle=allow_pickle), device)


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12).astype(np.float32)
    return unit


def _weights_digest(source: Source) -> str:
    """Of a source that was made here and has no file."""
    found = hashlib.sha256()
    for name, value in _values(source):
        found.update(name.encode() + value.tobytes())
    return found.hexdigest()


def _values(source: Source) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, value in sorted(source.model.state_dict().items()):
        yield name, value.detach().cpu().float().numpy()
