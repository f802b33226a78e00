"""How far a loaded source is from the library that wrote its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from edgeclip.models.source import Source
from edgeclip.models.sources import load_source, save_source
from tests.checkpoints import TEXTS, fixed_pixels

# Noise on unit vectors is 2e-7 at most; the faults that the tests plant move them by 4e-6 and more.
TOLERANCE = 1e-6


def hf_outputs(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit image and text embeddings of a transformers CLIPModel."""
    with torch.no_grad():
        image, text = model.get_image_features(pixels), model.get_text_features(ids)
    return normalize(image.pooler_output, dim=-1), normalize(text.pooler_output, dim=-1)


def our_outputs(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit image and text embeddings of a model of ours, or of open_clip's: both offer encode_image and encode_text."""
    with torch.no_grad():
        return normalize(model.encode_image(pixels), dim=-1), normalize(model.encode_text(ids), dim=-1)


def inputs(source: Source, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels for the tower, and ids as the source's own tokenizer and settings make them, padded to the full length."""
    from tokenizers import Tokenizer

    tokenizer, text = Tokenizer.from_str(source.tokenizer_json.decode()), source.text
    rows = []
    for sentence in TEXTS:
        ids = tokenizer.encode(sentence).ids
        if len(ids) > text.context_length:
            ids = [*ids[: text.context_length - 1], ids[-1]]
        rows.append(ids + [text.pad_id] * (text.context_length - len(ids)))
    return fixed_pixels(n, *source.preprocessing.size), torch.tensor(rows)


def assert_saves_and_loads(source: Source, folder: Path) -> None:
    """Through edgeclip's own checkpoint: the same model, and the same of everything that a bundle must know."""
    save_source(
        folder,
        model=source.model,
        preprocessing=source.preprocessing,
        text=source.text,
        tokenizer_json=source.tokenizer_json,
        licence=source.licence,
    )
    again = load_source(str(folder))
    assert (again.preprocessing, again.text, again.pooling) == (
        source.preprocessing,
        source.text,
        source.pooling,
    )
    assert again.model.config == source.model.config
    torch.testing.assert_close(again.model.state_dict(), source.model.state_dict(), rtol=0, atol=0)
    assert (folder / "tokenizer.json").is_file() is (source.text is not None)


def worst(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> tuple[float, ...]:
    """Largest absolute difference of each pair."""
    return tuple(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def assert_agrees(
    source: Source, theirs: tuple[torch.Tensor, torch.Tensor], ours: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Both towers within TOLERANCE, and different inputs really apart (a constant output agrees with anything)."""
    for name, a, b in zip(("image", "text"), theirs, ours, strict=True):
        assert a.shape == b.shape == (len(a), source.embedding_dim)
        assert torch.linalg.vector_norm(a[0] - a[1]) > 0.1, f"{name}: inputs make no difference"
        torch.testing.assert_close(
            b, a, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
