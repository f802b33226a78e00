"""MetaCLIP 2 that transformers wrote: pooling at the mark whose id is truly 2, and its SentencePiece vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from edgeclip.models.clip import Clip
from edgeclip.models.sources import load_source
from tests.checkpoints import TEXTS
from tests.corpus import corpus
from tests.families.metaclip_2 import write_metaclip_2
from tests.families.transformers_models import tokenize
from tests.models.agreement import TOLERANCE
from tests.models.test_siglip import CONFIG, TOKENIZER, edit, encoded, refused
from tests.sentencepieces import trained


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("metaclip2")
    return folder, write_metaclip_2(folder)


# Of a text config: what CLIP's loader would make of the same file, and what else goes wrong silently.
FAULTS = {
    "CLIP's rule for id 2: the largest id": {"pool": "argmax"},
    "the last position": {"pool": "last"},
    "no causal mask": {"causal": False},
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_texts_are_pooled_at_their_end(fault: str | None, sound: tuple[Path, Any]) -> None:
    folder, model = sound
    source = load_source(str(folder))
    assert source.pooling == "cls/eos"
    config = source.model.config
    assert config.text.eos_id == source.text.eos_id == 2
    other = Clip(replace(config, text=replace(config.text, **FAULTS.get(fault or "", {})))).eval()
    other.load_state_dict(source.model.state_dict())
    ids = encoded(source, TEXTS)
    with torch.no_grad():
        theirs = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
        found = float((normalize(other.encode_text(ids), dim=-1) - theirs).abs().max())
    assert (found > 1e-3) if fault else (found <= TOLERANCE), found


def test_length_may_be_the_longest_of_the_batch(sound: tuple[Path, Any]) -> None:
    source = load_source(str(sound[0]))
    assert source.text.dynamic_length is True
    ids = encoded(source, ["a cat", "two dogs, running"])
    assert ids.shape[1] < 77
    padded = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=source.text.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(
            source.model.encode_text(ids), source.model.encode_text(padded), rtol=0, atol=1e-5
        )


def test_the_model_file_makes_the_same_tokenizer(sound: tuple[Path, Any], tmp_path: Path) -> None:
    write_metaclip_2(tmp_path, legacy_tokenizer=True)
    texts = corpus()
    folders = (tmp_path, sound[0])
    ours, json = (encoded(load_source(str(folder)), texts).tolist() for folder in folders)
    assert ours == json == tokenize(tmp_path, 77)(texts)[:, : len(ours[0])].tolist()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another end": (
        lambda f: edit(f / CONFIG, text_config__eos_token_id=5),
        "pools at id 5, but its tokenizer ends texts with 2",
    ),
    "several ends": (
        lambda f: edit(f / CONFIG, text_config__eos_token_id=[2, 3]),
        r"expected one eos_token_id, got \[2, 3\]",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"expected tokenizer.json or sentencepiece.bpe.model",
    ),
    "Gemma's vocabulary": (
        lambda f: (
            (f / "tokenizer.json").unlink(),
            (f / "sentencepiece.bpe.model").write_bytes(trained("gemma")),
        ),
        "expected a unigram model, as XLM-RoBERTa has it",
    ),
    "another padding": (
        lambda f: edit(f / TOKENIZER, pad_token="[PAD]"),
        r"the padding token '\[PAD\]' is not in the tokenizer",
    ),
    "another vocabulary": (
        lambda f: edit(f / CONFIG, text_config__vocab_size=901629),
        "its config asks for",
    ),
    "no activation that there is": (
        lambda f: edit(f / CONFIG, text_config__hidden_act="swish"),
        "hidden_act is 'swish'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, sound: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    refused(tmp_path, message)
