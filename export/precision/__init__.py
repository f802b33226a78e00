"""Lower precisions as typed ONNX: what a graph computes in stands in the graph, so that every engine does the same.

    converted = convert(model, "int8", Request(inputs=pixels))

A method is one file with `apply(model, request) -> list[PassReport]`, which rewrites the graph in place, and one line in METHODS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.export.passes import PassReport, number_nodes, remove_unused

if TYPE_CHECKING:
    from edgeclip.export.precision.finished import Finished

Precision = Literal["fp16", "bf16", "int8", "int4", "fp8"]
Activations = Literal["float", "static", "dynamic"]
Ranges = Literal["min-max", "percentile", "mse"]
ByteType = Literal["uint8", "int8"]


@dataclass(frozen=True)
class Method:
    """One way to lower a graph's precision."""

    precision: Precision
    activations: Activations
    module: str
    calibrated: bool  # needs Request.inputs
    opset: int  # the lowest that has its operators and types; a graph below it is raised
    onnxruntime: str = "1.23"  # the oldest that was seen to run it


METHODS: Mapping[str, Method] = {
    "fp16": Method("fp16", "float", "edgeclip.export.precision.fp16", True, 18),
    "bf16": Method("bf16", "float", "edgeclip.export.precision.bf16", True, 18),
    "int8": Method("int8", "static", "edgeclip.export.precision.int8_static", True, 18),
    "int8-dynamic": Method("int8", "dynamic", "edgeclip.export.precision.int8_dynamic", False, 18),
    "fp8": Method("fp8", "static", "edgeclip.export.precision.fp8", True, 20, "1.32"),
    "int4": Method("int4", "float", "edgeclip.export.precision.int4", False, 21),
}


@dataclass(frozen=True)
class Request:
    """Everything that a method may be told. What one does not need it ignores."""

    inputs: NDArray[Any] | None = None  # (N, ...) calibration inputs of the graph
    layers: frozenset[str] | None = None  # names (linears.Linear.name) to convert; None: all that it can
    saturating: bool = True  # products of unsigned and signed bytes may on the target, see runtime/cpu.py
    ranges: Ranges = "mse"  # how a scale follows from what was observed
    # SmoothQuant's alpha, how much of the activations' spread moves into the weights: None: searched layer by layer; 0: none
    smoothing: float | None = None
    activations: ByteType = "uint8"  # int8 with zero point 0 is what TensorRT reads; CPUs take either
    fewest: int = 32  # tokens of the inputs that an expert of a mixture must have taken to be quantised
    threads: int | None = None  # of the engine that observes
    # int8 of a student that was trained for it: by layer; no other layer is converted, and nothing is searched. See finished.py
    finished: Mapping[str, Finished] | None = None


@dataclass(frozen=True)
class Converted:
    """A graph in another precision."""

    model: ir.Model
    method: Method
    reports: tuple[PassReport, ...]


def convert(model: ir.Model, method: str, request: Request) -> Converted:
    """A copy of a graph in another precision.

    Raises:
        InputError: no such method, or one that needs calibration inputs and got none.
    """
    if method not in METHODS:
        raise InputError(f"precision {method!r}: unknown. Choose from {', '.join(METHODS)}.")
    chosen = METHODS[method]
    if request.finished is not None and method != "int8":
        raise InputError(
            f"precision {method}: the student was finished for int8. Pass --precision int8, or no --ranges."
        )
    if chosen.calibrated and request.finished is None and (request.inputs is None or not len(request.inputs)):
        raise InputError(f"precision {method}: needs calibration inputs, got none. Pass --images.")
    copy = model.clone()
    if copy.opset_imports[""] < chosen.opset:
        copy.opset_imports[""] = chosen.opset
    reports = import_module(chosen.module).apply(copy, request)
    return Converted(copy, chosen, (*reports, remove_unused(copy), number_nodes(copy)))
