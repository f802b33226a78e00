"""Ask a Triton server which label fits each picture: `python triton_client.py clip-b32/ localhost:8000 'a cat,a dog' cat.png dog.png`

Needs `pip install edgeclip 'tritonclient[http]'`; no engine and no torch. Of the bundle only the manifest and the tokenizer are read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.http as http
from numpy.typing import NDArray

from edgeclip import Bundle, open_bundle
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.text import TextEncoder

TYPES = {"float32": "FP32", "int32": "INT32"}


def ask(client: Any, model: str, output: str, **arrays: NDArray[Any]) -> NDArray[Any]:
    """One request to one model."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(http.InferInput(name, list(array.shape), TYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer(model, inputs, outputs=[http.InferRequestedOutput(output)])
    return np.asarray(answer.as_numpy(output))


def label_vectors(client: Any, bundle: Bundle, labels: Sequence[str]) -> NDArray[np.float32]:
    """(P, D) unit rows: each label in every template, averaged. Worth keeping: labels change less often than pictures."""
    facts = bundle.manifest
    assert facts.text is not None, "the bundle has no text tower"
    texts = [template.replace("{}", label) for label in labels for template in facts.templates]
    ids = TextEncoder.open(bundle.path(facts.text.tokenizer), facts.text).encode(texts).input_ids
    rows = ask(client, "text", "embeddings", input_ids=ids).reshape(len(labels), len(facts.templates), -1)
    means = rows.mean(axis=1)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def scores(
    client: Any, bundle: Bundle, pictures: Sequence[str], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N, P) in 0-1."""
    spec = bundle.manifest.preprocessing
    assert spec is not None, "the bundle has no image tower"
    prepare, pixels = Preprocessor(spec), np.empty((len(pictures), 3, *spec.size), np.float32)
    for picture, row in zip(pictures, pixels, strict=True):
        prepare.into(picture, row)
    return ask(client, "zero_shot_prompts", "scores", pixels=pixels, prompt_embeddings=vectors)


def main() -> None:
    """Print the best label of each picture."""
    where, url, names, *pictures = sys.argv[1:]
    bundle, client, labels = open_bundle(where), http.InferenceServerClient(url), names.split(",")
    found = scores(client, bundle, pictures, label_vectors(client, bundle, labels))
    for picture, row in zip(pictures, found, strict=True):
        print(f"{picture}: {labels[int(row.argmax())]} {row.max():.3f}")


if __name__ == "__main__":
    main()
