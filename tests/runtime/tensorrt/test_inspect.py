"""The inspector's JSON, in the shapes that different releases write; and the real inspector, where a GPU is."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt import inspect as inspect_module
from edgeclip.runtime.tensorrt.inspect import read_engine, report_of
from tests.mutants import broken
from tests.runtime.tensorrt.graphs import attention, parsed, rtx

Layer = dict[str, Any] | str


def text(*layers: Layer) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["pixels", "embeddings"]})


def layer(name: str, kind: str, dtype: str, key: str = "Format/Datatype", **more: Any) -> Layer:
    ports = [{"Name": "t", "Location": "Device", "Dimensions": [8, 50, 64], key: dtype}]
    return {"Name": name, "LayerType": kind, "Inputs": ports, "Outputs": ports, **more}


BLOCK = (  # one block of a tower as TensorRT 10 lists it: an operator may be called Attention and be written out all the same
    layer("__myl_CastMeanSubMulMean_myl0_1", "kgen", "Half", Metadata="[ONNX Layer: LayerNormalization_0]"),
    layer("MatMul_0_myl0_2", "gemm", "Half", TacticName="sm80_xmma_gemm_f16f16", Metadata="[ONNX Layer: MatMul_0]"),
    layer("_gemm_mha_v2_myl0_3", "kgen", "Half", TacticName="_gemm_mha_v2_0xbceb", Metadata="[ONNX Layer: Attention_0]"),
    layer("MatMul_1_myl0_4", "gemm", "Half", TacticName="sm80_xmma_gemm_f16f16", Metadata="[ONNX Layer: MatMul_1\x1f]"),
    layer("__myl_Soft_myl0_5", "kgen", "Float", Metadata="[ONNX Layer: Attention_1]"),
)  # fmt: skip


def test_types_fused_attention_and_memory() -> None:
    found = report_of(text(*BLOCK), 4096)
    assert (found.layers, found.types) == (5, {"fp16": 4, "fp32": 1})
    assert (found.fused_attention, found.reformats, found.opaque, found.bytes) == (1, 0, 0, 4096)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Half", "fp16"), ("Half(64,1:8,56)", "fp16"), ("Row major linear FP16 format", "fp16"), ("FP16", "fp16"),
        ("Float", "fp32"), ("Row major linear FP32", "fp32"), ("BFloat16", "bf16"), ("BF16", "bf16"), ("FP8", "fp8"),
        ("Float8E4M3FN", "fp8"), ("Int8", "int8"), ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("UInt8", "uint8"), ("Int4", "int4"), ("Int32", "int32"), ("Int64", "int64"), ("Bool", "bool"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])  # 11 splits the two
def test_spellings_of_types(spelling: str, name: str, key: str) -> None:
    assert report_of(text(layer("a", "kgen", spelling, key)), 0).types == {name: 1}


def test_a_type_that_is_not_told_is_the_weights_or_none() -> None:
    unknown = layer("a", "Pooling", "N/A due to dynamic shapes")
    weighted = layer(
        "b", "CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Int8", "Count": 9408}
    )
    bare: Layer = {"Name": "c", "LayerType": "NoOp", "Outputs": []}
    assert report_of(text(unknown, weighted, bare), 0).types == {"int8": 1}


def test_copies_are_reformats_and_quantising_is_none() -> None:
    copy = layer(
        "Reformatting CopyNode for Input Tensor 0 to MatMul_0", "Reformat", "Half", Origin="REFORMAT"
    )
    quantised = layer("QuantizeLinear_0", "Reformat", "Int8", Origin="QDQ")
    assert report_of(text(copy, quantised, *BLOCK), 0).reformats == 1


def test_names_alone_as_without_detailed_profiling() -> None:
    names = (
        "Reformatting CopyNode for Input Tensor 0",
        "_gemv_mha_v1_myl1_2",
        "{ForeignNode[Add_0...MatMul_9]}",
    )
    found = report_of(text(*names), 0)
    assert (found.layers, found.types) == (3, {})
    assert (found.fused_attention, found.reformats, found.opaque) == (1, 1, 1)


@pytest.mark.parametrize(
    "name", ["__mye8037_gemm_mha_v2", "fmha_v2_flash_attention_fp16_64", "sm90_FlashAttn_fwd"]
)
def test_names_of_fused_attention(name: str) -> None:
    assert report_of(text(layer(name, "kgen", "Half")), 0).fused_attention == 1


@pytest.mark.parametrize("name", ["Attention_0_myl2", "alphamhat", "__myl_SoftMul"])
def test_names_that_are_none(name: str) -> None:
    assert report_of(text(layer(name, "kgen", "Half")), 0).fused_attention == 0


@pytest.mark.parametrize("bad", ["", "{}", "[]", '{"Layers": 3}', "Layer(Reformat): x"])
def test_what_is_no_report(bad: str) -> None:
    with pytest.raises(EngineError, match=r"inspector: expected JSON with a list of Layers, got"):
        report_of(bad, 0)
    with pytest.raises(EngineError, match=r"inspector: lists no layer"):
        report_of('{"Layers": []}', 0)


def test_a_reader_that_believes_the_metadata_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = broken(inspect_module._kernel, "{layer.get('TacticName', '')}", "{layer} mha")
    monkeypatch.setattr(inspect_module, "_kernel", mutant)
    with pytest.raises(AssertionError):
        test_types_fused_attention_and_memory()


class _Engine:
    """An ICudaEngine as far as the reader asks it: shapes are known only once the inspector was told them."""

    device_memory_size_v2 = 1 << 20
    num_io_tensors = 2

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.execution_context: Any = None

    def create_engine_inspector(self) -> _Engine:
        return self

    def create_execution_context(self, strategy: str) -> _Engine:
        assert strategy == "user managed"  # anything else takes the GPU's memory
        return self

    def get_tensor_name(self, i: int) -> str:
        return ("pixels", "embeddings")[i]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "pixels" else "out"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        known = self.execution_context is not None and self.shapes == {"pixels": (8, 3, 32, 32)}
        return text(layer("a", "gemm", "Half" if known else "N/A due to dynamic shapes"))


def test_the_inspector_is_told_the_shapes() -> None:
    module = SimpleNamespace(
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    found = read_engine(module, _Engine())
    assert (found.types, found.bytes) == ({"fp16": 1}, 1 << 20)


def test_the_real_classes_have_what_is_asked_of_them() -> None:
    trt = rtx().module
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    asked = (
        "create_engine_inspector",
        "create_execution_context",
        "get_tensor_profile_shape",
        "device_memory_size_v2",
    )
    assert all(hasattr(trt.ICudaEngine, name) for name in asked)
    assert hasattr(trt.EngineInspector, "execution_context")


@pytest.mark.gpu
def test_a_real_engine_on_a_real_gpu() -> None:
    with parsed(attention(width=64, heads=12)) as (trt, builder, network):
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for i in range(network.num_inputs):
            profile.set_shape(network.get_input(i).name, *[(n, 12, 50, 64) for n in (1, 4, 8)])
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        assert engine is not None
        found = read_engine(trt, engine)
    assert found.layers >= 1
    assert found.fused_attention >= 1 or found.opaque >= 1 or not found.types, found
