"""From a tower to checked ONNX graphs: torch.onnx.export once, then passes and checks for each flavour."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch

from edgeclip.bundle import Port
from edgeclip.errors import CheckFailed
from edgeclip.export.attention import fuse_attention
from edgeclip.export.passes import PASSES, Pass, PassReport
from edgeclip.export.targets import PORTABLE, Flavour
from edgeclip.export.towers import TracedTower

_RANGES = {name: torch.export.Dim(name, min=1, max=1 << 16) for name in ("N", "R", "P", "B")}
# What a graph must not hold, unless its tower expects so many: a norm taken apart loses its fp32 accumulation, a
# BatchNormalization was left unfolded.
_FORBIDDEN = (
    "ReduceMean",
    "Pow",
    "BatchNormalization",
    "Dropout",
    "IsNaN",
    "Loop",
    "If",
    "Scan",
    "NonMaxSuppression",
)
_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "int32": ir.DataType.INT32,
    "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}


def trace(
    tower: TracedTower, flavour: Flavour, extra: tuple[Pass, ...] = ()
) -> tuple[ir.Model, list[PassReport]]:
    """Trace a tower and write it in one flavour; `capture` and `write` in one."""
    return write(capture(tower), tower, flavour, extra)


def capture(tower: TracedTower) -> ir.Model:
    """The graph as torch.onnx.export gives it, in the portable form. This is what takes the time; every flavour is written from it."""
    with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore")
        log = logging.getLogger("torch.onnx")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                tower.module.eval(),
                tower.examples,
                dynamo=True,
                opset_version=PORTABLE.opset,
                input_names=[port.name for port in tower.inputs],
                output_names=[port.name for port in tower.outputs],
                dynamic_shapes=tuple(_dynamic(tower)),
                verbose=False,
            )
        finally:
            log.setLevel(level)
    assert program is not None
    parameters = {name for name, _ in (*tower.module.named_parameters(), *tower.module.named_buffers())}
    for name, value in list(program.model.graph.initializers.items()):
        if name in parameters and not name.startswith("tower."):  # by which tidy_names knows them
            value.name = f"tower.{name}"
    return program.model


def write(
    captured: ir.Model, tower: TracedTower, flavour: Flavour, extra: tuple[Pass, ...] = ()
) -> tuple[ir.Model, list[PassReport]]:
    """Rewrite a copy of a captured graph.

    Args:
        extra: passes before the last one, which gives the names.
    Raises:
        CheckFailed: the graph is not what the tower promised; a bug of ours or a change in the exporter.
    """
    model = captured.clone()
    # Later opsets gave the operators in use more types and no other meaning; onnx.checker and the comparison hold this.
    model.graph.opset_imports[""] = flavour.opset
    model.ir_version = flavour.ir_version
    model.producer_name, model.producer_version = "edgeclip", None
    model.graph.name = f"{tower.kind}_tower"
    first = (fuse_attention,) if flavour.attention == "op" else ()
    reports = [step(model) for step in (*first, *PASSES[:-1], *extra, PASSES[-1])]
    check(model, tower, flavour)
    return model, reports


def _dynamic(tower: TracedTower) -> Iterator[dict[int, object]]:
    """Axis -> its range, of each input. Batch and numbers of boxes or prompts have no upper end, a text's length ends with its positions."""
    ranges: dict[str, object] = dict(_RANGES)
    for port, example in zip(tower.inputs, tower.examples, strict=True):
        for axis, size in enumerate(port.shape):
            if size == "L":
                ranges[size] = torch.export.Dim("L", min=1, max=example.shape[axis])
    for port in tower.inputs:
        yield {axis: ranges[size] for axis, size in enumerate(port.shape) if isinstance(size, str)}


def count(model: ir.Model) -> dict[str, int]:
    """How often each operator stands in the graph, and under lower-case names what the checks go by."""
    counts: dict[str, int] = {"linears": 0, "attentions": 0, "fused_qkv": 0, "mixtures": 0}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        if node.op_type in ("MatMul", "Gemm") and (weight := _weight(node.inputs[1])):
            counts["linears"] += 1
            counts["fused_qkv"] += weight.removesuffix(".fp16").endswith("qkv.weight")
        elif node.op_type == "Softmax" and node.inputs[0] is not None and (made := node.inputs[0].producer()):
            counts["mixtures"] += made.op_type == "Where"  # a router's: of the logits that were chosen
    counts["attentions"] = counts.get("Attention", 0) or counts.get("Softmax", 0) - counts["mixtures"]
    return counts


def check(model: ir.Model, tower: TracedTower, flavour: Flavour) -> None:
    """Raise CheckFailed unless the graph is what the tower promised: ports, opset, operators, every weight read once."""
    where = f"{tower.kind} tower ({flavour.attention})"
    for what, ports, values in (
        ("inputs", tower.inputs, model.graph.inputs),
        ("outputs", tower.outputs, model.graph.outputs),
    ):
        if len(ports) != len(values):
            names = ", ".join(str(value.name) for value in values)
            raise CheckFailed(f"{where}: expected {len(ports)} {what}, the graph has {names}.")
        for port, value in zip(ports, values, strict=True):
            _check_port(where, port, value)
    if model.opset_imports != {"": flavour.opset} or any(node.domain for node in model.graph):
        raise CheckFailed(
            f"{where}: expected only standard operators of opset {flavour.opset}, got {model.opset_imports}."
        )
    counts = count(model)
    _check_counts(where, counts, tower.expected)
    for op in _FORBIDDEN:
        if counts.get(op, 0) and op not in tower.expected:
            raise CheckFailed(f"{where}: the graph holds {counts[op]} {op}, expected none.")


def _check_counts(where: str, counts: Mapping[str, int], expected: Mapping[str, int]) -> None:
    for name, wanted in expected.items():
        if counts.get(name, 0) != wanted:
            raise CheckFailed(
                f"{where}: expected {wanted} {name} in the graph, found {counts.get(name, 0)}. "
                "Please report it with the versions of torch and onnxscript."
            )


def _check_port(where: str, port: Port, value: ir.Value) -> None:
    found = tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
    if (value.name, value.dtype, found) != (port.name, _DTYPES[port.dtype], port.shape):
        raise CheckFailed(
            f"{where}: expected {port.name} {port.dtype} {port.shape}, the graph has {value.name} {value.dtype} {found}."
        )


def _weight(value: ir.Value | None) -> str | None:
    """The name of the initializer behind a value, through a Cast or a Transpose; None for an activation."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Cast", "Transpose"):
            return None
        value = node.inputs[0]
    return value.name if value is not None and value.is_initializer() else None
