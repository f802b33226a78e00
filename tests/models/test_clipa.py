"""CLIPA: faults that a comparison must catch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeclip.errors import SourceError
from edgeclip.models.sources import load_source
from tests.families.clipa import MODELS
from tests.models.agreement import TOLERANCE, inputs, our_outputs, worst
from tests.models.test_families import check_ids, check_pixels, check_towers

# section, what the fault changes, and which tower shows it
FAULTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "the norm before the mean": ("vision_cfg", {"final_ln_after_pool": False}, 0),
    "a causal text tower": ("text_cfg", {"no_causal_mask": False}, 1),
    "pooled at the largest id": ("text_cfg", {"pool_type": "argmax"}, 1),
    "pooled at the first token": ("text_cfg", {"pool_type": "first"}, 1),
}


def edit(folder: Path, section: str, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    data = json.loads(path.read_text())
    (data["model_cfg"] if section in data["model_cfg"] else data)[section].update(changes)
    path.write_text(json.dumps(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MODELS["ViT-L-14-CLIPA"](tmp_path / "source", "tiny")
    return tmp_path / "source"


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_exceed_the_tolerance(fault: str, folder: Path) -> None:
    source = load_source(str(folder))
    pixels, ids = inputs(source)
    want = our_outputs(source.model, pixels, ids)
    section, changes, tower = FAULTS[fault]
    edit(folder, section, **changes)
    found = worst(want, our_outputs(load_source(str(folder)).model, pixels, ids))
    assert found[tower] > 20 * TOLERANCE
    assert found[1 - tower] == 0


def test_other_pixels_and_ids_are_caught(tmp_path: Path) -> None:
    written = MODELS["ViT-L-14-CLIPA"](tmp_path / "source", "tiny")
    source = load_source(written.spec)
    check_towers(source, written)
    check_pixels(source, written, tmp_path)
    edit(tmp_path / "source", "preprocess_cfg", interpolation="bicubic")
    with pytest.raises(AssertionError):
        check_pixels(load_source(written.spec), written, tmp_path)
    from dataclasses import replace

    from tests.families.openclip_models import tokenize

    written = replace(written, tokenize=tokenize(tmp_path / "source"))
    edit(tmp_path / "source", "text_cfg", tokenizer_kwargs={"strip_sep_token": False})
    with pytest.raises(AssertionError, match="have other ids"):
        check_ids(load_source(written.spec), written)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("vision_cfg", {"no_ln_pre": False}, "visual.ln_pre.* is missing"),
        ("vision_cfg", {"pool_type": "tok", "attentional_pool": True}, "attn_pool.* is missing"),
        ("text_cfg", {"vocab_size": 49408}, "token_embedding.weight' has shape"),
        ("text_cfg", {"hf_tokenizer_name": ""}, "expected a tokenizer.json of a byte-pair encoding"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    section: str, changes: dict[str, Any], message: str, folder: Path
) -> None:
    edit(folder, section, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(folder))
    assert "\n" not in str(caught.value)


def test_texts_have_one_length(folder: Path) -> None:
    source = load_source(str(folder))
    assert source.text is not None
    assert (source.text.dynamic_length, source.text.context_length) == (False, 32)
    assert torch.equal(inputs(source)[1][:, -1], torch.zeros(5, dtype=torch.long)), (
        "the mark at the end is stripped"
    )
