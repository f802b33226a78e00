"""What an engine really became: its inspector's JSON, read back. Deserialised engines only, so on a GPU.

Its shape, as TensorRT 8.6 to 11 and Torch-TensorRT write it:
 Layers      one a kernel; only a name each, where the engine was built without detailed profiling
 LayerType   "Reformat" for a copy that changes type or layout (Origin "QDQ": it quantises, which is work), "kgen", "gemm", "CaskConvolution"
 Outputs     each "Format/Datatype", later "Datatype" alone: "Half", "Int8(...)", "Row major linear FP16 format"; "N/A due to dynamic shapes"
             until the inspector is told shapes
 Weights     "Type", where the outputs say nothing
 Name        "_gemm_mha_v2_myl3_6" and "_gemv_mha_v1..." are fused attention, "{ForeignNode[...]}" a region that is not listed
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt.record import EngineReport

# Of a data type's many spellings, what tells it from the others; the first that fits.
_SPELLINGS: Mapping[str, re.Pattern[str]] = {
    "bf16": re.compile(r"bf16|bfloat16|bhalf", re.IGNORECASE),
    "fp8": re.compile(r"fp8|float8|e4m3", re.IGNORECASE),
    "fp16": re.compile(r"fp16|float16|half", re.IGNORECASE),
    "fp32": re.compile(r"fp32|float", re.IGNORECASE),
    "uint8": re.compile(r"uint8", re.IGNORECASE),
    "int8": re.compile(r"int8", re.IGNORECASE),
    "int4": re.compile(r"int4", re.IGNORECASE),
    "int32": re.compile(r"int32", re.IGNORECASE),
    "int64": re.compile(r"int64", re.IGNORECASE),
    "bool": re.compile(r"bool", re.IGNORECASE),
}
# Of a kernel's name. Not of its metadata, which repeats the graph's names: a node may be called Attention and be written out.
_FUSED = re.compile(r"(?<![a-z])f?mha(?![a-z])|flash_?att", re.IGNORECASE)
_OPAQUE = "ForeignNode["
_COPY = "Reformatting CopyNode"


def read_engine(module: Any, engine: Any) -> EngineReport:
    """Ask an engine's inspector, at the shapes that its first profile is tuned for.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        engine: an ICudaEngine.
    Raises:
        EngineError: what it says is no JSON, or lists no layers.
    """
    if (inspector := engine.create_engine_inspector()) is None:
        raise EngineError("the engine's inspector: there is none. See `edgeclip doctor`.")
    # It takes no device memory: it is there to know the shapes.
    context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is not None:
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    return report_of(
        inspector.get_engine_information(module.LayerInformationFormat.JSON),
        int(engine.device_memory_size_v2),
    )


def report_of(text: str, scratch: int) -> EngineReport:
    """Count the layers of an inspector's JSON.

    Args:
        text: as the inspector gives it; its metadata may hold bare control characters.
        scratch: bytes of device memory that a context takes.
    Raises:
        EngineError: not JSON, or without layers.
    """
    try:
        layers = json.loads(text, strict=False)["Layers"]
        layers = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"the engine's inspector: expected JSON with a list of Layers, got {str(text)[:60]!r}. Build the engine again."
        ) from error
    if not layers:
        raise EngineError("the engine's inspector: lists no layer. Build the engine again.")
    types = Counter(_type_of(layer) for layer in layers)
    types.pop("", None)
    return EngineReport(
        layers=len(layers),
        types=dict(types),
        fused_attention=sum(bool(_FUSED.search(_kernel(layer))) for layer in layers),
        reformats=sum(_is_copy(layer) for layer in layers),
        bytes=scratch,
        opaque=sum(_OPAQUE in str(layer.get("Name", "")) for layer in layers),
    )


def _kernel(layer: Mapping[str, Any]) -> str:
    return f"{layer.get('Name', '')} {layer.get('TacticName', '')}"


def _is_copy(layer: Mapping[str, Any]) -> bool:
    kind = layer.get("LayerType")
    if kind is None:
        return str(layer.get("Name", "")).startswith(_COPY)
    return kind == "Reformat" and layer.get("Origin") != "QDQ"


def _type_of(layer: Mapping[str, Any]) -> str:
    """Of its first output, else of its weights; "" where it tells none."""
    outputs, weights = layer.get("Outputs") or [{}], layer.get("Weights") or {}
    first = outputs[0] if isinstance(outputs[0], dict) else {}
    told = (
        first.get("Datatype"),
        first.get("Format/Datatype"),
        weights.get("Type") if isinstance(weights, dict) else None,
    )
    for spelling in map(str, told):
        for name, pattern in _SPELLINGS.items():
            if pattern.search(spelling):
                return name
    return ""
