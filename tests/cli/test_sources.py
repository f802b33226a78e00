"""`edgeclip sources`: the families, and how one source is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgeclip.models.families import FAMILIES, NONE_STATED
from edgeclip.models.loaders.huggingface import MODEL_TYPES
from tests.checkpoints import write_hf
from tests.cli.conftest import Edgeclip


def test_every_family_is_listed(edgeclip: Edgeclip) -> None:
    said = edgeclip("sources")
    assert (said.code, said.err) == (0, "")
    for family in FAMILIES:
        assert family.name in said.out
    (record,) = edgeclip("sources", "--json").records
    assert [row["name"] for row in record["families"]] == [family.name for family in FAMILIES]


def test_one_family_shows_weights_licences_and_warnings(edgeclip: Edgeclip) -> None:
    said = edgeclip("sources", "mobileclip")
    assert said.code == 0
    assert "openclip:MobileCLIP-S2/datacompdr  apple-amlr (not for every use)" in said.out
    assert "TinyCLIP" not in said.out
    assert (
        f"hf:openai/clip-vit-base-patch32  {NONE_STATED} (ask before you ship)"
        in edgeclip("sources", "clip").out
    )


def test_every_hugging_face_type_that_loads_is_in_the_table_and_no_other() -> None:
    named = {
        name.removeprefix("Hugging Face ")
        for family in FAMILIES
        for name in family.formats
        if name.startswith("Hugging Face ")
    }
    assert named == set(MODEL_TYPES)


def test_known_architectures_and_tags_are_known_to_the_loader() -> None:
    from edgeclip.models.loaders.openclip.table import model_config, repository

    for known in (known for family in FAMILIES for known in family.known):
        scheme, _, rest = known.spec.partition(":")
        assert scheme in ("hf", "openclip")
        if scheme == "openclip":
            arch, _, tag = rest.partition("/")
            assert model_config(arch) is not None, known.spec
            assert repository(arch, tag), known.spec


def test_a_checkpoint_is_loaded_and_described(edgeclip: Edgeclip, tmp_path: Path) -> None:
    write_hf(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    record = edgeclip("sources", tmp_path / "mine", "--json").record
    assert (record["family"], record["pooling"], record["scores"]) == ("clip", "cls/eos", "softmax")
    assert record["preprocessing"]["size"] == [32, 32]
    assert record["text"]["context_length"] == 77
    assert record["licence"]["weights"] == "cc-by-nc-4.0"
    said = edgeclip("sources", tmp_path / "mine")
    assert "shortest_crop" in said.out
    assert "may not allow every use" in said.out + said.err


def test_what_is_neither_a_family_nor_a_source(edgeclip: Edgeclip, tmp_path: Path) -> None:
    said = edgeclip("sources", "nonsense")
    assert (said.code, said.out) == (2, "")
    assert said.line.startswith(
        "edgeclip: nonsense: no family of this name, no file and no source. Families: CLIP, "
    )
    said = edgeclip("sources", tmp_path)
    assert said.code == 2
    assert "no known checkpoint" in said.line


def test_the_list_needs_no_heavy_library() -> None:
    code = (
        "import sys; from edgeclip.cli import run; run(['sources']); run(['sources', 'siglip']);"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
