"""CoCa's towers: the class token behind the text at any length, faults that must be caught, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from edgeclip.errors import SourceError
from edgeclip.export import clip_towers
from edgeclip.export.towers import tower_of
from edgeclip.models.clip import TextTower
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from tests.checkpoints import openclip_config, write_openclip
from tests.families.coca import TINY
from tests.models.agreement import TOLERANCE, assert_saves_and_loads, worst
from tests.mutants import broken

LENGTH = 12
END = 713
LENGTHS = (4, 7, 12, 2)  # of the texts below


def config(**top: Any) -> dict[str, Any]:
    text = {"width": 48, "heads": 4, "layers": 2, "vocab_size": 714, "context_length": LENGTH}
    found = openclip_config("coca_ViT-B-32", (2, 2), {**TINY, "attn_pooler_queries": 5}, text)
    found["multimodal_cfg"].update(layers=1, width=48, heads=4, context_length=LENGTH)
    return {**found, "embed_dim": 32, **top}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Any, Source]:
    """-> (open_clip's model, ours)."""
    model = write_openclip(tmp_path, config())
    return model, load_source(str(tmp_path))


def texts() -> torch.Tensor:
    """(4, 12) ids: a short text, one that holds the padding's id in its midst ("!"), one of full length, an empty one."""
    rows = [[712, 300, 301, END], [712, 0, 302, 0, 0, 303, END], [712, *range(320, 330), END], [712, END]]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


def rows(encode: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return normalize(encode(ids), dim=-1)


def test_texts_are_open_clips_at_any_length(tiny: tuple[Any, Source]) -> None:
    model, source = tiny
    assert source.text is not None
    assert (source.pooling, source.text.dynamic_length, source.text.pad_id) == ("attentional/class", True, 0)
    want = rows(model.encode_text, texts())
    traceable = tower_of(source, "text").module
    for encode in (source.model.encode_text, lambda ids: traceable(ids.int())):
        assert worst((want,), (rows(encode, texts()),))[0] < TOLERANCE
        for i, shortest in enumerate(LENGTHS):
            for length in range(shortest, LENGTH + 1):
                found = rows(encode, texts()[i : i + 1, :length])
                assert worst((want[i : i + 1],), (found,))[0] < TOLERANCE, (i, length)


def test_what_stands_behind_a_text_decides_nothing(tiny: tuple[Any, Source]) -> None:
    """The first token of padding does: it is attended to, as it was in training."""
    tower = tiny[1].model.text
    assert isinstance(tower, TextTower)
    before = rows(tower, texts())
    with torch.no_grad():
        tower.embedding.weight[0] *= -5
    after = rows(tower, texts())
    assert worst((before[2:3],), (after[2:3],))[0] == 0, "a text of full length"
    assert worst((before[:1],), (after[:1],))[0] > 0.01


FAULTS = {
    "pooled at the last token": (TextTower, "_with_class_token", "self.norm_final(x[:, -1])", "self.norm_final(x[:, -2])"),
    "pooled at the first token": (TextTower, "_with_class_token", "self.norm_final(x[:, -1])", "self.norm_final(x[:, 0])"),
    "the mask of padding in its right place": (TextTower, "_with_class_token", "(1, 0), value=True", "(0, 1), value=True"),
    "padding attended to": (TextTower, "_with_class_token", "ids != config.pad_id", "ids > -1"),
    "both ways": (TextTower, "_with_class_token", "if config.causal:", "if False:"),
    "traceable: the class token at the text's own end": (
        clip_towers.ClassText, "_entered", "self.position[-1:]", "self.position[length : length + 1]",
    ),
    "traceable: no token of padding": (
        clip_towers.ClassText, "_hidden", "padding, padding[:, -1:]], dim=1)", "padding, padding[:, -1:]], dim=1) + self._behind(length)",
    ),
    "traceable: pooled at the token of padding": (clip_towers.ClassText, "_entered", "tokens[:, -1:]", "tokens[:, -2:-1]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_exceed_the_tolerance(
    fault: str, tiny: tuple[Any, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = tiny
    owner, name, old, new = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken(getattr(owner, name), old, new))
    monkeypatch.setattr(
        clip_towers.ClassText,
        "_behind",
        lambda self, length: (torch.arange(length + 2) == length).float(),
        raising=False,
    )
    encode = source.model.encode_text
    if owner is clip_towers.ClassText:
        traceable = tower_of(source, "text").module
        encode = lambda ids: traceable(ids.int())  # noqa: E731
    want = rows(model.encode_text, texts())
    found = torch.cat([rows(encode, texts()[i : i + 1, :length]) for i, length in enumerate(LENGTHS)])
    assert worst((want,), (found,))[0] > 20 * TOLERANCE


def test_the_decoder_is_left_out_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_openclip(tmp_path, config())
    load_source(str(tmp_path))
    told = [record.getMessage() for record in caplog.records if "captioning" in record.getMessage()]
    assert len(told) == 1
    assert "its captioning decoder (29 tensors) is left out" in told[0]


def test_edgeclips_own_checkpoint(tiny: tuple[Any, Source], tmp_path: Path) -> None:
    assert_saves_and_loads(tiny[1], tmp_path / "ours")


def edit(folder: Path, drop: str = "", **text: Any) -> None:
    path = folder / "open_clip_config.json"
    data = json.loads(path.read_text())
    data["model_cfg"].pop(drop, None)
    data["model_cfg"]["text_cfg"].update(text)
    path.write_text(json.dumps(data))


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "a decoder that the config does not speak of": (
        {"drop": "multimodal_cfg"},
        "text_decoder.* has no place in the model",
    ),
    "no class token": ({"embed_cls": False}, "text.cls_emb' has no place|positional_embedding' has shape"),
    "another length": ({"context_length": 77}, r"positional_embedding' has shape \(13, 48\), .* \(78, 48\)"),
    "a class token that is no switch": ({"embed_cls": "yes"}, "embed_cls: expected bool, got 'yes'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, tmp_path: Path) -> None:
    write_openclip(tmp_path, config())
    changes, message = DAMAGE[damage]
    edit(tmp_path, **changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_padding_of_another_id_has_a_fixed_length(tmp_path: Path) -> None:
    """What the text tower takes for padding is then not what texts are padded with, so nothing of it is hidden."""
    write_openclip(tmp_path, config())
    edit(tmp_path, pad_id=5)
    source = load_source(str(tmp_path))
    assert source.text is not None
    assert not source.text.dynamic_length
