"""A stand-in for the Python API of TensorRT and TensorRT-RTX, on top of the stand-in for CUDA.

A plan is a graph and its profiles as JSON. Executing reads the inputs from "device" memory, runs the graph by onnxruntime and writes
the outputs back: queued, as all work of a GPU. What TensorRT's documentation forbids is a fault here.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from tests.runtime.tensorrt.cuda_stand_in import Failed, StandIn

_TYPES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
}
_NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "UINT8": np.uint8,
}  # fmt: skip
DataType = enum.Enum("DataType", list(_NUMPY))
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
Strategy = enum.Enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


def plan_of(
    graph: bytes, profiles: Sequence[Mapping[str, tuple[int, int, int]]], scratch: int = 1000, **more: Any
) -> bytes:
    """A plan. `more`: stripped=True leaves the weights to a refit; recordable=False makes every recording fail."""
    text = {"graph": base64.b64encode(graph).decode(), "profiles": profiles, "scratch": scratch, **more}
    return json.dumps(text).encode()


class ILogger:
    """Base of loggers."""

    def log(self, severity: Any, message: str) -> None: ...


def module(cuda: StandIn, rtx: bool = False) -> Any:
    """The module. `engines` and `contexts`: those that were made."""
    trt = SimpleNamespace(
        __version__="1.7.1.116" if rtx else "10.3.0.30", ILogger=ILogger, cuda=cuda, engines=[], contexts=[],
        ExecutionContextAllocationStrategy=Strategy, DataType=DataType, TensorIOMode=TensorIOMode, LayerInformationFormat=SimpleNamespace(JSON=1),
    )  # fmt: skip
    trt.Runtime = lambda logger: Runtime(trt, logger)
    trt.Refitter = lambda engine, logger: SimpleNamespace(
        engine=engine, refit_cuda_engine=lambda: not engine.stripped
    )
    trt.OnnxParserRefitter = lambda refitter, logger: SimpleNamespace(
        refit_from_file=lambda path: refitter.engine.refit(path)
    )
    if rtx:
        trt.CudaGraphStrategy = CudaGraphStrategy
    return trt


class Runtime:
    """IRuntime."""

    engine_host_code_allowed = False

    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        """None, and a word to the logger, for what is no plan."""
        try:
            facts = json.loads(plan)
        except ValueError:
            severity = SimpleNamespace(name="ERROR")
            self.logger.log(
                severity,
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)",
            )
            return None
        self.trt.engines.append(engine := Engine(self.trt, facts, self.logger))
        return engine


class Engine:
    """ICudaEngine."""

    def __init__(self, trt: Any, facts: dict[str, Any], logger: Any) -> None:
        self.trt, self.facts, self.logger = trt, facts, logger
        self.stripped = facts.get("stripped", False)
        self.device_memory_size_v2 = facts["scratch"]
        self.num_optimization_profiles = len(facts["profiles"])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            base64.b64decode(facts["graph"]), settings, ["CPUExecutionProvider"]
        )
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.ports = {**self.inputs, **{port.name: port for port in self.session.get_outputs()}}
        self.num_io_tensors = len(self.ports)
        self.runtime_config: Any = None

    def refit(self, path: str) -> bool:
        """Weights come back with exactly the graph that they were taken from."""
        with open(path, "rb") as file:
            self.stripped = file.read() != base64.b64decode(self.facts["graph"])
        return not self.stripped

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_TYPES[self.ports[name].type]]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.ports[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        spans = self.facts["profiles"][profile]
        return [
            tuple(size if isinstance(size, int) else spans[size][i] for size in self.ports[name].shape)
            for i in range(3)
        ]

    def create_engine_inspector(self) -> Any:
        layers = {
            "Layers": [{"Name": "all of it", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]}]
        }
        return SimpleNamespace(get_engine_information=lambda how: json.dumps(layers))

    def create_runtime_config(self) -> Any:
        self.runtime_config = RuntimeConfig()
        return self.runtime_config

    def create_execution_context(self, how: Any) -> Any:
        own = isinstance(how, RuntimeConfig)
        if (how.strategy if own else how) is not Strategy.USER_MANAGED:
            raise AssertionError("the context would allocate scratch memory of its own")
        self.trt.contexts.append(context := Context(self, self.trt.cuda))
        return context


class RuntimeConfig:
    """IRuntimeConfig of TensorRT-RTX."""

    def __init__(self) -> None:
        self.strategy: Any = Strategy.STATIC
        self.cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED
        self.cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """IRuntimeCache: kernels that were compiled here."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, data: bytes) -> bool:
        self.kernels = bytes(data)
        return data.startswith(b"kernels")

    def serialize(self) -> bytes:
        return self.kernels or b"kernels of this device"


class Context:
    """IExecutionContext. One thread at a time; one scratch memory at a time; recordable once it ran in its shape."""

    def __init__(self, engine: Engine, cuda: StandIn) -> None:
        self.engine, self.cuda = engine, cuda
        self.profile, self.scratch, self.warm, self.runs = -1, (0, 0), False, 0
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._busy = threading.Lock()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        """Raises where it fails, as the bindings do for this function alone."""
        if profile not in range(self.engine.num_optimization_profiles):
            raise RuntimeError("Error in set optimization profile async.")
        self.profile, self.shapes, self.warm = profile, {}, False
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.ports

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch, self.warm = (address, size), False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name], self.warm = tuple(shape), False
        return all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))

    def execute_async_v3(self, stream: int) -> bool:
        if not self._busy.acquire(blocking=False):
            self.cuda.faults.append("a context was used by two threads at once")
            return False
        try:
            return self._execute(stream)
        except Failed as error:
            severity = SimpleNamespace(name="ERROR")
            self.engine.logger.log(
                severity, f"IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime ({error})"
            )
            return False
        finally:
            self._busy.release()

    def _execute(self, stream: int) -> bool:
        recording = self.cuda.streams[stream].captured is not None
        if recording and (not self.warm or not self.engine.facts.get("recordable", True)):
            self.cuda.streams[stream].spoilt = True
            return False
        if set(self.shapes) != set(self.engine.inputs) or self.engine.stripped:
            return False
        shapes, addresses, scratch = dict(self.shapes), dict(self.addresses), self.scratch
        self.cuda.queue(
            stream, lambda: self._work(stream, shapes, addresses, scratch), *addresses.values(), scratch[0]
        )
        self.warm, self.runs = True, self.runs + 1
        return True

    def _work(
        self, stream: int, shapes: dict[str, Any], addresses: dict[str, int], scratch: tuple[int, int]
    ) -> None:
        owners = self.cuda.__dict__.setdefault("scratch_used_by", {})
        if owners.setdefault(scratch[0], stream) != stream:
            self.cuda.faults.append("two streams work in one scratch memory")
        self.cuda.check(*scratch)
        feeds = {}
        for name, shape in shapes.items():
            kind = _NUMPY[self.engine.get_tensor_dtype(name).name]
            self.cuda.check(addresses[name], size := int(np.prod(shape)) * np.dtype(kind).itemsize)
            feeds[name] = np.frombuffer(ctypes.string_at(addresses[name], size), kind).reshape(shape)
        names = [name for name in self.engine.ports if name not in shapes]
        for name, found in zip(names, self.engine.session.run(names, feeds), strict=True):
            self.cuda.check(addresses[name], found.nbytes)
            ctypes.memmove(addresses[name], np.ascontiguousarray(found).ctypes.data, found.nbytes)
