"""What stands in a `config.pbtxt`, as plain mappings, and how they are written as protobuf text.

Source: model_config.proto of triton-inference-server/common; what a server accepts beyond the schema is in
model_config_utils.cc and ensemble_utils.cc of triton-inference-server/core, onnxruntime.cc and instance_state.cc of the backends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeclip.bundle import Port
from edgeclip.errors import InputError

Backend = Literal["onnxruntime", "tensorrt"]
Message = dict[str, Any]

# backend -> its platform and the file that a version's folder holds
BACKENDS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
}
# Of a warm-up on a GPU: larger ones would only cost start-up time.
MOST_WARM = 32


class Word(str):
    """A value that stands without quotes: an enumeration's name."""


TYPES: Mapping[str, Word] = {
    "float32": Word("TYPE_FP32"),
    "float16": Word("TYPE_FP16"),
    "int32": Word("TYPE_INT32"),
    "int64": Word("TYPE_INT64"),
    "uint8": Word("TYPE_UINT8"),
    "bool": Word("TYPE_BOOL"),
}


@dataclass(frozen=True)
class TritonSettings:
    """How the models are served."""

    precision: str | None = None  # only variants of this precision; None: the bundle's order decides
    variants: tuple[str, ...] = ()  # ids of the variants to serve; a tower without one chooses as above
    backend: Backend = "onnxruntime"
    max_batch: int = 32  # pictures in one run of a model
    max_texts: int = 256  # texts in one run: so many labels may one zero-shot request have
    delay_us: int = 2000  # how long a request waits for others to share its batch
    queue: int = 512  # requests that may wait; more are refused. 0: no bound
    instances: int = 1  # of each model on each device
    gpus: tuple[int, ...] = (0,)  # numbers of the GPUs; (): the CPU
    threads: int = 0  # CPU threads of one instance; 0: all cores
    cuda_graphs: bool = False  # backend tensorrt: capture one for each preferred batch
    accelerator: Literal["", "tensorrt"] = ""  # backend onnxruntime: what it hands the graph to
    prefix: str = ""  # of every model's name, so that one server can hold several bundles
    engines: Path | None = None  # backend tensorrt: the engine store; None: the bundle's own

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]*", self.prefix):
            raise InputError(f"prefix: expected letters, digits, '_', '-' and '.', got {self.prefix!r}.")
        if self.cuda_graphs and (self.backend != "tensorrt" or not self.gpus):
            raise InputError("CUDA graphs: only the backend tensorrt captures them. Pass --backend tensorrt.")
        if self.accelerator and (self.backend != "onnxruntime" or not self.gpus):
            raise InputError(
                f"accelerator {self.accelerator}: only the backend onnxruntime on a GPU has one. Drop it."
            )
        if self.backend == "tensorrt" and not self.gpus:
            raise InputError(
                "backend tensorrt: runs on a GPU only. Drop --cpu, or take --backend onnxruntime."
            )


@dataclass(frozen=True)
class Served:
    """One model of the repository: its folder, before it is written."""

    name: str
    config: Message
    files: Mapping[str, Path | bytes] = field(
        default_factory=dict
    )  # name inside the folder -> what is copied there

    @property
    def max_batch(self) -> int:
        """0: the batch is an axis like any other."""
        return int(self.config["max_batch_size"])


def model_config(
    name: str,
    ports: tuple[Sequence[Port], Sequence[Port]],
    settings: TritonSettings,
    *,
    max_batch: int,
    preferred: Sequence[int] = (),
    warm: Mapping[str, int] | None = None,
    profiles: int = 1,
    labels: Mapping[str, str] | None = None,
) -> Message:
    """A model that one graph or one engine is.

    Args:
        name: with the prefix.
        ports: its inputs and its outputs.
        max_batch: 0 where the first axes of its ports differ: then requests are not merged.
        preferred: batch sizes that are sent on at once; (): the largest. A small one would end the waiting for others.
        warm: symbolic size -> value with which the model is run before it says that it is ready.
        profiles: optimisation profiles of an engine.
        labels: output -> file that names its columns.
    """
    inputs, outputs = ports
    platform, file = BACKENDS[settings.backend]
    sizes = tuple(sorted({*preferred} or {max_batch}))
    config: Message = {
        "name": name,
        "platform": platform,
        "backend": settings.backend,
        "default_model_filename": file,
        "max_batch_size": max_batch,
        "input": [_port(port, max_batch) for port in inputs],
        "output": [_port(port, max_batch, (labels or {}).get(port.name)) for port in outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [_instances(settings, profiles)],
    }
    if max_batch:
        policy = {
            "default_queue_policy": {"timeout_action": Word("REJECT"), "max_queue_size": settings.queue}
        }
        config["dynamic_batching"] = {
            "preferred_batch_size": list(sizes),
            "max_queue_delay_microseconds": settings.delay_us,
            **(policy if settings.queue else {}),
        }
    if optimisation := _optimisation(inputs, settings, max_batch, sizes, warm or {}):
        config["optimization"] = optimisation
    if settings.threads and settings.backend == "onnxruntime":
        config["parameters"] = [
            {"key": "intra_op_thread_count", "value": {"string_value": str(settings.threads)}}
        ]
    config["response_cache"] = {"enable": False}  # no result about a picture is kept
    config["model_warmup"] = _warmup(inputs, max_batch, sizes if settings.gpus else (), warm or {})
    return config


def ensemble_config(
    name: str,
    ports: tuple[Sequence[Port], Sequence[Port]],
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
    max_batch: int = 0,
) -> Message:
    """Models in a row. The server refuses instances, warm-up and optimisation here: those are the steps' own.

    Args:
        steps: (model, its input -> tensor, its output -> tensor). With `max_batch` 0 the tensors of the ensemble have every
            axis, and a step that batches takes the first one as its batch: so two steps may have batches of different sizes.
    """
    inputs, outputs = ports
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "input": [_port(port, max_batch) for port in inputs],
        "output": [_port(port, max_batch) for port in outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": model,
                    "model_version": -1,
                    "input_map": [{"key": key, "value": value} for key, value in taken.items()],
                    "output_map": [{"key": key, "value": value} for key, value in given.items()],
                }
                for model, taken, given in steps
            ]
        },
    }


def pbtxt(message: Message, indent: str = "") -> str:
    """A message as protobuf text."""
    lines = []
    for key, value in message.items():
        for one in value if isinstance(value, list) and _messages(value) else [value]:
            if isinstance(one, dict):
                lines.append(f"{indent}{key} {{\n{pbtxt(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_scalar(one)}\n")
    return "".join(lines)


def _messages(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(_scalar(one) for one in value)} ]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _port(port: Port, max_batch: int, labels: str | None = None) -> Message:
    """The batch axis is not written where the server batches."""
    sizes = port.shape[1:] if max_batch else port.shape
    found: Message = {
        "name": port.name,
        "data_type": TYPES[port.dtype],
        "dims": [size if isinstance(size, int) else -1 for size in sizes],
    }
    return {**found, "label_filename": labels} if labels else found


def _instances(settings: TritonSettings, profiles: int) -> Message:
    if not settings.gpus:
        return {"count": settings.instances, "kind": Word("KIND_CPU")}
    found: Message = {"count": settings.instances, "kind": Word("KIND_GPU"), "gpus": list(settings.gpus)}
    if settings.backend == "tensorrt":  # the server uses the first profile only, unless told the others
        found["profile"] = [str(i) for i in range(profiles)]
    return found


def _optimisation(
    inputs: Sequence[Port],
    settings: TritonSettings,
    max_batch: int,
    sizes: Sequence[int],
    most: Mapping[str, int],
) -> Message:
    fixed = all(isinstance(size, int) for port in inputs for size in port.shape[1:])
    if (
        settings.cuda_graphs and max_batch and fixed
    ):  # the server captures batch 1, the preferred ones and the largest
        return {"cuda": {"graphs": True}}
    if not settings.accelerator or not max_batch:
        return {}
    # Types stand in the graph: "precision_mode" would let TensorRT choose others, and is no option of TensorRT 11.
    spans = {"min": (1, dict.fromkeys(most, 1)), "opt": (sizes[0], most), "max": (max_batch, most)}
    parameters = [
        {
            "key": f"trt_profile_{end}_shapes",
            "value": ",".join(
                f"{port.name}:{'x'.join(map(str, [batch, *_filled(port, known)]))}" for port in inputs
            ),
        }
        for end, (batch, known) in spans.items()
    ]
    accelerator = {"name": settings.accelerator, "parameters": parameters}
    return {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}


def _warmup(
    inputs: Sequence[Port], max_batch: int, sizes: Sequence[int], known: Mapping[str, int]
) -> list[Message]:
    """Zeros: black pictures, and ids that every vocabulary has; random bytes would name words that it has not."""
    batches = sorted({1, *(size for size in sizes if size <= MOST_WARM)}) if max_batch else [1]
    return [
        {
            "name": f"batch_{batch}",
            "batch_size": batch,
            "inputs": [
                {
                    "key": port.name,
                    "value": {
                        "data_type": TYPES[port.dtype],
                        "dims": _whole(port, max_batch, known),
                        "zero_data": True,
                    },
                }
                for port in inputs
            ],
        }
        for batch in batches
    ]


def _whole(port: Port, max_batch: int, known: Mapping[str, int]) -> list[int]:
    """Every size of one sample."""
    return _filled(port, known) if max_batch else [_size(port.shape[0], known), *_filled(port, known)]


def _filled(port: Port, known: Mapping[str, int]) -> list[int]:
    """The sizes behind the first one."""
    return [_size(size, known) for size in port.shape[1:]]


def _size(size: int | str, known: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else known.get(size, 1)
