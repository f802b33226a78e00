"""bfloat16: fp32's range with 8 bits of mantissa. onnxruntime's CPU engine has hardly a kernel for it; the report says so."""

from __future__ import annotations

import onnx_ir as ir

from edgeclip.export.passes import PassReport
from edgeclip.export.precision import Request
from edgeclip.export.precision.islands import BF16, lower


def apply(model: ir.Model, request: Request) -> list[PassReport]:
    """Move the graph to bf16 in place. Raises CheckFailed where its output is not finite."""
    return lower(model, request, BF16)
