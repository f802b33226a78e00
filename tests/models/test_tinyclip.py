"""TinyCLIP whose layers were pruned to widths of their own: no config describes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from edgeclip.errors import SourceError
from edgeclip.models.sources import load_source
from tests.checkpoints import openclip_config, write_openclip


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("mlp.c_fc.weight", r"shape \(200, 64\), its config asks for \(256, 64\)"),
        ("attn.in_proj_weight", r"shape \(200, 64\), its config asks for \(192, 64\)"),
    ],
)
def test_uneven_widths_are_refused(layer: str, message: str, tmp_path: Path) -> None:
    write_openclip(tmp_path, openclip_config("tiny"))
    file = tmp_path / "open_clip_model.safetensors"
    state = load_file(file)
    name = f"visual.transformer.resblocks.1.{layer}"
    tensor = state[name].repeat(2, 1)
    save_file({**state, name: tensor[:200].contiguous()}, file)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)
