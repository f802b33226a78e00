"""Half precision: 11 bits of mantissa, |x| up to 65,504. Values beyond it stay in fp32, see `islands`."""

from __future__ import annotations

import onnx_ir as ir

from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.islands import FP16, lower


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Move the graph to fp16 in place. Raises CheckFailed where its output is not finite."""
    return lower(model, request, FP16)
