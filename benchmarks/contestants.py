"""The programs that benchmarks.compression compares: each runs the same image tower, from files that are written once.

A contestant is a file or folder to make (`make`) and a way to run it (`start`): pixels in, a call without arguments out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.photographs import PHOTOGRAPHS, find_photographs

Array = NDArray[Any]
Call = Callable[[], Array]  # -> (1, D)
Start = Callable[[Array], Call]  # (1, 3, H, W) float32 pixels

# -> the entry of tests.checkpoints.SIZES, tokens
MODELS = {"b32": ("B/32", 50), "b16": ("B/16", 197), "l14": ("L/14", 257), "l14-336": ("L/14-336", 577)}
MERGE_FROM, LARGE_BLOCKS = (
    257,
    24,
)  # tokens: with fewer there is little to merge; blocks of the towers that have so many


@dataclass(frozen=True)
class Contestant:
    """One row of the table."""

    name: str
    artifact: str  # below the model's folder
    make: Callable[[Path, Path], dict[str, Any]]  # (model's folder, artifact) -> facts to report
    start: Callable[[Path, int], Start]  # (artifact, threads)


def contestants(model: str, merges: tuple[int, ...]) -> list[Contestant]:
    """Those of one model, the one that all others are compared with first."""
    found = [
        Contestant("onnxruntime fp32, plain export", "plain", _plain, _onnxruntime),
        Contestant("OpenVINO fp32, plain export", "plain", _plain, _openvino),
        Contestant("torch.compile fp32", "source", _source, _torch_compile),
        Contestant("onnxruntime quantize_dynamic, MatMul only", "plain-int8", _plain_int8, _onnxruntime),
        Contestant("edgeclip fp32, decomposed", "fp32", _edgeclip(""), _engine),
        Contestant("edgeclip fp32, Attention operator", "fp32-op", _edgeclip("", "op"), _engine),
        Contestant("edgeclip int8, static", "int8", _edgeclip("int8"), _engine),
        Contestant("edgeclip int8, dynamic", "int8-dynamic", _edgeclip("int8-dynamic"), _engine),
        Contestant(
            "edgeclip int8, static, uint8 pixels", "int8-uint8", _edgeclip("int8", uint8=True), _engine
        ),
        Contestant("OpenVINO, edgeclip's int8 graph", "int8", _edgeclip("int8"), _openvino),
    ]
    if MODELS[model][1] >= MERGE_FROM:
        for r in (r for r in merges if r * LARGE_BLOCKS < MODELS[model][1]):  # more would leave nothing
            name = f"edgeclip int8, static, {r} tokens merged a block"
            found.append(Contestant(name, f"int8-merge{r}", _edgeclip("int8", merging=r), _engine))
    return found


def pictures(folder: Path) -> tuple[Array, Array]:
    """Pixels (N, 3, H, W) float32 to calibrate with, and others to compare on: photographs, or made-up ones without them."""
    from edgeclip.export.samples import made_up_pictures, pixels_of

    spec = _source_of(folder).preprocessing
    assert spec is not None
    paths = find_photographs() if PHOTOGRAPHS.is_dir() else made_up_pictures(64)
    pixels = pixels_of(paths, spec)
    return pixels[::2], pixels[1::2]


def make(folder: Path, contestant: Contestant) -> dict[str, Any]:
    """Write what a contestant runs, unless it is there. -> what is to be said of it."""
    path = folder / contestant.artifact
    said = path / "facts.json"
    if not said.exists():
        path.mkdir(parents=True, exist_ok=True)
        facts = contestant.make(folder, path)
        files = [file.stat().st_size for file in path.iterdir() if file.suffix != ".json"]
        said.write_text(json.dumps({"size_mb": round(sum(files) / 1e6, 1), **facts}, indent=1) + "\n")
    found: dict[str, Any] = json.loads(said.read_text())
    return found


def write_source(folder: Path, model: str) -> None:
    """The image tower's checkpoint, by transformers, with random weights; pixels to calibrate with and to compare on."""
    from tests.checkpoints import DEPTHS
    from tests.families.single_towers import write_tower

    if not (folder / "source/preprocessor_config.json").exists():
        size, _ = MODELS[model]
        write_tower(folder / "source", "CLIPVisionModelWithProjection", size, DEPTHS[size][0])
    if not (folder / "held.npy").exists():
        calibration, held = pictures(folder)
        np.save(folder / "calibration.npy", calibration)
        np.save(folder / "held.npy", held)


def _source(folder: Path, path: Path) -> dict[str, Any]:
    return {}  # write_source made it


def _source_of(folder: Path) -> Any:
    from edgeclip.models.sources import load_source

    return load_source(str(folder / "source"))


def _vision(path: Path) -> Any:
    import tests.torchvision_shim  # noqa: F401, I001  (before transformers)
    import torch
    import transformers

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = transformers.CLIPVisionModelWithProjection.from_pretrained(path)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.vision(pixel_values=pixel_values).image_embeds
            return found

    return Features().eval()


def _plain(folder: Path, path: Path) -> dict[str, Any]:
    """As one exports transformers' model without edgeclip."""
    import torch

    example = torch.from_numpy(np.load(folder / "held.npy", mmap_mode="r")[:2].copy())
    program = torch.onnx.export(
        _vision(folder / "source"), (example,), dynamo=True, input_names=["pixel_values"], output_names=["image_embeds"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path / "graph.onnx"), external_data=True)
    return {}


def _plain_int8(folder: Path, path: Path) -> dict[str, Any]:
    """onnxruntime's own quantiser as its documentation advises for transformers, kept to MatMul; all types break the graph or the result."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        folder / "plain/graph.onnx", path / "graph.onnx", op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8,
        per_channel=True, use_external_data_format=True,
    )  # fmt: skip
    return {"weights": "int8, per channel"}


def _edgeclip(
    method: str, attention: str = "decomposed", *, uint8: bool = False, merging: int = 0
) -> Callable[[Path, Path], dict[str, Any]]:
    def build(folder: Path, path: Path) -> dict[str, Any]:
        from edgeclip.export.onnx_graph import capture, write
        from edgeclip.export.precision import Request, convert
        from edgeclip.export.targets import FLAVOURS
        from edgeclip.export.towers import tower_of
        from edgeclip.export.uint8_input import take_uint8, uint8_port
        from edgeclip.export.weights import save_graphs
        from edgeclip.runtime.cpu import saturates

        source = _source_of(folder)
        spec = source.preprocessing
        (flavour,) = [each for each in FLAVOURS.values() if each.attention == attention]
        tower = tower_of(source, "image", merging=merging)
        model, reports = write(capture(tower), tower, flavour)
        port, calibration = tower.inputs[0], np.load(folder / "calibration.npy")
        if uint8:
            reports.append(take_uint8(spec)(model))
            port, calibration = uint8_port(spec), as_bytes(calibration, spec.mean, spec.std)
        if method:
            found = convert(model, method, Request(inputs=calibration, saturating=saturates()))
            model, reports = found.model, [*reports, *found.reports]
        save_graphs([("graph", model)], path, "image")
        facts = {"in": asdict(port), "out": asdict(tower.outputs[0]), "mean": spec.mean, "std": spec.std}
        (path / "port.json").write_text(json.dumps(facts))
        changed = {report.name: report.changed for report in reports if report.changed}
        return {"passes": changed, "saturates": saturates()}

    return build


def as_bytes(pixels: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(N, 3, H, W) normalised pixels back to the (N, H, W, 3) uint8 that they were made from."""
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (mean, std))
    found: Array = np.rint((pixels * std + mean) * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(found)


def _engine(path: Path, threads: int) -> Start:
    from edgeclip.bundle import Axes, Port, Variant
    from edgeclip.runtime.engines import EngineOptions, open_engine, run

    ports = json.loads((path / "port.json").read_text())
    taken, given = (replace(Port(**ports[way]), shape=tuple(ports[way]["shape"])) for way in ("in", "out"))
    variant = Variant("image", "image", Axes(), ("graph.onnx",), (taken,), (given,))
    engine = open_engine("onnxruntime-cpu", path / "graph.onnx", variant, EngineOptions(threads=threads))

    def start(pixels: Array) -> Call:
        slot = engine.slot(1)
        if taken.dtype == "uint8":
            pixels = as_bytes(pixels, ports["mean"], ports["std"])
        slot.inputs[taken.name][:] = pixels
        return lambda: run(engine, slot)[given.name]

    return start


def _onnxruntime(path: Path, threads: int) -> Start:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # its threads wait busily for the next call, and would take cores from whoever has the next turn
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path / "graph.onnx", settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: lambda: session.run(None, {name: pixels})[0]


def _openvino(path: Path, threads: int) -> Start:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path / "graph.onnx", "CPU", settings)
    return lambda pixels: lambda: compiled([pixels])[0]


def _torch_compile(path: Path, threads: int) -> Start:
    import torch

    torch.set_num_threads(threads)
    model = torch.compile(_vision(path))

    def start(pixels: Array) -> Call:
        rows = torch.from_numpy(pixels)

        def call() -> Array:
            with torch.inference_mode():
                found: Array = model(rows).numpy()
            return found

        return call

    return start
