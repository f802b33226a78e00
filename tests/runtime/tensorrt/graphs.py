"""Small graphs for TensorRT: written as text, parsed by the real TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgeclip.runtime.tensorrt.library import Library, load_library


def rtx() -> Library:
    """TensorRT-RTX, or the test is skipped."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    return load_library("tensorrt-rtx")


@contextmanager
def parsed(model: ir.Model) -> Iterator[tuple[Any, Any, Any]]:
    """-> (tensorrt_rtx, builder, network), which live as long as the block."""
    trt = rtx().module
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    ir.external_data.load_to_model(model)
    assert parser.parse(ir.to_proto(model).SerializeToString()), parser.get_error(0).desc()
    yield trt, builder, network


def why_not_read(model: ir.Model | Path) -> str:
    """The parser's first error, "" where it reads a graph or a file."""
    trt = rtx().module
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    if isinstance(model, Path):
        read = parser.parse_from_file(str(model))
    else:
        read = parser.parse(ir.to_proto(model).SerializeToString())
    return "" if read else f"{parser.get_error(0).node_name()}: {parser.get_error(0).desc()}"


def plan_size(trt: Any, builder: Any, network: Any, arch: str) -> int | None:
    """Bytes of the plan for one GPU that is not here, batch 1 to 4; None: it does not build."""
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), 0)
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = [[size if size >= 0 else open_size for size in tensor.shape] for open_size in (1, 2, 4)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else int(plan.nbytes)


def attention(
    dtype: str = "float16", width: int = 64, queries: int = 50, keys: int = 50, mask: str = "", heads: int = 2
) -> ir.Model:
    """One Attention operator alone; mask "", "causal" or "additive"."""
    shape = f"{dtype}[N,{heads},{{}},{width}]"
    ports = [f"{shape.format(queries)} q", f"{shape.format(keys)} k", f"{shape.format(keys)} v"]
    ports += [f"{dtype}[N,1,{queries},{keys}] m"] if mask == "additive" else []
    call = f"Attention<scale=1.0, is_causal={int(mask == 'causal')}>({', '.join(port.split()[1] for port in ports)})"
    body = f"({', '.join(ports)}) => ({shape.format(queries)} y) {{ y = {call} }}"
    text = f'<ir_version: 11, opset_import: ["" : 23]> toy {body}'
    return ir.from_onnx_text(text)
