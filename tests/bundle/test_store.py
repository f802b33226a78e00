"""Bundles: what opens, and every way in which a damaged or hostile one is refused."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.bundle import (
    Axes,
    Bundle,
    Fidelity,
    Licence,
    Manifest,
    Port,
    Preprocessing,
    TextSettings,
    Variant,
    check_hashes,
    identity,
    open_bundle,
    pack_zip,
    seal,
)
from edgeclip.errors import BundleError, CheckFailed

PREPROCESSING = Preprocessing((32, 32), "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TEXT = TextSettings(context_length=16, pad_id=0, eos_id=2, dynamic_length=True)
FIDELITY = Fidelity(64, 2e-7, 1.0, 1.0, 1.0, 1e-6, 1.0, 1.0)
MANIFEST = Manifest(
    name="toy",
    model_id="0" * 64,
    family="clip",
    embedding_dim=8,
    activation="softmax",
    logit_scale=100.0,
    logit_bias=0.0,
    variants=(
        Variant(
            id="image-fp32",
            tower="image",
            axes=Axes(),
            files=("graphs/image-fp32.onnx",),
            inputs=(Port("pixels", "float32", ("N", 3, 32, 32)),),
            outputs=(Port("embeddings", "float32", ("N", 8)),),
            fidelity=FIDELITY,
        ),
    ),
    preprocessing=PREPROCESSING,
    text=TEXT,
    licence=Licence("MIT"),
    files={},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "toy"
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs/image-fp32.onnx").write_bytes(b"graph")
    (folder / "tokenizer.json").write_text("{}")
    return seal(folder, MANIFEST)


def edit(bundle: Bundle, old: str, new: str) -> None:
    file = bundle.root / "bundle.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_round_trip_keeps_every_field(bundle: Bundle) -> None:
    again = open_bundle(bundle.root)
    assert replace(again.manifest, files={}) == MANIFEST
    assert again.manifest.files["tokenizer.json"].size == 2
    check_hashes(again)


def test_edited_manifest_is_refused(bundle: Bundle) -> None:
    edit(bundle, '"logit_scale": 100.0', '"logit_scale": 10.0')
    with pytest.raises(BundleError, match="does not match its own digest"):
        open_bundle(bundle.root)


def test_newer_major_is_refused_in_one_line_and_newer_minor_is_read(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.bundle.manifest.FORMAT_VERSION", (2, 0))
    text = MANIFEST.to_json()
    monkeypatch.setattr("edgeclip.bundle.manifest.FORMAT_VERSION", (1, 7))
    minor = MANIFEST.to_json()
    monkeypatch.undo()
    with pytest.raises(BundleError, match=r"bundle format 2\.0, this edgeclip reads 1\.x") as refusal:
        Manifest.from_json(text, "x")
    assert "\n" not in str(refusal.value)
    assert Manifest.from_json(minor, "x") == MANIFEST


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "graphs/../../secret", "a\\..\\b"])
def test_paths_that_leave_the_folder_are_refused(bundle: Bundle, name: str) -> None:
    from edgeclip.bundle import FileEntry

    (bundle.root / "bundle.json").write_text(
        replace(bundle.manifest, files={name: FileEntry(1, "0")}).to_json()
    )
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder link", "pipe"])
def test_links_and_special_files_are_refused(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    graph = bundle.root / "graphs/image-fp32.onnx"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "image-fp32.onnx").write_bytes(b"graph")
    graph.unlink()
    if kind == "symlink":
        graph.symlink_to(outside / "image-fp32.onnx")
    elif kind == "hardlink":
        os.link(outside / "image-fp32.onnx", graph)
    elif kind == "pipe":
        os.mkfifo(graph)
    else:
        graph.parent.rmdir()
        graph.parent.symlink_to(outside)
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle.root)


def test_missing_and_truncated_files_are_named(bundle: Bundle) -> None:
    graph = bundle.root / "graphs/image-fp32.onnx"
    graph.write_bytes(b"gra")
    with pytest.raises(BundleError, match=r"image-fp32\.onnx: 3 bytes, the manifest says 5"):
        open_bundle(bundle.root)
    graph.unlink()
    with pytest.raises(BundleError, match=r"image-fp32\.onnx: missing"):
        open_bundle(bundle.root)


def test_same_size_damage_is_found_by_the_hash_check(bundle: Bundle) -> None:
    (bundle.root / "graphs/image-fp32.onnx").write_bytes(b"grapg")
    opened = open_bundle(bundle.root)  # instant: sizes only
    with pytest.raises(CheckFailed, match=r"image-fp32\.onnx: SHA-256"):
        check_hashes(opened)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a bundle"),
        ('{"format": "edgeclip.bundle", "version": "1"}', "expected a version"),
        ('{"format": "edgeclip.bundle", "version": [1, 0], "digest": "x"}', "digest"),
        ("\ufffe", "not JSON"),
    ],
)
def test_damaged_manifests(bundle: Bundle, text: str, message: str) -> None:
    (bundle.root / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle.root)


def test_wrong_field_types_are_named() -> None:
    text = replace(MANIFEST, embedding_dim="8").to_json()  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="embedding_dim: expected int, got '8'"):
        Manifest.from_json(text, "bundle.json")
    text = replace(MANIFEST, preprocessing=replace(PREPROCESSING, mode="stretch")).to_json()  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="preprocessing: mode: expected one of"):
        Manifest.from_json(text, "bundle.json")


def test_reference_to_an_unlisted_file(bundle: Bundle) -> None:
    (bundle.root / "bundle.json").write_text(replace(bundle.manifest, golden="golden.safetensors").to_json())
    with pytest.raises(BundleError, match=r"refers to 'golden\.safetensors'"):
        open_bundle(bundle.root)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"no bundle\.json in it"):
        open_bundle(tmp_path)


def test_zip_opens_once_into_the_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "toy.zip"
    pack_zip(bundle, archive)
    opened = open_bundle(archive)
    assert opened.manifest == bundle.manifest
    assert opened.root.is_relative_to(tmp_path / "cache")
    before = (opened.root / "bundle.json").stat().st_mtime_ns
    assert (open_bundle(archive).root / "bundle.json").stat().st_mtime_ns == before


def test_hostile_zips(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "toy.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:  # compressed: could be a bomb
        for name in ["bundle.json", *bundle.manifest.files]:
            out.write(bundle.root / name, name)
    with pytest.raises(BundleError, match="compressed"):
        open_bundle(archive)
    with zipfile.ZipFile(archive, "w") as out:  # right size, wrong bytes
        out.write(bundle.root / "bundle.json", "bundle.json")
        out.write(bundle.root / "tokenizer.json", "tokenizer.json")
        out.writestr("graphs/image-fp32.onnx", b"GRAPH")
    with pytest.raises(CheckFailed, match="SHA-256"):
        open_bundle(archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(BundleError, match="not a whole zip"):
        open_bundle(archive)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], (
        "a refused zip left files behind"
    )


def test_identity_depends_on_meaning_not_on_variants() -> None:
    base = identity("w", "clip", PREPROCESSING, TEXT, "t", "cls/eos")
    assert base == identity("w", "clip", PREPROCESSING, TEXT, "t", "cls/eos")
    others = {
        identity("W", "clip", PREPROCESSING, TEXT, "t", "cls/eos"),
        identity("w", "openclip", PREPROCESSING, TEXT, "t", "cls/eos"),
        identity("w", "clip", replace(PREPROCESSING, mode="pad"), TEXT, "t", "cls/eos"),
        identity("w", "clip", PREPROCESSING, replace(TEXT, pad_id=1), "t", "cls/eos"),
        identity("w", "clip", PREPROCESSING, TEXT, "T", "cls/eos"),
        identity("w", "clip", PREPROCESSING, TEXT, "t", "avg/eos"),
    }
    assert len(others | {base}) == 7
