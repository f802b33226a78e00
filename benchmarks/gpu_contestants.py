"""The programs that benchmarks.gpu compares: the same image tower, opened on a GPU.

A contestant is opened once, then prepared for pixels, which gives a call without arguments.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[], Array]  # -> (N, D) float32


# how onnxruntime's TensorRT providers are told the batches
PROFILES = {
    "onnxruntime-tensorrt": "trt_profile_{}_shapes",
    "onnxruntime-tensorrt-rtx": "nv_profile_{}_shapes",
}


@dataclass(frozen=True)
class Runner:
    """A contestant that is ready."""

    prepare: Callable[[Array], Call]  # (N, 3, H, W) float32 pixels
    uses: str  # the provider and the graph, read back


@dataclass(frozen=True)
class Contestant:
    """One row of the table."""

    name: str
    open: Callable[[Path], Runner]  # the model's folder


def prepare(folder: Path, model: str) -> None:
    """Write the source, its bundle, and the bundle with fp16 graphs of both flavours, unless they are there."""
    from benchmarks.contestants import write_source

    folder.mkdir(parents=True, exist_ok=True)
    write_source(folder, model)
    if (folder / "bundle").exists():
        return
    from edgeclip.export.api import ExportSettings, export_bundle
    from edgeclip.export.compress.bench import Graph
    from edgeclip.export.derive import NewVariant, derive_bundle, read_graph
    from edgeclip.export.precision import Request, convert
    from edgeclip.models.sources import load_source
    from edgeclip.runtime.fidelity import measure
    from edgeclip.runtime.threads import usable_cores

    settings = ExportSettings(overwrite=True)
    source = load_source(str(folder / "source"))
    exported = export_bundle(source, folder / "exported", settings=settings, tell=_say).bundle
    new, inputs = [], np.load(folder / "calibration.npy")[:8]
    for base in exported.manifest.variants_of("image"):
        _say(f"{base.id} to fp16", None)
        graph = read_graph(exported, base)
        half = convert(graph, "fp16", Request(inputs=inputs)).model
        wide, narrow = (
            Graph(one, inputs, usable_cores()).rows(np.arange(len(inputs))) for one in (graph, half)
        )
        axes = replace(base.axes, precision="fp16")
        variant = replace(
            base, id=axes.name("image"), axes=axes, requires={**base.requires, "engine": "gpu"},
            fidelity=replace(measure(narrow, wide), against=base.id),
        )  # fmt: skip
        new.append(NewVariant(variant, half))
    derive_bundle(
        exported,
        folder / "bundle",
        new,
        order=lambda found: sorted(found, key=lambda v: v.axes.precision != "fp32"),
    )


def _say(step: str, seconds: float | None) -> None:
    if seconds is None:
        print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)


def on_cpu(folder: Path) -> Runner:
    """What fidelity is measured against."""
    return on_engine("onnxruntime-cpu", "fp32")(folder)


def on_engine(name: str, precision: str, attention: str = "", batches: str = "") -> Callable[[Path], Runner]:
    """One of edgeclip's engines on the first graph of a precision that it opens.

    Args:
        attention: "decomposed" or "op"; "": either.
        batches: least:best:most, of an engine that is built for some; "": it takes any.
    """

    def start(folder: Path) -> Runner:
        from edgeclip.bundle import open_bundle
        from edgeclip.errors import EdgeClipError
        from edgeclip.export.prepare import build_engines
        from edgeclip.runtime.engines import EngineOptions, local_variants, open_variant, run
        from edgeclip.runtime.tensorrt.api import BuildSettings

        bundle = open_bundle(folder / "bundle")
        engines = folder / "engines"
        options = EngineOptions(engines=engines, provider_options=_shapes(name, bundle, batches))
        if batches and name not in PROFILES:
            settings = BuildSettings(
                precision=precision, towers=("image",), batches=(batches,), output=engines
            )
            build_engines(bundle, name, settings)
        every = {
            v.id: v for v in (*local_variants(name, bundle, options), *bundle.manifest.variants_of("image"))
        }
        fitting = [
            v for v in every.values() if v.axes.precision == precision and attention in ("", v.axes.attention)
        ]
        reasons: list[EdgeClipError] = []
        for variant in fitting:
            try:
                engine = open_variant(name, bundle, variant, options)
            except EdgeClipError as error:
                reasons.append(error)
                continue
            break
        else:
            raise reasons[0] if reasons else LookupError(f"no {precision} graph")

        def prepare(pixels: Array) -> Call:
            slot = engine.slot(len(pixels))
            slot.inputs[variant.inputs[0].name][:] = pixels
            return lambda: run(engine, slot)[variant.outputs[0].name]

        return Runner(prepare, f"{engine.provider}, {variant.id}")

    return start


def _shapes(name: str, bundle: Any, batches: str) -> dict[str, str]:
    """The batches as options of onnxruntime's TensorRT providers; {} for the other engines."""
    if name not in PROFILES:
        return {}
    from edgeclip.runtime.engines.onnxruntime_tensorrt import shapes
    from edgeclip.runtime.tensorrt.profiles import parse_batch

    return shapes(bundle.manifest.variants_of("image")[0], {"N": parse_batch(batches)}, PROFILES[name])


def _torch(compiled: bool) -> Callable[[Path], Runner]:
    """transformers' own model in fp16; compiled: with CUDA graphs, which is what makes small batches fast."""

    def start(folder: Path) -> Runner:
        import tests.torchvision_shim  # noqa: F401, I001  (before transformers)
        import torch
        import transformers

        model: Any = (
            transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "source").half().cuda().eval()
        )

        def embed(pixels: Any) -> Any:
            return torch.nn.functional.normalize(
                model(pixel_values=pixels.half()).image_embeds.float(), dim=-1
            )

        forward = torch.compile(embed, mode="reduce-overhead", dynamic=False) if compiled else embed

        def prepare(pixels: Array) -> Call:
            pinned = torch.from_numpy(np.ascontiguousarray(pixels)).pin_memory()

            def call() -> Array:
                with torch.inference_mode():
                    found: Array = forward(pinned.to("cuda", non_blocking=True)).cpu().numpy()
                return found

            return call

        return Runner(prepare, f"torch {torch.__version__}, {model.config._attn_implementation}")

    return start


MOST = "1:8:128"
CONTESTANTS = (
    Contestant("torch.compile fp16", _torch(True)),  # what the others are compared with
    Contestant("torch eager fp16", _torch(False)),
    Contestant("edgeclip onnxruntime-cuda fp32", on_engine("onnxruntime-cuda", "fp32")),
    *(
        Contestant(
            f"edgeclip onnxruntime-cuda fp16, {words}", on_engine("onnxruntime-cuda", "fp16", attention)
        )
        for attention, words in (("decomposed", "decomposed"), ("op", "Attention operator"))
    ),
    *(
        Contestant(f"edgeclip {name} fp16", on_engine(name, "fp16", batches=MOST))
        for name in ("tensorrt", "tensorrt-rtx", *PROFILES)
    ),
)
