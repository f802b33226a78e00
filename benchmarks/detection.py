"""JPEG bytes to boxes: edgeclip beside transformers and plain onnxruntime, OWL-ViT B/32 at 768 pixels, on this machine, in one run.

    python -m benchmarks.detection --images photos/

Random weights at the real shape: for speed and agreement, not for accuracy. One process a peer and round, one after another, in an
order that changes from round to round. NanoOWL and roboflow's inference need a GPU, YOLO-World is another model: none of them is here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat", "a person", "a red car", "a cup", "a dog", "a bicycle", "a chair", "a clock"]
OTHERS = ["a bus", "a train", "a horse", "a pizza", "a boat", "a bird", "a kite", "a laptop"]
THRESHOLD = 0.1
WARM, TIMED = 2, 10

Found = list[tuple[float, tuple[float, ...]]]  # score, box in pixels
Detect = Callable[[bytes], Found]


def transformers(work: Path, threads: int) -> Detect:
    """As its documentation has it: processor, model, post-processing; texts are embedded with each picture."""
    model, processor = _huggingface(work, threads)

    def detect(data: bytes) -> Found:
        import torch

        picture = _open(data)
        with torch.inference_mode():
            outputs = model(**processor(text=[PROMPTS], images=picture, return_tensors="pt"))
        return _boxes(processor, outputs, picture)

    return detect


def transformers_kept(work: Path, threads: int) -> Detect:
    """The same with texts embedded once, as NanoOWL does it: image tower, class head, box head."""
    import torch

    model, processor = _huggingface(work, threads)
    with torch.inference_mode():
        ids = processor(text=[PROMPTS], images=_blank(), return_tensors="pt")
        queries = model(**ids).text_embeds

    def detect(data: bytes) -> Found:
        picture = _open(data)
        pixels = processor(images=picture, return_tensors="pt").pixel_values
        with torch.inference_mode():
            features, _ = model.image_embedder(pixels)
            rows = features.flatten(1, 2)
            logits, _ = model.class_predictor(rows, queries)
            outputs = _Outputs(logits, model.box_predictor(rows, features))
        return _boxes(processor, outputs, picture)

    return detect


def onnxruntime(work: Path, threads: int) -> Detect:
    """torch.onnx.export of transformers' whole model, texts as an input, with transformers' processor."""
    import onnxruntime as ort
    import torch

    _, processor = _huggingface(work, threads)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(work / "plain.onnx", settings, providers=["CPUExecutionProvider"])

    def detect(data: bytes) -> Found:
        picture = _open(data)
        inputs = processor(text=[PROMPTS], images=picture, return_tensors="np")
        logits, boxes = session.run(
            ["logits", "pred_boxes"], {i.name: inputs[i.name] for i in session.get_inputs()}
        )
        return _boxes(processor, _Outputs(torch.from_numpy(logits), torch.from_numpy(boxes)), picture)

    return detect


def edgeclip(variant: str) -> Callable[[Path, int], Detect]:
    """This package, one flavour of its graph; texts are kept."""

    def start(work: Path, threads: int) -> Detect:
        import edgeclip

        model = edgeclip.load(work / "bundle", threads=threads, variants=[variant])
        return lambda data: _rows(
            model.detect(data, PROMPTS, threshold=THRESHOLD, nms_iou=1.0, max_detections=1 << 20)
        )

    return start


def other_prompts(work: Path, threads: int) -> Detect:
    """This package, the same picture asked for other things: the image tower does not run again."""
    import edgeclip

    model = edgeclip.load(work / "bundle", threads=threads)
    kept: dict[bytes, Any] = {}
    turn = [PROMPTS, OTHERS]

    def detect(data: bytes) -> Found:
        turn.reverse()
        if data not in kept:
            kept[data] = model.propose(data)
        return _rows(model.detect_in(kept[data], turn[0], threshold=THRESHOLD))

    return detect


PEERS: dict[str, Callable[[Path, int], Detect]] = {
    "transformers": transformers,
    "transformers, texts kept": transformers_kept,
    "onnxruntime, plain export": onnxruntime,
    "edgeclip fp32, decomposed": edgeclip("detector-fp32-decomposed"),
    "edgeclip fp32, Attention operator": edgeclip("detector-fp32-op"),
    "edgeclip, other prompts of the same picture": other_prompts,
}


def main() -> None:
    """Parse, prepare, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/detection")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/detection")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.work, options.threads, options.child)
        return
    from benchmarks.machine import describe

    machine = describe()
    _prepare(options.work, options.images)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    for number in range(options.rounds):
        names = list(PEERS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.detection", "--work", str(options.work)]
            command += ["--threads", str(options.threads), "--child", name]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
            answer = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
            if answer.returncode:
                raise SystemExit(f"{name}: {answer.stderr.strip()[-2000:]}")
            runs[name].append(json.loads(answer.stdout))
    _write(options.output, machine, runs)


def _child(work: Path, threads: int, name: str) -> None:
    import resource

    detect = PEERS[name](work, threads)
    pictures = [path.read_bytes() for path in sorted((work / "pictures").iterdir())]
    for data in pictures[:WARM]:
        detect(data)
    ms, found = [], []
    for data in pictures[WARM : WARM + TIMED]:
        detect(data) if "other prompts" in name else None
        begun = time.perf_counter_ns()
        result = detect(data)
        ms.append((time.perf_counter_ns() - begun) / 1e6)
        found.append(sorted(result, reverse=True))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": ms, "found": found, "peak_mb": peak_mb}))


def _write(output: Path, machine: dict[str, str], runs: dict[str, list[dict[str, Any]]]) -> None:
    reference = runs["transformers"][0]["found"]
    base = _p50(runs["transformers"])
    lines = [
        "# Open-vocabulary detection, JPEG bytes to boxes",
        "",
        f"OWL-ViT B/32 at 768 pixels, random weights, {len(PROMPTS)} prompts, {len(runs['transformers'])} rounds of {TIMED} photographs; "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_1min']} before it. Written by `python -m benchmarks.detection`.",
        "",
        "| | p50 ms | beside transformers | peak MB | boxes | of these as transformers' | largest difference, px | of a score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    summary: dict[str, Any] = {"machine": machine, "peers": {}}
    for name, rounds in runs.items():
        p50, peak = _p50(rounds), max(r["peak_mb"] for r in rounds)
        cells = ["", "", "", ""]
        facts: dict[str, Any] = {"p50_ms": p50, "rounds_p50_ms": [_p50([r]) for r in rounds], "peak_mb": peak}
        if "other prompts" not in name:
            facts |= _agreement(reference, rounds[0]["found"])
            cells = [
                str(facts["boxes"]),
                f"{facts['matched']:.1%}",
                f"{facts['box_px']:.3f}",
                f"{facts['score']:.1e}",
            ]
        lines.append(f"| {name} | {p50:.1f} | {base / p50:.2f}x | {peak:.0f} | {' | '.join(cells)} |")
        summary["peers"][name] = facts
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join(lines))


def _p50(rounds: list[dict[str, Any]]) -> float:
    return statistics.median(ms for r in rounds for ms in r["ms"])


def _agreement(reference: list[Any], found: list[Any]) -> dict[str, Any]:
    """How many of the boxes the reference has too (a corner within 1 px, score within 0.01), and how far those are."""
    import numpy as np

    boxes = matched = 0
    box_px = score = 0.0
    for want, got in zip(reference, found, strict=True):
        boxes += len(got)
        if not want or not got:
            continue
        a = np.array([[s, *b] for s, b in want])
        b = np.array([[s, *b] for s, b in got])
        px = np.abs(a[None, :, 1:] - b[:, None, 1:]).max(2)
        nearest = px.argmin(1)
        off_px, off = px[np.arange(len(b)), nearest], np.abs(b[:, 0] - a[nearest, 0])
        good = (off_px < 1) & (off < 0.01)
        matched += int(good.sum())
        if good.any():
            box_px, score = max(box_px, float(off_px[good].max())), max(score, float(off[good].max()))
    return {"boxes": boxes, "matched": matched / max(boxes, 1), "box_px": box_px, "score": score}


class _Outputs:
    def __init__(self, logits: Any, pred_boxes: Any) -> None:
        self.logits, self.pred_boxes = logits, pred_boxes


def _boxes(processor: Any, outputs: Any, picture: Any) -> Found:
    found = processor.post_process_grounded_object_detection(
        outputs, threshold=THRESHOLD, target_sizes=[picture.size[::-1]]
    )[0]
    width, height = picture.size
    limits = [width, height, width, height]
    return [
        (s, tuple(min(max(x, 0.0), m) for x, m in zip(box, limits, strict=True)))
        for s, box in zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    ]


def _rows(found: Any) -> Found:
    """The best label of each region alone, as transformers has it; what is found stands best first."""
    best: dict[tuple[float, ...], float] = {}
    for score, box in zip(found.scores.tolist(), map(tuple, found.boxes.tolist()), strict=True):
        best.setdefault(box, score)
    return [(score, box) for box, score in best.items()]


def _open(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))


def _huggingface(work: Path, threads: int) -> tuple[Any, Any]:
    import torch

    _shim()
    from transformers import OwlViTForObjectDetection, OwlViTProcessor

    torch.set_num_threads(threads)
    model = OwlViTForObjectDetection.from_pretrained(work / "checkpoint").eval()
    return model, OwlViTProcessor.from_pretrained(work / "checkpoint")


def _shim() -> None:
    """torchvision must import without its compiled part; needed before transformers' detectors."""
    import tests.torchvision_shim  # noqa: F401


def _prepare(work: Path, images: Path | None) -> None:
    """Checkpoint, bundle, plain export and photographs, each made once."""
    import shutil

    work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle, plain = work / "checkpoint", work / "bundle", work / "plain.onnx"
    if not (checkpoint / "config.json").is_file():
        _shim()
        from tests.families.owlvit import write_owl

        write_owl(checkpoint, "owlvit-base-patch32", "full")
    if not bundle.is_dir():
        subprocess.run([sys.executable, "-m", "edgeclip", "export", checkpoint, "-o", bundle], check=True)
    if not plain.is_file():
        _plain(work, plain)
    pictures = work / "pictures"
    if images is not None or not pictures.is_dir():
        from benchmarks.photographs import PHOTOGRAPHS, find_photographs

        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir()
        for i, path in enumerate(find_photographs(images or PHOTOGRAPHS)[: WARM + TIMED]):
            shutil.copy(path, pictures / f"{i:03}{path.suffix}")


def _plain(work: Path, plain: Path) -> None:
    import torch

    model, processor = _huggingface(work, 2)
    inputs = processor(text=[PROMPTS], images=_blank(), return_tensors="pt")

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, pixel_values: Any) -> Any:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
            return found.logits, found.pred_boxes

    names = ["input_ids", "attention_mask", "pixel_values"]
    torch.onnx.export(
        Whole().eval(), tuple(inputs[n] for n in names), plain, dynamo=True, input_names=names, output_names=["logits", "pred_boxes"],
        verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
