"""Large tensors of a tower, stored once beside its graphs: <tower>-<hash>.bin, shared by every flavour, and by every tower of pictures.

onnxruntime maps the file into memory and refuses paths that leave the graph's folder, so it lies in that folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

PIXELS = ("image", "detector", "tokens")  # towers that take pictures, and may have layers in common
ALIGNMENT = 4096  # bytes; a memory page
MIN_BYTES = 1024  # of a tensor that moves out of the graph
EMBED_BELOW = 8 << 20  # bytes of all its graphs' weights: such a tower keeps them in its graph files


@dataclass
class Kept:
    """Large tensors of the graphs so far, each in memory once, however many graphs were traced from it."""

    first: dict[bytes, ir.TensorProtocol] = field(default_factory=dict)  # by SHA-256 of its bytes

    def take(self, model: ir.Model) -> None:
        """Let a graph's tensors be those of the graphs before it, where they are equal in bytes and shape."""
        for value, tensor in _large(model):
            kind = f"{tensor.dtype}{tensor.shape}".encode()
            value.const_value = self.first.setdefault(
                hashlib.sha256(kind + tensor.tobytes()).digest(), tensor
            )


def save_graphs(
    models: Sequence[tuple[str, ir.Model]], folder: Path, stem: str, share: bool = False
) -> dict[str, tuple[str, ...]]:
    """Write the flavours of one tower, or of several that have tensors in common.

    Args:
        models: (variant id, graph). The graphs' tensors are replaced by references into the shared file.
        folder: where `<id>.onnx` and the shared file go.
        stem: first part of the shared file's name, e.g. "image".
        share: however small the tensors are together: they are those of several towers.
    Returns:
        variant id -> file names, the graph first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared: tuple[str, ...] = ()
    if share or sum(tensor.nbytes for _, model in models for _, tensor in _large(model)) >= EMBED_BELOW:
        shared = (_share([pair for _, model in models for pair in _large(model)], folder, stem),)
    for name, model in models:
        ir.save(model, folder / f"{name}.onnx")
    return {name: (f"{name}.onnx", *shared) for name, _ in models}


def _large(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes >= MIN_BYTES:
            yield value, value.const_value


def _share(tensors: Sequence[tuple[ir.Value, ir.TensorProtocol]], folder: Path, stem: str) -> str:
    """Write each different tensor once and point every value at its place. -> the file's name."""
    places: dict[bytes, tuple[int, int]] = {}  # SHA-256 of a tensor's bytes -> offset, length
    keys, known = [], dict[int, bytes]()  # a tensor that graphs have in common is read once
    scratch = folder / f".{stem}.bin"
    with scratch.open("wb") as stream:
        for _, tensor in tensors:
            if id(tensor) in known:
                keys.append(known[id(tensor)])
                continue
            raw = tensor.tobytes()
            key = hashlib.sha256(raw).digest()
            if key not in places:
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                places[key] = (stream.tell(), len(raw))
                stream.write(raw)
            keys.append(key)
            known[id(tensor)] = key
    name = f"{stem}-{hashlib.sha256(b''.join(places)).hexdigest()[:12]}.bin"
    scratch.replace(folder / name)
    for (value, tensor), key in zip(tensors, keys, strict=True):
        value.const_value = ir.ExternalTensor(
            name,
            *places[key],
            tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape),
            name=str(value.name),
            base_dir=folder,
        )
    return name
