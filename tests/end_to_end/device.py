"""Runs as a program of its own: `python device.py BUNDLE JOB.json PIXELS.npy OUT.npz`, on a device without PyTorch.

JOB.json holds {"pictures": [...], "texts": [...], "labels": [...]}.
"""

import json
import sys

FORBIDDEN = ("torch", "torchvision", "transformers", "timm", "open_clip", "onnx", "onnxscript")


class Absent:
    """As if the heavy libraries were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{name}: not on this device", name=name)


def main(bundle: str, job_file: str, pixel_file: str, out: str) -> None:
    """Embed and classify; write the arrays."""
    import numpy as np
    import onnxruntime

    import edgeclip

    with open(job_file, encoding="utf-8") as stream:
        job = json.load(stream)
    with edgeclip.load(bundle, threads=2) as model:
        results = model.classify(job["pictures"], job["labels"])
        order = np.argsort([result.label_indices for result in results], axis=1)
        np.savez(
            out,
            pixels=model.embed_pixels(np.load(pixel_file)),
            images=model.embed_images(job["pictures"]),
            texts=model.embed_texts(job["texts"]),
            scores=np.take_along_axis(np.array([result.scores for result in results]), order, axis=1),
            best=np.array([result.label_index for result in results]),
            variants=np.array([used["variant"] for used in model.info().towers.values()]),
            onnxruntime=np.array(onnxruntime.__version__),
        )
    assert not set(FORBIDDEN) & set(sys.modules)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    main(*sys.argv[1:])
