"""Whether a compressed mixture's tokens still take the experts that they took in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.export.observe import observe
from edgeclip.export.precision.experts import routing

Array = NDArray[Any]
INPUTS = 32  # at most; 32 pictures of 197 tokens are 6,000 choices a block


def routing_agreement(
    before: ir.Model, after: ir.Model, inputs: Array, *, threads: int | None = None
) -> float | None:
    """Share of the tokens' choices in all mixtures that are the same, 0-1; padding of texts is counted, too. None: no mixtures.

    Args:
        before, after: a graph with mixtures and what was made of it.
        inputs: (N, ...) for their one input.
    """
    same = every = 0
    few = inputs[:INPUTS]
    pairs = zip(_shares(before, few, threads), _shares(after, few, threads), strict=True)
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            same += int(((a > 0) & (b > 0)).sum())
            every += int((a > 0).sum())
    return same / every if every else None


def _shares(model: ir.Model, inputs: Array, threads: int | None) -> Iterator[list[Array]]:
    """(n, T, E) of each mixture, one input a time: what `observe` runs at once depends on the graph."""
    own = routing(model)
    names = [str(node.outputs[0].name) for node in model.graph if node in own and node.op_type == "Softmax"]
    for batch in observe(model, names, inputs, threads=threads):
        shares = [batch[name] for name in names]
        for i in range(len(shares[0])):
            yield [np.asarray(share[i : i + 1]) for share in shares]
