"""The programs that are compared: each turns JPEG bytes into one of the labels, with the same weights and threads.

Every peer is set up as its own documentation advises; label vectors are computed once and kept, as edgeclip keeps them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

LABELS = [
    "a cat", "a dog", "a bus", "a train", "a person", "a bicycle", "a horse", "a pizza", "a boat", "a chair",
    "an elephant", "a giraffe", "a bird", "a car", "a clock", "a kitchen", "a bear", "a kite", "a laptop", "a tennis player",
]  # fmt: skip
TEMPLATE = "a photo of a {}."

Classify = Callable[[bytes], str]


def edgeclip(work: Path, threads: int) -> Classify:
    """This package, labels as texts."""
    import edgeclip

    model = edgeclip.load(work / "bundle", threads=threads)
    return lambda data: str(model.classify(data, LABELS, [TEMPLATE]).label)


def edgeclip_pack(work: Path, threads: int) -> Classify:
    """This package, labels from a pack: no text tower, no tokenizer."""
    import edgeclip

    model = edgeclip.load(work / "bundle", threads=threads)
    pack = edgeclip.LabelPack.open(work / "labels.pack")
    return lambda data: str(model.classify(data, pack).label)


def transformers(work: Path, threads: int) -> Classify:
    """CLIPModel in PyTorch with the fast image processor."""
    import torch

    torch.set_num_threads(threads)
    model, processor, texts = _huggingface(work)
    scale = model.logit_scale.exp()

    def classify(data: bytes) -> str:
        with torch.inference_mode():
            found = model.get_image_features(pixel_values=_pixels(processor, data, "pt"))
            rows = _unit(getattr(found, "pooler_output", found))
            return LABELS[int((scale * rows @ texts.T).softmax(-1).argmax())]

    return classify


def onnxruntime(work: Path, threads: int) -> Classify:
    """A plain export of transformers' model in onnxruntime, with transformers' image processor."""
    import numpy as np
    import onnxruntime
    import torch

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(work / "plain.onnx", options, providers=["CPUExecutionProvider"])
    processor, texts = _image_processor(work), np.load(work / "texts.npy")

    def classify(data: bytes) -> str:
        rows = session.run(None, {"pixel_values": _pixels(processor, data, "np")})[0]
        return LABELS[int((rows / np.linalg.norm(rows, axis=1, keepdims=True) @ texts.T).argmax())]

    return classify


def openvino(work: Path, threads: int) -> Classify:
    """The same plain export in OpenVINO at fp32, latency hint, with transformers' image processor."""
    import numpy as np
    import openvino
    import torch

    torch.set_num_threads(threads)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(work / "plain.onnx", "CPU", settings)
    processor, texts = _image_processor(work), np.load(work / "texts.npy")

    def classify(data: bytes) -> str:
        rows = compiled({"pixel_values": _pixels(processor, data, "np")})[0]
        return LABELS[int((rows / np.linalg.norm(rows, axis=1, keepdims=True) @ texts.T).argmax())]

    return classify


PEERS: dict[str, Callable[[Path, int], Classify]] = {
    "edgeclip": edgeclip,
    "edgeclip, label pack": edgeclip_pack,
    "transformers": transformers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def prepare(work: Path, bundle: Path | None) -> None:
    """Write once what the peers load: a random ViT-B/32, its plain export, the label vectors, the bundle and a label pack."""
    import numpy as np
    import torch
    import transformers

    _shim()
    checkpoint = work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        from tests.checkpoints import clip_vocabulary, roughen

        torch.manual_seed(0)
        model = transformers.CLIPModel(transformers.CLIPConfig()).eval()
        roughen(model)
        model.save_pretrained(checkpoint)
        vocabulary, merges = clip_vocabulary()
        transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(checkpoint)
        transformers.CLIPImageProcessor().save_pretrained(checkpoint)
    if not (work / "plain.onnx").exists():
        model, _, texts = _huggingface(work)
        np.save(work / "texts.npy", texts.numpy())
        vision = transformers.CLIPVisionModelWithProjection.from_pretrained(checkpoint).eval()
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            _Features(vision), (torch.randn(2, 3, 224, 224),), dynamo=True, input_names=["pixel_values"],
            output_names=["image_embeds"], dynamic_shapes=({0: batch},),
        )  # fmt: skip
        program.save(str(work / "plain.onnx"), external_data=True)
    if not (work / "bundle").exists():
        _bundle(work, checkpoint, bundle)
    if not (work / "labels.pack").exists():
        import edgeclip

        with edgeclip.load(work / "bundle") as packed:
            packed.make_labels(LABELS, [TEMPLATE]).save(work / "labels.pack")


def _bundle(work: Path, checkpoint: Path, bundle: Path | None) -> None:
    import shutil
    import subprocess
    import sys

    if bundle is not None:
        shutil.copytree(bundle, work / "bundle")
    else:
        subprocess.run(
            [sys.executable, "-m", "edgeclip", "export", checkpoint, "-o", work / "bundle"], check=True
        )


def _Features(vision: Any) -> Any:
    from torch import nn

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = vision

        def forward(self, pixel_values: Any) -> Any:
            return self.vision(pixel_values=pixel_values).image_embeds

    return Features()


def _huggingface(work: Path) -> tuple[Any, Any, Any]:
    import torch
    import transformers

    _shim()
    model = transformers.CLIPModel.from_pretrained(work / "checkpoint").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(work / "checkpoint")
    prompts = tokenizer(
        [TEMPLATE.replace("{}", label) for label in LABELS], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        found = model.get_text_features(**prompts)
    return model, _image_processor(work), _unit(getattr(found, "pooler_output", found))


def _image_processor(work: Path) -> Any:
    _shim()
    import transformers

    return transformers.CLIPImageProcessor.from_pretrained(work / "checkpoint")


def _pixels(processor: Any, data: bytes, kind: str) -> Any:
    from PIL import Image

    return processor(images=Image.open(io.BytesIO(data)), return_tensors=kind)["pixel_values"]


def _unit(rows: Any) -> Any:
    return rows / rows.norm(dim=-1, keepdim=True)


def _shim() -> None:
    import tests.torchvision_shim  # noqa: F401  (torchvision beside a torch that it was not built for)
