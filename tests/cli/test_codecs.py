"""`edgeclip codecs`, and codes from `edgeclip embed`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Bundle, EngineError, load, open_bundle
from edgeclip.bundle.store import MANIFEST
from edgeclip.runtime.codecs import Codecs
from tests.cli.conftest import Edgeclip, save_picture
from tests.runtime.toy import DIM

COUNT = 66


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(COUNT):
        save_picture(folder / f"{seed:02}.png", seed)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = ["a", "cat", "dog", "bicycle", "photo", "of"]
    file = tmp_path / "queries.txt"
    file.write_text("".join(f"{a} {b}\n" for a in words for b in words))
    return file


def saved(file: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(file) as found:
        return dict(found)


def test_fitted_to_pictures_and_texts(
    edgeclip: Edgeclip, sealed: Path, pictures: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    said = edgeclip(
        "codecs", sealed, "-o", out, "--images", pictures, "--images", broken, "--texts", texts, "--width", 6,
        "--threads", 1,
    )  # fmt: skip
    assert (said.code, said.err.splitlines()[0]) == (
        0,
        f"edgeclip: skipped: {broken}: the file is empty. Copy it again.",
    )
    assert "recall@1 of an exact search among 17 vectors held out" in said.out
    assert "texts asking" in said.out
    bundle = open_bundle(out)
    assert bundle.manifest.model_id == open_bundle(sealed).manifest.model_id
    assert bundle.manifest.variants == open_bundle(sealed).manifest.variants
    assert bundle.manifest.provenance["history"][-1]["codecs"]["fitted_to"] == {"image": COUNT, "text": 36}
    with load(bundle, threads=1) as model:
        assert model.codecs.names == ("fp16", "d6", "int8", "bits")
        assert model.codecs is model.codecs, "opened once"
        vectors = model.embed_images(sorted(pictures.glob("*.png")))
        codecs = model.codecs
    for name in codecs.names:
        assert (
            edgeclip(
                "embed", pictures, "-b", out, "--codec", name, "-o", tmp_path / "codes.npz", "--threads", 1
            ).code
            == 0
        )
        found = saved(tmp_path / "codes.npz")
        np.testing.assert_array_equal(found["embeddings"], codecs[name].encode(vectors))
        assert (str(found["codec"]), str(found["model_id"])) == (name, bundle.manifest.model_id)
    one = edgeclip("embed", "--text", "cat", "-b", out, "--codec", "int8", "--json").record["embedding"]
    with load(bundle, threads=1) as model:
        assert one == codecs.codec("int8", "text").encode(model.embed_texts(["cat"]))[0].tolist()
    shown = edgeclip("inspect", out)
    assert "bits, then int8" in shown.out
    assert edgeclip("inspect", out, "--json").record["codecs_measured"] == codecs.measured


def test_fitted_to_vectors(edgeclip: Edgeclip, sealed: Path, pictures: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "v.npz", tmp_path / "small"
    assert edgeclip("embed", pictures, "-b", sealed, "-o", file, "--threads", 1).code == 0
    said = edgeclip("codecs", sealed, "-o", out, "--vectors", file, "--json")
    assert said.record["codecs"] == ["fp16", "int8", "bits"]
    assert said.record["fitted_to"] == {"image": COUNT}
    again = edgeclip("codecs", out, "-o", out, "--vectors", file, "--overwrite")
    assert (
        again.line
        == f"edgeclip: {out}: is the bundle itself, and a bundle never changes. Choose another output."
    )
    second = tmp_path / "second"  # in place of those that the bundle had
    assert edgeclip("codecs", out, "-o", second, "--vectors", file, "--width", 5, "--json").code == 0
    assert Codecs.open(second / "codecs.safetensors").names == ("fp16", "d5", "int8", "bits")
    assert edgeclip("verify", second).code == 0


def test_refusals(edgeclip: Edgeclip, sealed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"

    def refused(*arguments: object) -> str:
        said = edgeclip("codecs", sealed, "-o", out, *arguments)
        assert said.code == 2
        assert not out.exists()
        return said.err.splitlines()[-1]

    assert refused() == "edgeclip: Pass either --images or --vectors. See `edgeclip codecs --help`."
    few = "edgeclip: image vectors: expected at least 64 to fit codecs to, got "
    assert refused("--images", photos) == f"{few}3. Pass more."
    assert refused("--images", tmp_path / "absent") == f"{few}0. Pass more."
    rows = np.eye(DIM, dtype=np.float32)[np.arange(100) % DIM]
    file = tmp_path / "v.npz"
    for content, message in (
        ({"vectors": rows}, "cannot be read ("),
        (
            {"embeddings": rows, "model_id": np.array("2" * 64)},
            "made by model 222222222222..., the bundle is 111111111111",
        ),
    ):
        np.savez(file, **content)  # type: ignore[arg-type]
        assert refused("--vectors", file).startswith(f"edgeclip: --vectors {file}: {message}")
    np.save(tmp_path / "v.npy", rows)
    for name in ("absent.npz", "v.npy", "photos/notes.txt"):
        assert refused("--vectors", tmp_path / name).startswith(
            f"edgeclip: --vectors {tmp_path / name}: cannot be read ("
        )
    np.savez(file, embeddings=rows[:, :5])
    assert refused("--vectors", file).startswith(
        "edgeclip: image vectors[5]: expected a row of length 1, got 0."
    )
    rows = np.random.default_rng(0).normal(size=(100, 5))
    np.savez(file, embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert "these codecs were fitted to model 111111111111... (width 5), the bundle" in refused(
        "--vectors", file
    )
    said = edgeclip("embed", photos, "-b", sealed, "--codec", "bits", "-o", tmp_path / "x.npz")
    assert (
        said.line
        == f"edgeclip: {sealed}: this bundle has no codecs. Fit them with `edgeclip codecs` and your own pictures."
    )


def test_codecs_of_another_model(edgeclip: Edgeclip, sealed: Path, pictures: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from edgeclip.bundle import seal

    out = tmp_path / "small"
    assert edgeclip("codecs", sealed, "-o", out, "--images", pictures, "--threads", 1).code == 0
    manifest = open_bundle(out).manifest
    (out / MANIFEST).unlink()
    changed: Bundle = seal(out, replace(manifest, model_id="3" * 64))
    with load(changed) as model, pytest.raises(Exception, match=r"fitted to model 1111.*the bundle is 3333"):
        _ = model.codecs
    with load(sealed) as model, pytest.raises(EngineError, match="has no codecs"):
        _ = model.codecs
