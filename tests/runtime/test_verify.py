"""`verify`: a good bundle passes, and each kind of damage is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

from edgeclip.bundle import Bundle, seal
from edgeclip.errors import CheckFailed
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.memory import BUFFER_BYTES, available_memory, estimate_memory
from edgeclip.runtime.text import TextEncoder
from edgeclip.runtime.verify import verify
from tests.runtime.toy import (
    PREPROCESSING,
    TEXT,
    image_reference,
    make_bundle,
    picture,
    text_reference,
    tokenizer,
)

TEXTS = ["a cat", "a photo of a dog", "bicycle"]


def with_golden(folder: Path, change: Callable[[dict[str, Any]], None] = lambda arrays: None) -> Bundle:
    """The toy bundle with a golden file, whose arrays `change` may spoil."""
    bundle = make_bundle(folder)
    pictures = [picture(seed) for seed in range(3)]
    pixels = np.stack([preprocess(one, PREPROCESSING) for one in pictures])
    ids = TextEncoder(tokenizer(), TEXT).encode(TEXTS).input_ids
    arrays: dict[str, Any] = {
        **{f"pictures/{i}": one for i, one in enumerate(pictures)},
        "pixels": pixels,
        "image_embeddings": image_reference(pixels).astype(np.float32),
        "input_ids": ids,
        "text_embeddings": text_reference(ids).astype(np.float32),
    }
    change(arrays)
    save_file(arrays, folder / "golden.safetensors", {"texts": json.dumps(TEXTS)})
    return seal(folder, replace(bundle.manifest, golden="golden.safetensors"))


def failed(bundle: Bundle) -> dict[str, str]:
    return {check.name: check.detail for check in verify(bundle, threads=1).checks if not check.passed}


def test_a_good_bundle_passes(tmp_path: Path) -> None:
    report = verify(with_golden(tmp_path / "b"), threads=1)
    assert [check.name for check in report.checks] == [
        "hashes", "golden file", "preprocessing", "tokenizer", "image-fp32", "text-fp32",
    ]  # fmt: skip
    assert all(check.passed for check in report.checks), report
    assert report.to_dict()["passed"] is True
    report.require()
    assert "3 golden rows" in report.checks[-1].detail


def test_a_bundle_without_golden_inputs_is_still_run(tmp_path: Path) -> None:
    report = verify(make_bundle(tmp_path / "b"), threads=1)
    report.require()
    assert report.checks[-1].detail == "2 made-up inputs, finite and different"


@pytest.mark.parametrize(
    ("name", "spoil", "check", "detail"),
    [
        ("pixels", lambda a: a["pixels"].__iadd__(0.05), "preprocessing", "levels of 255 from the golden"),
        ("ids", lambda a: a["input_ids"].__iadd__(1), "tokenizer", "not the golden ones"),
        ("image", lambda a: a["image_embeddings"].__iadd__(1e-5), "image-fp32", "from the golden rows"),
        (
            "text",
            lambda a: a["text_embeddings"].__iadd__(np.float32("nan")),
            "text-fp32",
            "nan from the golden rows",
        ),
    ],
)
def test_what_differs_is_named(tmp_path: Path, name: str, spoil: Any, check: str, detail: str) -> None:
    found = failed(with_golden(tmp_path / "b", spoil))
    assert check in found
    assert detail in found[check]


def test_one_changed_byte_stops_before_any_graph_is_opened(tmp_path: Path) -> None:
    bundle = with_golden(tmp_path / "b")
    path = bundle.path("graphs/text-fp32.onnx")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    report = verify(bundle, threads=1)
    assert [check.name for check in report.checks] == ["hashes"]
    with pytest.raises(CheckFailed, match=r"hashes: .*text-fp32\.onnx: SHA-256"):
        report.require()


@pytest.mark.parametrize(
    ("value", "detail"),
    [(np.nan, "not finite"), (0.0, "not finite|not of unit length"), (1.0, "the same row for different")],
)
def test_sick_graphs_are_refused_even_without_golden_inputs(
    tmp_path: Path, value: float, detail: str
) -> None:
    bundle = make_bundle(tmp_path / "b")
    path = bundle.path("graphs/image-fp32.onnx")
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    sick = np.full_like(weight, value)  # all ones: every picture gives a multiple of the same row
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(sick, "weight"))
    if value == 1.0:  # positive inputs only, so that the sign cannot differ
        node = onnx.helper.make_node("Abs", ["pixels"], ["positive"])
        model.graph.node.insert(0, node)
        model.graph.node[1].input[0] = "positive"
    onnx.save(model, path)
    found = failed(seal(bundle.root, bundle.manifest))
    assert set(found) == {"image-fp32"}
    assert any(part in found["image-fp32"] for part in detail.split("|"))


def test_memory_estimate_counts_every_file_once(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    variant = bundle.manifest.variants[0]
    size = (bundle.root / variant.files[0]).stat().st_size
    assert estimate_memory(bundle, variant) == size + BUFFER_BYTES
    assert (available_memory() or 1 << 30) > 1 << 20
