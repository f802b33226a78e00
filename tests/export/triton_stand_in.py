"""A Triton without the server: a model repository is read by Triton's own protobuf schema, held to the rules that the server's
source states beyond it, and answered by onnxruntime in the order that the ensembles say.

Read from triton-inference-server: core model_config_utils.cc (ValidateModelConfig, ValidateEnsembleSchedulingConfig),
ensemble_utils.cc (ValidateTensorConsistency), ensemble_scheduler.cc (ReshapeTensorDims), onnxruntime_utils.cc
(CompareDimsSupported), backend_model_instance.cc (GenerateWarmupData). All rules are written anew here.
"""

from __future__ import annotations

import importlib.util
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
KINDS = {
    "TYPE_FP32": ("tensor(float)", np.float32),
    "TYPE_INT32": ("tensor(int32)", np.int32),
    "TYPE_INT64": ("tensor(int64)", np.int64),
    "TYPE_UINT8": ("tensor(uint8)", np.uint8),
    "TYPE_BOOL": ("tensor(bool)", np.bool_),
}


class Refused(Exception):
    """What the server would answer."""


def schema() -> Any:
    """Triton's ModelConfig. The package's __init__ wants grpc, which the file with the messages does not."""
    try:
        found = metadata.distribution("tritonclient")
    except metadata.PackageNotFoundError:
        pytest.skip("tritonclient, with Triton's schema, is not installed")
    path = found.locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """Every model of a repository, loaded as the server would."""

    def __init__(self, repository: Path) -> None:
        self.pb = schema()
        folders = [path for path in repository.iterdir() if path.is_dir()]
        self.models = {path.name: Model(path, self) for path in folders}
        for model in self.models.values():
            model.check()

    def infer(self, name: str, **inputs: NDArray[Any]) -> Arrays:
        """One request."""
        return self.models[name].infer(inputs)


class Model:
    """One folder."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server, self.pb = folder, server, server.pb
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        self.config = text_format.Parse(text, server.pb.ModelConfig())
        self.batches = self.config.max_batch_size > 0
        self.inputs = {port.name: port for port in self.config.input}
        self.outputs = {port.name: port for port in self.config.output}

    @cached_property
    def session(self) -> Any:
        """Opened from the path, as the backend does: weights are found beside the graph."""
        path = self.folder / "1" / self.config.default_model_filename
        try:
            return onnxruntime.InferenceSession(path)
        except Exception as error:  # onnxruntime's errors have no common base
            raise Refused(f"{path}: {error}") from error

    def kind(self, port: Any) -> str:
        return str(self.pb.DataType.Name(port.data_type))

    def full(self, port: Any) -> list[int]:
        return ([-1] if self.batches else []) + list(port.dims)

    # --- loading

    def check(self) -> None:
        """Raise AssertionError where the server would not load it."""
        config = self.config
        assert config.name == self.folder.name
        assert (self.folder / "1").is_dir()
        assert list((self.folder / "1").iterdir()), "object stores drop empty folders"
        for port in (*config.input, *config.output):
            assert port.dims
            assert all(size >= 1 or size == -1 for size in port.dims)
        for port in config.output:
            if port.label_filename:
                names = (self.folder / port.label_filename).read_text(encoding="utf-8").splitlines()
                assert len(names) == port.dims[-1]
        assert all(0 < size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
        assert not config.response_cache.enable
        if config.platform == "ensemble":
            self._check_ensemble()
        else:
            self._check_graph()

    def _check_graph(self) -> None:
        config = self.config
        assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
        for group in config.instance_group:
            cpu = self.pb.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_CPU"
            assert bool(group.gpus) != cpu
            assert not group.profile
        onnx.checker.check_model(self.folder / "1/model.onnx")
        for found, named in (
            (self.session.get_inputs(), self.inputs),
            (self.session.get_outputs(), self.outputs),
        ):
            assert {value.name for value in found} == set(named)
            for value in found:
                port = named[value.name]
                assert KINDS[self.kind(port)][0] == value.type
                shape = [size if isinstance(size, int) else -1 for size in value.shape]
                assert shape == self.full(port), value.name
        for sample in config.model_warmup:
            assert sample.batch_size == 1 or 1 <= sample.batch_size <= config.max_batch_size
            assert set(sample.inputs) == set(self.inputs)
            for name, value in sample.inputs.items():
                assert value.data_type == self.inputs[name].data_type
                assert all(size > 0 for size in value.dims), "a warm-up says every size"
            self.infer(
                {
                    name: np.zeros(
                        [*([sample.batch_size] if self.batches else []), *value.dims],
                        KINDS[self.kind(value)][1],
                    )
                    for name, value in sample.inputs.items()
                }
            )

    def _check_ensemble(self) -> None:
        config = self.config
        assert not config.backend
        assert not config.instance_group
        assert not config.model_warmup
        assert not config.HasField("optimization")
        tensors = {name: (self, port) for name, port in self.inputs.items()}
        read: set[str] = set()
        for step in config.ensemble_scheduling.step:
            model = self.server.models[step.model_name]
            assert model.config.max_batch_size == 0 or model.config.max_batch_size >= config.max_batch_size
            assert set(step.input_map) == set(model.inputs)
            assert set(step.output_map) <= set(model.outputs)
            for name, tensor in step.input_map.items():
                assert tensor in tensors, f"{tensor} is read before it is written"
                assert agree(model, model.inputs[name], *tensors[tensor])
                read.add(tensor)
            for name, tensor in step.output_map.items():
                assert tensor not in tensors
                tensors[tensor] = (model, model.outputs[name])
        for name, port in self.outputs.items():
            assert agree(self, port, *tensors[name])
        assert set(tensors) == read | set(self.outputs), "a tensor that nobody reads"

    # --- answering

    def infer(self, given: Arrays) -> Arrays:
        """Answer one request of whole shapes."""
        if set(given) != set(self.inputs):
            raise Refused(f"{self.config.name}: expected {set(self.inputs)}, got {set(given)}")
        batches = set()
        for name, array in given.items():
            port = self.inputs[name]
            if array.dtype != KINDS[self.kind(port)][1]:
                raise Refused(f"{name}: {array.dtype}")
            if not alike(self.full(port), array.shape):
                raise Refused(f"{self.config.name}: {name}: expected {self.full(port)}, got {array.shape}")
            batches.add(array.shape[0] if self.batches else 0)
        if len(batches) != 1 or max(batches) > self.config.max_batch_size:
            raise Refused(f"{self.config.name}: batches {batches}, at most {self.config.max_batch_size}")
        if self.config.platform == "ensemble":
            return self._steps(given, batches.pop())
        names = list(self.outputs)
        return dict(zip(names, self.session.run(names, given), strict=True))

    def _steps(self, given: Arrays, batch: int) -> Arrays:
        tensors = {name: (array, batch) for name, array in given.items()}
        for step in self.config.ensemble_scheduling.step:
            model = self.server.models[step.model_name]
            taken = {
                name: model.reshaped(list(model.inputs[name].dims), *tensors[tensor])
                for name, tensor in step.input_map.items()
            }
            found = model.infer(taken)
            size = next(iter(taken.values())).shape[0] if model.batches else 0
            tensors |= {tensor: (found[name], size) for name, tensor in step.output_map.items()}
        return {name: self.reshaped(list(port.dims), *tensors[name]) for name, port in self.outputs.items()}

    def reshaped(self, dims: list[int], array: NDArray[Any], batch: int) -> NDArray[Any]:
        """What an ensemble hands over where one side batches and the other does not."""
        if self.batches and not batch and alike(dims, array.shape):
            return array[None]
        if not self.batches and batch == 1 and not alike(dims, array.shape):
            return array[0]
        return array


def alike(dims: list[int], shape: Any) -> bool:
    """Whether sizes agree, -1 with every size."""
    return len(dims) == len(shape) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(dims, shape, strict=True)
    )


def agree(one: Model, a: Any, other: Model, b: Any) -> bool:
    """Whether two ports may be the same tensor of an ensemble."""
    return a.data_type == b.data_type and (
        alike(list(a.dims), list(b.dims)) or alike(one.full(a), other.full(b))
    )
