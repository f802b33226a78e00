"""Ask a running Triton whether it answers as edgeclip does, and how it merges requests.

    edgeclip triton BUNDLE -o repository --cpu --labels 'a cat,a dog,a bicycle' --max-batch 8
    tritonserver --model-repository=repository --disable-auto-complete-config
    python -m benchmarks.triton_server BUNDLE localhost:8000 [--name NAME] [-o RESULTS]

Needs `pip install 'tritonclient[http]'`. Where there is no container: the wheel of nvidia-pytriton holds the server itself (2.51, which is
24.10) without its onnxruntime backend; that one compiles from its own source (r24.10, TRITON_ENABLE_GPU=OFF) against any newer
libonnxruntime.so.
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeclip
from benchmarks.machine import describe
from edgeclip.bundle import Bundle
from edgeclip.runtime.images import preprocess
from examples import triton_client

LABELS = ["a cat", "a dog", "a bicycle"]  # those of the repository
PICTURES = 5  # another number than LABELS
CLIENTS, REQUESTS = 16, 8  # threads, and requests of one picture by each


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bundle")
    parser.add_argument("url")
    parser.add_argument("--name", help="of the model in RESULTS; default: the bundle's")
    parser.add_argument("-o", "--output", type=Path, help="RESULTS; other models' entries stay")
    arguments = parser.parse_args()
    import tritonclient.http as http

    bundle = edgeclip.open_bundle(arguments.bundle)
    client = http.InferenceServerClient(arguments.url)
    report = {
        "machine": describe(),
        "server": client.get_server_metadata()["version"],
        "largest_difference": agreement(client, bundle),
        "refusals": refusals(client, bundle),
        "merged": merging(arguments.url, client, bundle),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        known[arguments.name or bundle.manifest.name] = report
        arguments.output.write_text(json.dumps(known, indent=1) + "\n")


def inputs(bundle: Bundle) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
    """Made-up pictures as pixels, the labels as ids, and the scores of `Model.classify` for both."""
    spec = bundle.manifest.preprocessing
    assert spec is not None
    rng = np.random.default_rng(0)
    pictures = [
        np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
        for _ in range(PICTURES)
    ]
    with edgeclip.load(bundle, engine="onnxruntime-cpu", decode="exact") as model:
        found = model.classify(pictures, LABELS)
        ids = model.encode_texts(
            [bundle.manifest.templates[0].replace("{}", label) for label in LABELS]
        ).input_ids
    want = np.array([[dict(result.ranked())[label] for label in LABELS] for result in found])
    return np.stack([preprocess(picture, spec) for picture in pictures]), ids, want


def agreement(client: Any, bundle: Bundle) -> dict[str, float]:
    """Largest difference of a score from `Model.classify`, by model."""
    pixels, ids, want = inputs(bundle)
    vectors = triton_client.label_vectors(client, bundle, LABELS)
    asked = {
        "zero_shot_prompts": {"pixels": pixels, "prompt_embeddings": vectors},
        "classifier": {"pixels": pixels},
        **(
            {"zero_shot": {"pixels": pixels, "input_ids": ids}} if len(bundle.manifest.templates) == 1 else {}
        ),
    }
    return {
        model: float(np.abs(triton_client.ask(client, model, "scores", **arrays) - want).max())
        for model, arrays in asked.items()
    }


def refusals(client: Any, bundle: Bundle) -> dict[str, str]:
    """What the server says to too many pictures, and to pictures of another size."""
    pixels, ids, _ = inputs(bundle)
    most = client.get_model_config("image")["max_batch_size"]
    many = np.repeat(pixels[:1], most + 1, axis=0)
    found = {}
    for name, model, arrays in (
        ("too many pictures", "zero_shot", {"pixels": many, "input_ids": ids}),
        ("another size", "image", {"pixels": np.ascontiguousarray(pixels[:, :, 1:])}),
    ):
        try:
            triton_client.ask(client, model, "scores" if model == "zero_shot" else "embeddings", **arrays)
            found[name] = "answered"
        except Exception as error:  # the client's own kind; its text is what we are after
            found[name] = str(error)
    return found


def merging(url: str, client: Any, bundle: Bundle) -> dict[str, int]:
    """Many clients with one picture each, through an ensemble that does not batch: do its steps?"""
    import tritonclient.http as http

    pixels, ids, _ = inputs(bundle)

    def count() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("image")["model_stats"]
        return int(stats["inference_count"]), int(stats["execution_count"])

    def work() -> None:
        own = http.InferenceServerClient(url)
        for _ in range(REQUESTS):
            triton_client.ask(own, "zero_shot", "scores", pixels=pixels[:1], input_ids=ids)

    before = count()
    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pictures, runs = (now - then for now, then in zip(count(), before, strict=True))
    return {"pictures": pictures, "runs": runs}


if __name__ == "__main__":
    main()
