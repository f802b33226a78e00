"""Every family against the library that it comes from: embeddings, token ids and pixels, at real width and resolution."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch.nn.functional import normalize

from edgeclip.models.detector import DetectorModel
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.text import TextEncoder
from tests.checkpoints import TEXTS, fixed_pixels
from tests.corpus import corpus
from tests.families import SLOW, Written, models, tiered
from tests.photographs import pictures

MODELS = models()


@cache
def the_corpus() -> list[str]:
    """Some 1,400 texts of every script: whether a family has its tokenizer. The tests of each tokenizer read all."""
    texts = corpus()
    return [*texts[:300], *texts[300::5]]


def encoded(source: Source, texts: list[str]) -> NDArray[np.int32]:
    assert source.text is not None
    settings = replace(source.text, dynamic_length=False)
    encoder = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), settings)
    return encoder.encode(texts).input_ids


def check_towers(source: Source, written: Written) -> tuple[float, float]:
    """-> largest difference of unit image and text vectors (0 for a tower that is not there); fails beyond the tolerance."""
    found = [0.0, 0.0]
    with torch.no_grad():
        for i, (name, theirs) in enumerate((("image", written.image), ("text", written.text))):
            assert (theirs is None) == (getattr(source.model, name) is None), (
                f"{name}: one has it, one has not"
            )
            if theirs is None:
                continue
            if name == "image":
                assert source.preprocessing is not None
                inputs, ours = fixed_pixels(2, *source.preprocessing.size), source.model.encode_image
            else:
                # of 512 tokens, three tell as much as five and take seconds less
                texts = (
                    TEXTS if source.text and source.text.context_length <= 77 else TEXTS[1::2] + TEXTS[-1:]
                )
                inputs, ours = torch.from_numpy(encoded(source, texts)).long(), source.model.encode_text
            want, got = normalize(theirs(inputs), dim=-1), normalize(ours(inputs), dim=-1)
            assert want.shape == got.shape == (len(inputs), source.embedding_dim)
            assert torch.linalg.vector_norm(want[0] - want[1]) > 0.01, f"{name}: inputs make no difference"
            found[i] = float((want - got).abs().max())
            assert found[i] <= written.tolerance, f"{name}: {found[i]:.1e} apart"
    return found[0], found[1]


def check_detector(source: Source, written: Written) -> tuple[float, float]:
    """-> largest difference of a box, as a share of the side, and of a score (0 without a detector); fails beyond the tolerance."""
    if written.detect is None:
        assert source.detection is None
        return 0.0, 0.0
    assert source.preprocessing is not None
    assert isinstance(source.model, DetectorModel)
    pixels = fixed_pixels(2, *source.preprocessing.size)
    ids = torch.from_numpy(encoded(source, TEXTS)).long()
    with torch.no_grad():
        want, regions = written.detect(pixels, ids), source.model.detector(pixels)
        scores = source.model.logits(pixels, ids).sigmoid()
    assert float(want.scores.std(dim=2).mean()) > 0.001, "texts make no difference"
    found = {
        "boxes": (want.boxes, regions.boxes),
        "scores": (want.scores, scores),
        "embeddings": (want.embeddings, normalize(regions.embeddings, dim=-1)),
    }
    if want.objectness is not None:
        found["objectness"] = (want.objectness, regions.objectness)
    assert (want.objectness is None) == (regions.objectness is None)
    apart = {name: float((theirs - ours).abs().max()) for name, (theirs, ours) in found.items()}
    assert max(apart.values()) <= 4 * written.tolerance, apart  # a logit is up to 20 cosines
    return apart["boxes"], apart["scores"]


@pytest.mark.parametrize("name", tiered(lambda name: name not in SLOW))
def test_embeddings_ids_and_pixels_are_the_librarys_own(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path / "source", "real")
    source = load_source(written.spec, **(written.load or {}))
    check_towers(source, written)
    check_detector(source, written)
    if written.tokenize is not None:
        check_ids(source, written)
    if written.prepare is not None:
        check_pixels(source, written, tmp_path)


def check_ids(source: Source, written: Written) -> None:
    assert written.tokenize is not None
    texts = the_corpus()
    ours, theirs = encoded(source, texts), written.tokenize(texts)
    assert ours.shape == theirs.shape
    wrong = np.flatnonzero((ours != theirs).any(axis=1))
    shown = [(texts[i], ours[i].tolist(), theirs[i].tolist()) for i in wrong[:3]]
    assert not len(wrong), f"{len(wrong)} of {len(texts)} texts have other ids: {shown}"


def check_pixels(source: Source, written: Written, folder: Path) -> None:
    """Within one level of 255 on every pixel, on pictures of several shapes."""
    assert written.prepare is not None
    assert source.preprocessing is not None
    spec = source.preprocessing
    levels = np.array(spec.std, np.float32)[:, None, None] * 255
    for path in pictures(folder / "pictures", 4):
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        for picture in (
            whole,
            whole.rotate(90, expand=True),
            whole.resize((301, 97)),
            whole.resize((64, 64)),
        ):
            ours, theirs = preprocess(picture, spec), written.prepare(picture)
            assert ours.shape == theirs.shape
            assert float((np.abs(ours - theirs) * levels).max()) <= 1.01
