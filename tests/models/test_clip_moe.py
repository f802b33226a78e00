"""CLIP-MoE's files against a model of the test's own in that layout; real widths are in test_families.py."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import SourceError
from edgeclip.models.config import MoeConfig
from edgeclip.models.loaders import clip_moe
from edgeclip.models.sources import load_source
from tests.checkpoints import fixed_pixels, openclip_config, write_hf, write_openclip
from tests.families import Written
from tests.families.clip_moe import Reference, write_clip_moe
from tests.models.agreement import TOLERANCE, assert_saves_and_loads, our_outputs, worst
from tests.models.test_families import check_towers, encoded
from tests.models.test_sources import hub, lay_out  # noqa: F401  (hub is a fixture)


def agree(path: Path, model: Reference, **load: Any) -> None:
    check_towers(load_source(str(path), **load), Written("", model.encode_image, model.encode_text))


@pytest.mark.parametrize(
    ("experts", "top_k"),
    [
        (((4, 4), (4, 4)), 2),  # as published
        (((0, 4), (0, 4)), 2),  # the last blocks alone
        (((4,), (0, 0)), 2),  # pictures alone
        (((0,), (2, 5)), 2),  # other counts
        (((4,), (3, 2)), 1),
        (((0, 0), (0,)), 2),  # a dense model: Long-CLIP, a stage of training
    ],
)
def test_embeddings_are_those_of_the_layout(
    experts: tuple[tuple[int, ...], tuple[int, ...]], top_k: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    model = write_clip_moe(path, experts=experts, top_k=top_k)
    if top_k != 2:
        (tmp_path / "clip_moe.json").write_text(json.dumps({"top_k": top_k}))
    agree(path, model)
    config = load_source(str(path)).model.config
    for tower, counts in zip((config.image, config.text), experts, strict=True):
        assert tower.blocks.moe == (MoeConfig(counts, top_k) if any(counts) else None)


@pytest.mark.parity
def test_the_published_shape_agrees(tmp_path: Path) -> None:
    """L/14 whole, 4 experts in each of its 36 blocks, 1.2 billion parameters: 10 GB at most, the reference is gone before ours comes."""
    path = tmp_path / "clip-moe-4-2.safetensors"
    model = write_clip_moe(path, "L/14", ((4,) * 24, (4,) * 12), vocab=49408)
    pixels, ids = fixed_pixels(1, 224, 224), torch.randint(1, 49000, (2, 248))
    ids[0, 30:], ids[0, 30], ids[1, 247] = 0, 49407, 49407
    with torch.no_grad():
        want = normalize(model.encode_image(pixels), dim=-1), normalize(model.encode_text(ids), dim=-1)
    del model
    gc.collect()
    ours = load_source(str(path)).model
    assert round(path.stat().st_size / 1e9, 2) == 4.81  # what the Hub says of both published files
    got = our_outputs(ours, pixels, ids)
    path.unlink()
    assert torch.linalg.vector_norm(want[1][0] - want[1][1]) > 0.1
    assert max(worst(got, want)) < TOLERANCE


def test_what_else_a_bundle_must_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clip_moe(tmp_path / "clip-moe-4-2.safetensors")
    source = load_source(str(tmp_path / "clip-moe-4-2.safetensors"))
    assert (source.name, source.family, source.pooling) == ("clip-moe-4-2", "clip-moe", "cls/argmax top 2/2")
    assert source.text is not None
    assert (source.text.context_length, source.text.clean, source.text.dynamic_length) == (
        248,
        "openai",
        True,
    )
    assert source.preprocessing is not None
    assert (source.preprocessing.size, source.preprocessing.mode) == ((32, 32), "shortest_crop")
    assert source.licence.weights == "unknown"
    assert "states no licence" in source.licence.warnings[0]
    assert "how many experts a token takes is not in the file: taking 2, as published" in caplog.text
    (tmp_path / "clip_moe.json").write_text('{"top_k": 2}')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    caplog.clear()
    assert load_source(str(tmp_path)).licence.weights == "mit"
    assert not caplog.text
    assert_saves_and_loads(source, tmp_path / "own")


def test_pickles_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "moe.pt"
    model = write_clip_moe(path)
    with pytest.raises(SourceError, match=r"moe\.pt: a pickle, .* Pass --allow-pickle"):
        load_source(str(path))
    agree(path, model, allow_pickle=True)
    agree(tmp_path, model, allow_pickle=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    agree(path, model, allow_pickle=True)


def test_half_precision_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model = write_clip_moe(path).half().float()
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    agree(path, model)


def test_scalars_of_openais_files_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scalars.safetensors"
    model = write_clip_moe(path)
    save_file(
        load_file(path) | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(248)}, path
    )
    agree(path, model)


def test_the_second_table_of_positions_counts_from_the_twenty_first_on(tmp_path: Path) -> None:
    """A text of 20 tokens must not see it, one of 21 must."""
    path = tmp_path / "moe.safetensors"
    write_clip_moe(path)
    before, ids = load_source(str(path)), torch.arange(21)[None]
    save_file(load_file(path) | {"positional_embedding_res": torch.randn(248, 64)}, path)
    after = load_source(str(path))
    with torch.no_grad():
        for length, same in ((20, True), (21, False)):
            old, new = (source.model.encode_text(ids[:, :length]) for source in (before, after))
            assert torch.equal(old, new) is same


def test_long_texts_are_read_whole_and_cut_behind_248(tmp_path: Path) -> None:
    path = tmp_path / "moe.safetensors"
    write_clip_moe(path)
    source = load_source(str(path))
    long, longer = "a b " * 100, "a b " * 300
    ids = torch.from_numpy(encoded(source, [long, longer])).long()
    assert (ids[0] != 0).sum() == 202  # beyond CLIP's own 77
    assert ids.shape[1] == 248
    assert ids[1, -1] == source.text.eos_id  # type: ignore[union-attr]
    with torch.no_grad():
        rows = source.model.encode_text(ids)
        again = source.model.encode_text(ids[:1, :202])  # padding says nothing
        cut = source.model.encode_text(torch.cat([ids[:1, :76], ids[:1, 201:202]], dim=1))
    torch.testing.assert_close(rows[:1], again, rtol=0, atol=1e-5)
    assert (rows[0] - cut[0]).abs().max() > 0.01


def test_marks_in_a_text_are_openais(tmp_path: Path) -> None:
    write_clip_moe(tmp_path / "moe.safetensors")
    source = load_source(str(tmp_path))
    ids = encoded(source, ["a <|endoftext|> b <|STARTOFTEXT|>", "a <end_of_text> b <start_of_text>"])
    assert [((row == 712).sum(), (row == 713).sum()) for row in ids] == [(2, 2), (1, 1)]


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({name: value})


V, T = "visual.transformer.resblocks.1", "transformer.resblocks.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{V}.gate.weight"), rf"'{V}\.gate\.weight' is missing"),
        (without(f"{V}.experts.2.c_proj.bias"), r"experts\.2\.c_proj\.bias' is missing"),
        (without("visual.conv1.weight"), r"expected a tensor 'visual\.conv1\.weight' of 4 axes"),
        (without("text_projection"), "expected a tensor 'text_projection' of 2 axes"),
        (without("positional_embedding"), "expected a tensor 'positional_embedding' of 2 axes"),
        (without("visual.transformer.resblocks.0.mlp.c_fc.weight"), r"expected a tensor .*resblocks\.0\.mlp\.c_fc\.weight"),
        (put(f"{V}.gate.weight", torch.zeros(3, 64)), r"gate\.weight' has shape \(3, 64\), its config asks for \(4, 64\)"),
        (put(f"{V}.mlp.c_fc.weight", torch.zeros(256, 64)), r"mlp\.c_fc\.weight' has no place"),
        (put(f"{V}.experts.7.c_fc.bias", torch.zeros(256)), r"experts\.4\.c_fc\.bias' is missing"),
        (put("visual.transformer.resblocks.5.ln_1.bias", torch.zeros(64)), r"resblocks\.2\.\S+' is missing"),
        (put("transformer.resblocks.0.mlp.c_fc.bias", torch.zeros(256)), r"mlp\.c_fc\.bias' has no place"),
        (put("positional_embedding_res", torch.zeros(77, 64)), "positional_embedding_res differ in shape"),
        (put("visual.positional_embedding", torch.zeros(7, 64)), "has 7 rows, expected a square of patches and one more"),
        (put("visual.positional_embedding", torch.zeros(0, 64)), "has 0 rows"),
        (put(f"{V}.gate.weight", torch.full((4, 64), torch.nan)), r"gate\.weight' holds NaN"),
        (put("logit_scale", torch.tensor(100.0)), "expected its logarithm"),
        (put("token_embedding.weight", torch.zeros(800, 64)), r"vocabulary has 714 tokens, the text tower 800 rows"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "moe.safetensors"
    write_clip_moe(path)
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(path))
    assert "\n" not in str(caught.value)


def test_one_expert_is_none(tmp_path: Path) -> None:
    path = tmp_path / "moe.safetensors"
    write_clip_moe(path, experts=((0, 1), (0,)))
    with pytest.raises(SourceError, match="expected 0 or 2-64 for each block"):
        load_source(str(path))


@pytest.mark.parametrize(
    "settings", ['{"top_k": 0}', '{"top_k": true}', '{"top_k": 1, "k": 2}', "{}", '{"top_k": "2"}']
)
def test_settings_that_are_none_are_refused(settings: str, tmp_path: Path) -> None:
    write_clip_moe(tmp_path / "moe.safetensors")
    (tmp_path / "clip_moe.json").write_text(settings)
    with pytest.raises(SourceError, match=r'clip_moe\.json: expected \{"top_k": 1\} or more, got '):
        load_source(str(tmp_path))
    (tmp_path / "clip_moe.json").write_text('{"top_k": 65}')
    with pytest.raises(SourceError, match="top_k of 1-64"):
        load_source(str(tmp_path))


def test_a_file_cut_short_is_said_to_be(tmp_path: Path) -> None:
    for name in ("moe.safetensors", "moe.pt"):
        path = tmp_path / name
        write_clip_moe(path)
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(SourceError, match=rf"{name}: (damaged or cut short|not a plain pickle)"):
            load_source(str(path), allow_pickle=True)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="the file is empty"):
        load_source(str(path))
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match="a git-lfs pointer"):
        load_source(str(path))


def test_no_other_file_is_claimed(tmp_path: Path) -> None:
    write_openclip(tmp_path / "openclip", openclip_config("tiny"))
    write_hf(tmp_path / "hf")
    for path in (next((tmp_path / "openclip").glob("*.safetensors")), tmp_path / "hf" / "model.safetensors"):
        assert not clip_moe.claims(path)
        assert not clip_moe.matches(path.parent)
        with pytest.raises(
            SourceError, match=r"a single file does not say its architecture\. Name it openclip:ARCH/"
        ):
            load_source(str(path))


def test_of_two_files_one_must_be_named(tmp_path: Path) -> None:
    write_clip_moe(tmp_path / "a.safetensors")
    write_clip_moe(tmp_path / "b.pt")
    with pytest.raises(
        SourceError, match=r"holds 2 checkpoints \(a\.safetensors, b\.pt\)\. Name one of the files"
    ):
        load_source(str(tmp_path))


def test_a_file_of_a_hub_repository_opens_from_the_cache(hub: Path) -> None:  # noqa: F811
    folder = lay_out(hub, "someone/moe")
    model = write_clip_moe(folder / "deep" / "moe.pt")
    (folder / "deep" / "merges.txt").rename(folder / "merges.txt")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    spec = "hf:someone/moe/deep/moe.pt"
    with pytest.raises(SourceError, match=r"deep/moe\.pt: a pickle"):
        load_source(spec)
    with pytest.raises(SourceError, match=r"moe\.pt: a pickle"):  # before anything is fetched
        load_source("hf:someone/elses/moe.pt")
    source = load_source(spec, allow_pickle=True)
    check_towers(source, Written("", model.encode_image, model.encode_text))
    assert (source.name, source.spec, source.licence.weights) == ("moe", spec, "mit")
    with pytest.raises(SourceError, match=r"someone/moe has no file 'other\.safetensors'"):
        load_source("hf:someone/moe/other.safetensors")
    (folder / "plain.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(SourceError, match=r"does not say its architecture\. Name hf:someone/moe"):
        load_source("hf:someone/moe/plain.safetensors")
