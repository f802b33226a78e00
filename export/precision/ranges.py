"""Scales of activations: what flows through a graph on calibration inputs, and the range of bytes that fits it.

One run over the inputs. Lows and highs are exact; percentiles and errors are taken from rows drawn evenly, so that memory stays
bounded whatever the model and the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.export.observe import observe

Array = NDArray[Any]
_MEMORY = 256 << 20  # bytes of all rows that are kept
_ROWS = 1024  # of one value; more change a scale by less than a thousandth
_BINS = 2048
_PERCENTILE = 99.99
_SHRINKS = np.linspace(
    0.2, 1, 41
)  # of the whole range: what the search for the least error tries at each end


@dataclass(frozen=True)
class Seen:
    """One value of a graph on calibration inputs."""

    low: Array  # (K,) of each channel
    high: Array  # (K,)
    rows: Array  # (R, K) float32, drawn evenly
    count: int = 0  # rows that were seen, of which R were kept

    @property
    def peaks(self) -> Array:
        """(K,) the largest absolute value of each channel."""
        peaks: Array = np.maximum(np.abs(self.low), np.abs(self.high))
        return peaks

    def divided(self, by: Array) -> Seen:
        """The same after each channel was divided by a positive number. by: (K,)."""
        return replace(self, low=self.low / by, high=self.high / by, rows=self.rows / by)


@dataclass(frozen=True)
class ByteRange:
    """value = (byte - zero) * scale."""

    scale: np.float32
    zero: Array  # () uint8 or int8: its type is that of the bytes

    def rounded(self, x: Array) -> Array:
        """What is left of x after a byte was made of it, float32."""
        ends = np.iinfo(self.zero.dtype)
        zero = np.float32(self.zero)
        q = np.clip(np.rint(x / self.scale) + zero, ends.min, ends.max)
        rounded: Array = ((q - zero) * self.scale).astype(np.float32)
        return rounded


def see(
    model: ir.Model,
    values: Mapping[str, int],
    inputs: Array,
    *,
    threads: int | None = None,
    counting: Mapping[str, str] | None = None,
) -> dict[str, Seen]:
    """Run the graph on its calibration inputs and keep what scales need.

    Args:
        values: names inside the graph, each with the axis of its channels: -1 around linear layers, 1 around convolutions.
        inputs: (N, ...) for its one input.
        counting: of some values the name of another, (..., Z): a row counts where that is not 0 throughout. See experts.py.
    """
    if not values:
        return {}
    counting = {name: by for name, by in (counting or {}).items() if name in values}
    found: dict[str, Seen] = {}
    draw = np.random.default_rng(0)
    done, first = 0, str(model.graph.outputs[0].name)
    for batch in observe(model, [*values, *counting.values(), first], inputs, threads=threads):
        whole = {
            name: _by_channel(_counted(batch[name], batch.get(counting.get(name, ""))), axis)
            for name, axis in values.items()
        }
        width = sum(array.shape[1] for array in whole.values())
        most = min(_ROWS, max(_MEMORY // (4 * width), 1))
        size = len(batch[first])
        share = -(-most * (done + size) // len(inputs)) - -(-most * done // len(inputs))
        done += size
        for name, array in whole.items():
            kept = array[np.sort(draw.permutation(len(array))[:share])]
            low, high = array.min(axis=0, initial=np.inf), array.max(axis=0, initial=-np.inf)
            part = Seen(low, high, kept, len(array))
            found[name] = joined([found[name], part]) if name in found else part
    return found


def byte_range(seen: Seen, how: str, kind: str) -> ByteRange:
    """The range of bytes for a value.

    Args:
        how: a key of RANGES.
        kind: "uint8": both ends as they are; "int8": symmetric around a zero point of 0.
    """
    return _fit(*RANGES[how](seen, kind), kind)


def _fit(low: float, high: float, kind: str) -> ByteRange:
    low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact: padding and ReLU give it
    if kind == "int8":
        return ByteRange(np.float32(max(-low, high) / 127 or 1), np.array(0, np.int8))
    scale = np.float32((high - low) / 255 or 1)
    return ByteRange(scale, np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8))


def _min_max(seen: Seen, kind: str) -> tuple[float, float]:
    return float(seen.low.min()), float(seen.high.max())


def _percentile(seen: Seen, kind: str) -> tuple[float, float]:
    """Without the outermost ten thousandth at each end. The rows' own, never beyond the ends."""
    low, high = np.percentile(seen.rows, (100 - _PERCENTILE, _PERCENTILE))
    return float(low), float(high)


def _mse(seen: Seen, kind: str) -> tuple[float, float]:
    """The ends with the least squared error: what is clipped beside what is rounded, counted in a histogram."""
    low, high = _min_max(seen, kind)
    if kind == "int8":
        low, high = -max(-low, high), max(-low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    counts, edges = np.histogram(seen.rows, bins=_BINS, range=(low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    lows, highs = low * _SHRINKS[:, None], high * _SHRINKS[:, None]
    below, above = np.maximum(lows - middles, 0), np.maximum(middles - highs, 0)  # (41, bins)
    clipped = (below**2 @ counts)[:, None] + (above**2 @ counts)[None]  # row = low, column = high
    inside = counts.sum() - ((below > 0) @ counts)[:, None] - ((above > 0) @ counts)[None]
    error = clipped + inside * ((highs.T - lows) / 255) ** 2 / 12
    if kind == "int8":
        error = np.where(np.eye(len(error), dtype=bool), error, np.inf)
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    # Rounding counts as even noise above, which it is not where most values lie at one place, as behind a GELU.
    found = float(lows[row, 0]), float(highs[column, 0])
    return min((found, (float(low), float(high))), key=lambda ends: _error(middles, counts, ends, kind))


def _error(values: Array, counts: Array, ends: tuple[float, float], kind: str) -> float:
    """Sum of squares of what rounding takes from values that come up so often."""
    return float(counts @ (_fit(*ends, kind).rounded(values) - values) ** 2)


RANGES: Mapping[str, Callable[[Seen, str], tuple[float, float]]] = {
    "min-max": _min_max,
    "percentile": _percentile,
    "mse": _mse,
}


def _counted(array: Array, by: Array | None) -> Array:
    return array if by is None else array[(by != 0).any(axis=-1)]


def _by_channel(array: Array, axis: int) -> Array:
    array = np.moveaxis(array, axis, -1)
    return array.reshape(-1, array.shape[-1])


def joined(parts: Sequence[Seen]) -> Seen:
    """What was seen of several values with the same channels, or of one in several runs, as one."""
    if len(parts) == 1:
        return parts[0]
    return Seen(
        low=np.min([part.low for part in parts], axis=0),
        high=np.max([part.high for part in parts], axis=0),
        rows=np.concatenate([part.rows for part in parts]),
        count=sum(part.count for part in parts),
    )
