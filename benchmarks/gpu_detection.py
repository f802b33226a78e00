"""Open-vocabulary detection on an NVIDIA GPU, JPEG bytes to boxes: edgeclip beside transformers, OWL-ViT B/32 at 768 pixels, in one run.

    python -m benchmarks.gpu_detection --images photos/

Needs what benchmarks.gpu needs. Weights are random, at the real shape: for speed and agreement, not for accuracy. Texts are embedded
once, for all contestants but the first. All are warm and take turns in an order that changes from round to round. NanoOWL and
roboflow's inference need TensorRT, which is not on the index, and are absent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection import PROMPTS, THRESHOLD, Found, _agreement, _boxes, _open, _Outputs, _rows, _shim
from benchmarks.gpu import ROOT, describe
from benchmarks.machine import describe as describe_machine
from edgeclip.files import write_file

Detect = Callable[[Sequence[bytes]], list[Found]]
TURN_S, WARM_UP = 0.4, 3


def prepare(work: Path) -> None:
    """The checkpoint, and the bundle of its image side in fp32 and fp16, unless they are there."""
    if (work / "bundle").exists():
        return
    _shim()
    from edgeclip.export.api import ExportSettings, export_bundle
    from edgeclip.export.derive import NewVariant, derive_bundle, read_graph
    from edgeclip.export.precision import Request, convert
    from edgeclip.models.sources import load_source
    from tests.families.owlvit import write_owl

    write_owl(work / "checkpoint", "owlvit-base-patch32", "full")
    source = load_source(str(work / "checkpoint"))
    source.model.text = None
    settings = ExportSettings(targets=("portable",), overwrite=True)
    source = replace(source, text=None, tokenizer_json=b"")
    exported = export_bundle(source, work / "exported", settings=settings, tell=_say).bundle
    size = source.preprocessing.size
    inputs = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    new = []
    for base in exported.manifest.variants_of("detector", "embeddings"):
        _say(f"{base.id} to fp16", None)
        half = convert(read_graph(exported, base), "fp16", Request(inputs=inputs)).model
        axes = replace(base.axes, precision="fp16")
        needs = {**base.requires, "engine": "gpu"}
        new.append(NewVariant(replace(base, id=axes.name("detector"), axes=axes, requires=needs), half))
    derive_bundle(exported, work / "bundle", new)


def _say(step: str, seconds: float | None) -> None:
    if seconds is None:
        print(f"{time.strftime('%H:%M:%S')} {step}", flush=True)


def transformers(work: Path, device: str, half: bool, kept: Any) -> Detect:
    """Its processor, model and post-processing; texts with each picture, or kept as rows."""
    import torch

    _shim()
    from transformers import OwlViTForObjectDetection, OwlViTProcessor

    model: Any = OwlViTForObjectDetection.from_pretrained(work / "checkpoint").eval().to(device)
    model = model.half() if half else model
    processor = OwlViTProcessor.from_pretrained(work / "checkpoint")
    queries = None if kept is None else torch.from_numpy(kept).to(device, model.dtype)[None]

    def detect(batch: Sequence[bytes]) -> list[Found]:
        pictures = [_open(data) for data in batch]
        texts = {} if queries is not None else {"text": [PROMPTS] * len(batch)}
        inputs = processor(images=pictures, return_tensors="pt", **texts).to(device)
        pixels = inputs.pixel_values.to(model.dtype)
        with torch.inference_mode():
            if queries is None:
                found: Any = model(**{**inputs, "pixel_values": pixels})
            else:
                features, _ = model.image_embedder(pixels)
                rows = features.flatten(1, 2)
                logits, _ = model.class_predictor(rows, queries.expand(len(batch), -1, -1))
                found = _Outputs(logits, model.box_predictor(rows, features))
            logits, boxes = found.logits.float().cpu(), found.pred_boxes.float().cpu()
        return [
            _boxes(processor, _Outputs(logits[i : i + 1], boxes[i : i + 1]), picture)
            for i, picture in enumerate(pictures)
        ]

    return detect


def queries(work: Path) -> Any:
    """(P, D) float32: the prompts as transformers embeds them."""
    import torch

    _shim()
    from transformers import OwlViTForObjectDetection, OwlViTProcessor

    model = OwlViTForObjectDetection.from_pretrained(work / "checkpoint").eval()
    inputs = OwlViTProcessor.from_pretrained(work / "checkpoint")(text=[PROMPTS], return_tensors="pt")
    with torch.inference_mode():
        rows = model.owlvit.text_projection(model.owlvit.text_model(**inputs)[1])
    return torch.nn.functional.normalize(rows, dim=-1).numpy()


def edgeclip(work: Path, engine: str, precision: str, rows: Any) -> tuple[Detect, str]:
    """This package, and what it really ran."""
    import edgeclip
    from edgeclip.runtime.labels import LabelPack

    bundle = edgeclip.open_bundle(work / "bundle")
    model = edgeclip.load(bundle, engine=engine, variants=[f"detector-{precision}-decomposed"])
    pack = LabelPack(tuple(PROMPTS), ("{}",), rows, bundle.manifest.model_id)

    def detect(batch: Sequence[bytes]) -> list[Found]:
        found = model.detect(
            list(batch), pack, threshold=THRESHOLD, nms_iou=1.0, max_detections=1 << 20, batch_size=len(batch)
        )
        return [_rows(one) for one in found]

    detect([_BLANK])
    used = model.info().towers["detector"]
    return detect, f"{used['provider']}, {used['variant']}"


def _blank() -> bytes:
    import io

    from PIL import Image

    held = io.BytesIO()
    Image.new("RGB", (64, 64)).save(held, "JPEG")
    return held.getvalue()


_BLANK = _blank()


def main() -> None:
    """Parse, look for a GPU, prepare, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/gpu-detection")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/gpu_detection")
    parser.add_argument(
        "--cpu", action="store_true", help="to try this script where there is no GPU: fp32 alone"
    )
    options = parser.parse_args()
    machine = describe_machine() if options.cpu else describe()
    prepare(options.work)
    pictures = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))[:16]]
    rows = queries(options.work)
    device, engine = ("cpu", "onnxruntime-cpu") if options.cpu else ("cuda", "onnxruntime-cuda")
    contestants: dict[str, tuple[Detect, str]] = {
        "transformers fp32": (transformers(options.work, device, False, None), "torch"),
        "transformers fp32, texts kept": (transformers(options.work, device, False, rows), "torch"),
        "edgeclip fp32": edgeclip(options.work, engine, "fp32", rows),
    }
    if not options.cpu:
        contestants["transformers fp16, texts kept"] = transformers(options.work, device, True, rows), "torch"
        contestants["edgeclip fp16"] = edgeclip(options.work, engine, "fp16", rows)
    found = {
        name: [one for data in pictures for one in detect([data])]
        for name, (detect, _) in contestants.items()
    }
    reference = [sorted(one, reverse=True) for one in found["transformers fp32"]]
    facts: dict[str, Any] = {
        name: {
            "uses": contestants[name][1],
            "batches": {},
            **_agreement(reference, [sorted(o, reverse=True) for o in one]),
        }
        for name, one in found.items()
    }
    for batch in options.batches:
        parts = [
            [pictures[(i + k) % len(pictures)] for k in range(batch)] for i in range(0, len(pictures), batch)
        ]
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(options.rounds):
            order = list(contestants)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                detect = contestants[name][0]
                for part in (parts * WARM_UP)[:WARM_UP] if not number else []:
                    detect(part)
                turn = time.perf_counter()
                i = 0
                while time.perf_counter() - turn < TURN_S:
                    begun = time.perf_counter_ns()
                    detect(parts[i % len(parts)])
                    times[name].append((time.perf_counter_ns() - begun) / 1e6)
                    i += 1
        for name, ms in times.items():
            p50, p90 = (float(v) for v in np.percentile(ms, [50, 90]))
            facts[name]["batches"][str(batch)] = {
                "p50_ms": round(p50, 2),
                "p90_ms": round(p90, 2),
                "per_s": round(1000 * batch / p50, 1),
            }
        write(options.output, machine, options, facts)
    print(options.output.with_suffix(".md").read_text())


def write(output: Path, machine: dict[str, str], options: Any, facts: dict[str, Any]) -> None:
    """The figures so far, as JSON and as a table."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output.with_suffix(".json"), json.dumps({"machine": machine, "peers": facts}, indent=1) + "\n")
    batches = list(next(iter(facts.values()))["batches"])
    heads = " | ".join(f"batch {b}: p50 | pictures/s" for b in batches)
    lines = [
        "# Open-vocabulary detection on a GPU, JPEG bytes to boxes",
        "",
        f"OWL-ViT B/32 at 768 pixels, random weights, {len(PROMPTS)} prompts, {options.rounds} rounds; "
        + ", ".join(f"{key} {value}" for key, value in machine.items())
        + ". Written by `python -m benchmarks.gpu_detection`.",
        "",
        f"| | {heads} | boxes | of these as transformers fp32 | really ran |",
        "|---" * (4 + 2 * len(batches)) + "|",
    ]
    for name, one in facts.items():
        cells = [f"{b['p50_ms']:.1f} ms | {b['per_s']:.0f}" for b in one["batches"].values()]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {one['boxes']} | {one['matched']:.1%} | {one['uses']} |"
        )
    write_file(output.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
