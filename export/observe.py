"""What flows through a graph: ranges of activations on calibration inputs, collected on the engine that devices use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeclip.runtime.threads import usable_cores

Array = NDArray[Any]
_CHUNK = 8  # inputs a call, at most
_TOKENS = 4800  # a call, at most: attention over the 3,600 of a detector takes 1 GB a picture
_MEMORY = 256 << 20  # bytes of what is observed in one call: 24 blocks at 577 tokens give 400 MB an input


def session(model: ir.Model, *, threads: int | None = None, byte_kernels: bool = True) -> Any:
    """An onnxruntime session of a graph in memory; its weights are written to a folder that is gone again.

    Args:
        byte_kernels: let products of bytes be summed as this processor does; False: in floats, where nothing saturates.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "0" if byte_kernels else "1")
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="graph.bin")  # a copy: the tensors of `model` stay where they are
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def at_once(model: ir.Model) -> int:
    """Inputs a call, at most."""
    outputs = model.graph.outputs
    regions = outputs[0].shape[1] if len(outputs) > 1 and outputs[0].shape is not None else 1
    return max(1, min(_CHUNK, _TOKENS // regions)) if isinstance(regions, int) else _CHUNK


def rows(model: ir.Model, inputs: Array, *, threads: int | None = None, batch: int = _CHUNK) -> Array:
    """(N, D): the graph's first output on its first input."""
    return outputs_of(model, inputs, threads=threads, batch=batch)[0]


def outputs_of(
    model: ir.Model, inputs: Array, *, threads: int | None = None, batch: int = _CHUNK
) -> list[Array]:
    """Every output of a graph on its first input, a few inputs a call, `batch` at most."""
    opened, batch = session(model, threads=threads), min(batch, at_once(model))
    name = opened.get_inputs()[0].name
    parts = [opened.run(None, {name: inputs[i : i + batch]}) for i in range(0, len(inputs), batch)]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def observe(
    model: ir.Model, names: Sequence[str], inputs: Array, *, threads: int | None = None
) -> Iterator[Mapping[str, Array]]:
    """Run a graph and yield, for each few inputs, the named values: name -> array as the graph computes it.

    Args:
        names: of values inside the graph; the model itself is left as it was.
        inputs: (N, ...) for its one input.
    """
    if not names:
        return
    copy = model.clone()
    inner = {value.name: value for node in copy.graph for value in node.outputs}
    wanted = list(dict.fromkeys(names))
    ours = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(inner[name] for name in wanted if name not in ours)
    opened = session(copy, threads=threads)
    feed = opened.get_inputs()[0].name
    start, size = 0, 1  # the first alone, to see how large it is
    while start < len(inputs):
        found = opened.run(wanted, {feed: inputs[start : start + size]})
        start += size
        each = max(sum(array.nbytes for array in found) // size, 1)
        size = min(max(_MEMORY // each, 1), at_once(model))
        yield dict(zip(wanted, found, strict=True))


def reduce_over(
    batches: Iterator[Mapping[str, Array]],
    of: Callable[[Array], Array],
    join: Callable[[Array, Array], Array],
) -> dict[str, Array]:
    """Fold what `observe` yields into one array a name, e.g. the largest absolute value of each channel."""
    found: dict[str, Array] = {}
    for batch in batches:
        for name, array in batch.items():
            part = of(array)
            found[name] = join(found[name], part) if name in found else part
    return found


def channel_peaks(array: Array) -> Array:
    """(..., K) -> (K,): the largest absolute value of each channel."""
    peaks: Array = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
    return peaks
