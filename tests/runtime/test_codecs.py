"""Codes of embeddings: every value against plain numpy, every recall against an exact search, and what a fit may not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgeclip.errors import InputError
from edgeclip.runtime.codecs import Bits, Codec, Codecs, Int8, Truncated, nearest
from edgeclip.runtime.codecs.fit import fit_codecs, measure, recall
from tests.vectors import clip_like

DIM, MODEL = 64, "1" * 64
IMAGES, TEXTS = clip_like(3000, DIM), clip_like(400, DIM, "text")
UNSEEN, ASKED = clip_like(1500, DIM, seed=1), clip_like(200, DIM, "text", seed=1)


@pytest.fixture(scope="module")
def codecs() -> Codecs:
    return fit_codecs({"image": IMAGES, "text": TEXTS}, MODEL)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def ranked(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a, b, strict=True)]))


def test_fp16(codecs: Codecs) -> None:
    codec, codes = codecs["fp16"], codecs["fp16"].encode(UNSEEN)
    assert (codec.nbytes, codes.dtype, codes.shape) == (2 * DIM, np.float16, (1500, DIM))
    np.testing.assert_array_equal(codec.decode(codes), UNSEEN.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(codec.scores(ASKED, codes), ASKED @ UNSEEN.T, rtol=0, atol=1e-3)


def test_truncated(codecs: Codecs) -> None:
    assert codecs.names == ("fp16", "d32", "d16", "d8", "int8", "bits")
    assert codecs.cut == {32: True, 16: True, 8: True}, "these vectors were not trained to be cut"
    for width in (32, 16, 8):
        codec = codecs[f"d{width}"]
        assert isinstance(codec, Truncated)
        assert codec.rotation is not None
        turn = codec.rotation.astype(np.float64)
        np.testing.assert_allclose(turn @ turn.T, np.eye(width), rtol=0, atol=1e-6)
        codes, want = codec.encode(UNSEEN), unit(UNSEEN @ turn.T)
        assert (codec.nbytes, codes.dtype) == (2 * width, np.float16)
        np.testing.assert_allclose(codes, want, rtol=0, atol=5e-4)
        np.testing.assert_allclose(
            codec.scores(ASKED, codes), unit(ASKED @ turn.T) @ want.T, rtol=0, atol=1e-3
        )
        np.testing.assert_allclose(codec.decode(codes), want @ turn, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(codec.rotation, codecs["d32"].rotation[:width])  # type: ignore[attr-defined]
        # pictures and texts weigh the same, though there are more pictures
        both = np.concatenate([IMAGES / np.sqrt(len(IMAGES)), TEXTS / np.sqrt(len(TEXTS))])
        directions = np.linalg.svd(both.astype(np.float64), full_matrices=False)[2][:width]
        np.testing.assert_allclose(np.abs((turn * directions).sum(axis=1)), 1, rtol=0, atol=1e-4)
        plain = replace(codec, rotation=None)
        np.testing.assert_allclose(plain.encode(UNSEEN), unit(UNSEEN[:, :width]), rtol=0, atol=5e-4)
        np.testing.assert_allclose(plain.decode(plain.encode(UNSEEN))[:, width:], 0, rtol=0, atol=0)
    hidden = np.eye(1, DIM, DIM - 1, dtype=np.float32)  # all of it is cut away: zero, no NaN
    assert not replace(codecs["d8"], rotation=None).encode(hidden).any()  # type: ignore[call-arg]


def test_int8(codecs: Codecs) -> None:
    codec, codes = codecs["int8"], codecs["int8"].encode(UNSEEN)
    assert isinstance(codec, Int8)
    assert (codec.nbytes, codes.dtype) == (DIM, np.int8)
    np.testing.assert_allclose(codec.mean, IMAGES.mean(axis=0), rtol=0, atol=1e-6)
    decoded, step = codec.decode(codes), codec.scale
    cut = np.abs(codes) == 127
    assert cut.mean() < 0.001
    assert (np.abs(decoded - UNSEEN)[~cut] <= (np.broadcast_to(step, codes.shape)[~cut] * 0.5001)).all()
    np.testing.assert_allclose(codec.scores(ASKED, codes), ASKED @ decoded.T, rtol=0, atol=1e-6)
    far = codec.encode(np.stack([np.eye(DIM, dtype=np.float32)[0], -np.eye(DIM, dtype=np.float32)[0]]))
    assert far[:, 0].tolist() == [127, -127]
    texts = codecs.codec("int8", "text")  # texts lie elsewhere
    assert (
        overlap(ranked(UNSEEN[:50] @ ASKED.T, 10), texts.search(UNSEEN[:50], 10, texts.encode(ASKED))[0])
        > 0.97
    )


def test_int8_of_both_sides(codecs: Codecs) -> None:
    """As an engine computes it that multiplies bytes with bytes."""
    codec = codecs["int8"]
    assert isinstance(codec, Int8)
    codes, (queries, step) = codec.encode(UNSEEN), codec.encode_queries(ASKED)
    assert (queries.dtype, step.shape) == (np.int8, (200, 1))
    products = queries.astype(np.int32) @ codes.astype(np.int32).T
    exact = codec.scores(ASKED, codes) - (ASKED @ codec.mean)[:, None]
    np.testing.assert_allclose(products * step, exact, rtol=0, atol=0.01)
    assert overlap(ranked(ASKED @ UNSEEN.T, 10), ranked(products, 10)) > 0.95


def test_bits(codecs: Codecs) -> None:
    bare = replace(codecs["bits"], rotation=None)  # type: ignore[call-arg]
    assert isinstance(bare, Bits)
    codes = bare.encode(UNSEEN)
    assert (bare.nbytes, codes.dtype, codes.shape) == (DIM // 8, np.uint8, (1500, DIM // 8))
    signs = np.where(IMAGES.mean(axis=0) < UNSEEN, 1, -1)
    np.testing.assert_array_equal(np.unpackbits(codes, axis=1) * 2 - 1.0, signs)
    asked = np.where(TEXTS.mean(axis=0) < ASKED, 1, -1)  # from the mean of its own kind
    np.testing.assert_allclose(
        bare.scores(ASKED, codes, asking="text"), asked @ signs.T / DIM, rtol=0, atol=1e-6
    )
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
    centred = (UNSEEN - IMAGES.mean(axis=0)) @ turn.T
    turned = replace(bare, rotation=turn, spread=np.abs(centred).mean(axis=0))
    assert (np.unpackbits(turned.encode(UNSEEN), axis=1) != (centred > 0)).mean() < 1e-4  # rounding at 0
    fitted = codecs["bits"]
    assert isinstance(fitted, Bits)
    assert fitted.rotation is not None
    np.testing.assert_allclose(fitted.rotation @ fitted.rotation.T, np.eye(DIM), rtol=0, atol=1e-5)
    apart = np.abs((IMAGES - IMAGES.mean(axis=0)) @ fitted.rotation.T)
    np.testing.assert_allclose(fitted.spread, apart.mean(axis=0), rtol=0, atol=1e-5)
    for codec in (turned, fitted):
        decoded = codec.decode(codec.encode(UNSEEN))
        assert 0.9 < (unit(decoded) * UNSEEN).sum(axis=1).mean() < 1


@pytest.mark.parametrize("count", [nearest._count, nearest._table_count], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("width", [1, 3, 8, 24])
def test_hamming(width: int, count: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_count", count)
    random = np.random.default_rng(width)
    a, b = (random.integers(0, 256, (n, width), np.uint8) for n in (5, 33))
    a[0], b[0] = 255, 0
    want = (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]).sum(axis=2)
    np.testing.assert_array_equal(nearest.hamming(a, b), want)


def test_every_finite_float16_as_float32() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 8)
    np.testing.assert_array_equal(nearest.floats(halves), halves.astype(np.float32))
    np.testing.assert_array_equal(nearest.floats(halves[:, ::2]), halves[:, ::2].astype(np.float32))


def test_best_is_a_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 5, (40, 30)).astype(np.float32)  # many ties
    for k in (1, 7, 30, 99):
        rows, found = nearest.best(scores, k)
        np.testing.assert_array_equal(rows, ranked(scores, k))
        np.testing.assert_array_equal(found, np.take_along_axis(scores, rows, axis=1))
    assert nearest.best(np.empty((2, 0), np.float32), 3)[0].shape == (2, 0)


def test_search(codecs: Codecs, monkeypatch: pytest.MonkeyPatch) -> None:
    bits, finer = codecs["bits"], codecs["int8"]
    codes, stored = bits.encode(UNSEEN), finer.encode(UNSEEN)
    rows, scores = finer.search(ASKED, 10, stored)
    np.testing.assert_array_equal(rows, ranked(finer.scores(ASKED, stored), 10))
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    candidates = ranked(bits.scores(ASKED, codes, asking="text"), 40)
    exact = finer.scores(ASKED, stored)
    want = [c[np.argsort(-e[c], kind="stable")][:10] for c, e in zip(candidates, exact, strict=True)]
    found, scores = bits.search(ASKED, 10, codes, asking="text", rescore=(finer, stored), oversampling=4)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, found, axis=1), rtol=0, atol=1e-6)
    one = np.eye(
        1, DIM, dtype=np.float32
    )  # a finer codec that cannot tell them apart: the lower row comes first
    equal = codecs["fp16"].encode(np.repeat(one, 9, axis=0))
    coarse = np.concatenate([~bits.encode(np.repeat(one, 8, axis=0)), bits.encode(one)])
    assert bits.search(one, 3, coarse)[0].tolist() == [[8, 0, 1]]
    assert bits.search(one, 3, coarse, rescore=(codecs["fp16"], equal))[0].tolist() == [[0, 1, 2]]
    monkeypatch.setattr("edgeclip.runtime.codecs.kinds._SCORES", 7 * len(UNSEEN))  # seven queries at a time
    np.testing.assert_array_equal(finer.search(ASKED, 10, stored)[0], rows)
    monkeypatch.setattr("edgeclip.runtime.codecs.nearest._CELLS", 400 * DIM)  # codes in four blocks
    np.testing.assert_array_equal(finer.search(ASKED, 10, stored)[0], rows)
    assert finer.search(ASKED[0], 3, stored)[0].tolist() == [rows[0, :3].tolist()]
    assert finer.search(ASKED, 5000, stored)[0].shape == (200, 1500)
    assert finer.search(ASKED[:0], 5, stored)[0].shape == (0, 5)
    assert finer.search(ASKED, 5, stored[:0])[0].shape == (200, 0)
    assert bits.search(ASKED, 5, codes[:0], asking="text", rescore=(finer, stored[:0]))[0].shape == (200, 0)


def test_recall_on_vectors_like_a_models(codecs: Codecs) -> None:
    """Each choice against the plain way, on rows that no fit saw."""
    int8, bits, d16 = codecs["int8"], codecs["bits"], codecs["d16"]
    assert isinstance(int8, Int8)
    assert isinstance(bits, Bits)
    assert isinstance(d16, Truncated)
    largest = np.full(DIM, np.abs(IMAGES).max() / 127, np.float32)
    one_scale = replace(int8, mean=np.zeros(DIM, np.float32), scale=largest)
    zero = replace(bits, means=dict.fromkeys(bits.means, np.zeros(DIM, np.float32)))

    def by_kind(codec: Codec, finer: Codec | None = None) -> NDArray[np.float64]:
        pictures = recall(codec, UNSEEN, UNSEEN, "image", finer, same=True)
        return np.array([pictures, recall(codec, UNSEEN, ASKED, "text", finer, same=False)])

    # Figures of these rows, pictures and texts asking: int8 0.991 0.990, with one scale for all 0.987 0.982; 16 of 64
    # components 0.74 0.69, unrotated 0.58 0.36; bits 0.72 0.58, rescored 0.98 0.94, not centred 0.64 0.47.
    assert (by_kind(int8) > 0.985).all()
    assert (by_kind(int8) > by_kind(one_scale) + 0.002).all()
    error, worse = (np.abs(codec.decode(codec.encode(UNSEEN)) - UNSEEN).mean() for codec in (int8, one_scale))
    assert error < 0.6 * worse
    assert (by_kind(d16) > by_kind(replace(d16, rotation=None)) + 0.1).all()
    assert (by_kind(codecs["d32"]) > 0.87).all()
    assert (by_kind(bits) > by_kind(zero) + 0.05).all()
    assert (by_kind(bits, int8) > 0.92).all()
    swapped = replace(bits, means={"image": bits.means["image"], "text": bits.means["image"]})
    assert by_kind(bits)[1] > by_kind(swapped)[1] + 0.05, "texts lie about a mean of their own"


def test_measured_is_what_an_exact_search_says(codecs: Codecs) -> None:
    assert codecs.measured["fitted_to"] == {"image": 3000, "text": 400}
    assert (codecs.measured["k"], codecs.measured["documents"]) == (10, 750)
    rows = {(row["codec"], row["rescore"]): row for row in codecs.measured["rows"]}
    assert [row["bytes"] for row in rows.values()] == [128, 64, 32, 16, 64, 8, 72]
    documents = IMAGES[
        ::4
    ]  # held out; the codecs in hand were fitted to them too, so the figures differ a little
    exact = documents @ documents.T
    np.fill_diagonal(exact, -1)
    for name, finer in rows:
        codec = codecs[name]
        scores = np.array(codec.scores(documents, codec.encode(documents)))
        np.fill_diagonal(scores, -9)
        got = ranked(scores, 10)
        if finer:
            wide, again = (
                ranked(scores, 100),
                codecs[finer].scores(documents, codecs[finer].encode(documents)),
            )
            got = np.take_along_axis(wide, ranked(np.take_along_axis(again, wide, axis=1), 10), axis=1)
        want = overlap(ranked(exact[:500], 10), got[:500])
        assert rows[name, finer]["recall"]["image"] == pytest.approx(want, abs=0.02), name
        assert 0 < rows[name, finer]["recall"]["text"] <= 1
    assert measure(codecs, {"image": UNSEEN[:100]})["k"] == 5, (
        "of 100 documents, ten would be found by chance"
    )


def test_what_is_measured_is_not_what_was_fitted() -> None:
    """Every fourth vector lies where no other does: codecs fitted without those cannot hold them."""
    rows = np.random.default_rng(4).normal(size=(400, 32))
    held = np.arange(400) % 4 == 0
    rows[held, 16:], rows[~held, :16] = 0, 0
    found = fit_codecs({"image": unit(rows).astype(np.float32)}, MODEL)
    (int8,) = [row["recall"]["image"] for row in found.measured["rows"] if row["codec"] == "int8"]
    assert int8 < 0.7
    assert recall(found["int8"], unit(rows[held]), unit(rows[held]), "image", same=True) > 0.95


def test_vectors_trained_to_be_cut_are_not_rotated() -> None:
    """Components in the order of their weight, and bits that are independent already: a rotation brings nothing."""
    rows = np.random.default_rng(3).normal(size=(800, 32)) * np.arange(1, 33) ** -1.0
    assert fit_codecs({"image": unit(rows).astype(np.float32)}, MODEL, [16, 8]).cut == {16: False, 8: False}


def test_a_fit_is_repeatable_and_kept_whole(codecs: Codecs, tmp_path: Path) -> None:
    again = fit_codecs({"text": TEXTS, "image": IMAGES}, MODEL)  # in another order
    assert again.to_bytes() == codecs.to_bytes()
    codecs.save(tmp_path / "codecs.safetensors")
    opened = Codecs.open(tmp_path / "codecs.safetensors")
    assert (opened.names, opened.measured, opened.kinds) == (codecs.names, codecs.measured, ("image", "text"))
    for name in codecs.names:
        np.testing.assert_array_equal(opened[name].encode(UNSEEN), codecs[name].encode(UNSEEN))
    opened.require(MODEL, DIM)
    with pytest.raises(
        InputError, match=r"fitted to model 111111111111\.\.\. \(width 64\), the bundle is 222222222222"
    ):
        opened.require("2" * 64, DIM)


def test_pictures_alone_or_texts_alone() -> None:
    pictures = fit_codecs({"image": IMAGES[:64]}, MODEL)
    assert pictures.measured["k"] == 1
    bits = pictures["bits"]
    with pytest.raises(InputError, match="codec bits: was fitted without vectors of kind 'text'"):
        bits.scores(ASKED, bits.encode(UNSEEN), asking="text")
    with pytest.raises(InputError, match="codec int8: was fitted without vectors of kind 'text'"):
        pictures.codec("int8", "text")
    assert pictures.codec("d8", "text").encode(ASKED).shape == (200, 8)
    texts = fit_codecs({"text": TEXTS}, MODEL, [20])
    assert texts.names == ("fp16", "d20", "int8", "bits")
    assert recall(texts["int8"], ASKED, ASKED, "text", same=True) > 0.9
    narrow = clip_like(80, 12)  # D that no byte divides
    found = fit_codecs({"image": narrow}, MODEL)
    assert found.names == ("fp16", "int8", "bits")
    assert found["bits"].encode(narrow).shape == (80, 2)
    assert found["bits"].scores(narrow[:1], found["bits"].encode(narrow[:1])).tolist() == [[1.0]]


def with_nan(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found = rows.copy()
    found[5, 3] = np.nan
    return found


@pytest.mark.parametrize(
    ("vectors", "widths", "message"),
    [
        ({}, None, "expected vectors of pictures or texts to fit to, got none"),
        ({"image": IMAGES[:63]}, None, "image vectors: expected at least 64 to fit codecs to, got 63"),
        ({"image": IMAGES, "text": TEXTS[:9]}, None, "text vectors: expected at least 32 to fit codecs to, got 9"),
        ({"image": IMAGES, "text": TEXTS[:, :8]}, None, r"text vectors: expected \(N, 64\) float unit rows, got \(400, 8\)"),
        ({"image": with_nan(IMAGES)}, None, r"image vectors\[5\]: expected a row of length 1, got nan"),
        ({"image": 2 * IMAGES}, None, r"image vectors\[0\]: expected a row of length 1, got 2"),
        ({"image": IMAGES[0]}, None, r"image vectors: expected \(N, 64\) float unit rows, got \(64,\) float32"),
        ({"image": (IMAGES * 100).astype(np.int8)}, None, r"got \(3000, 64\) int8"),
        ({"image": IMAGES}, [32, 64], "expected widths from 1 to 63, below the embedding's 64, got 64"),
    ],
)  # fmt: skip
def test_fits_that_are_refused(vectors: Any, widths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_codecs(vectors, MODEL, widths)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda c: c["d64"], "codec 'd64': not in this bundle. Choose from fp16, d32, d16, d8, int8, bits"),
        (lambda c: c["int8"].encode(UNSEEN[:, :9]), r"vectors: expected \(N, 64\) float unit rows, got \(1500, 9\)"),
        (lambda c: c["bits"].encode(with_nan(UNSEEN)), r"vectors\[5\]: expected a row of length 1, got nan"),
        (lambda c: c["d16"].scores(2 * ASKED, c["d16"].encode(UNSEEN)), r"queries\[0\]: expected a row of length 1"),
        (lambda c: c["int8"].scores(ASKED, c["fp16"].encode(UNSEEN)), r"codec int8 expects \(N, 64\) int8, got .* float16"),
        (lambda c: c["bits"].decode(c["int8"].encode(UNSEEN)), r"codec bits expects \(N, 8\) uint8, got \(1500, 64\) int8"),
        (lambda c: c["fp16"].search(ASKED, 0, UNSEEN), "expected k and oversampling of 1 or more, got 0"),
        (
            lambda c: c["bits"].search(ASKED, 1, c["bits"].encode(UNSEEN), rescore=(c["fp16"], c["fp16"].encode(ASKED))),
            "rescore: expected 1500 codes, one for each, got 200",
        ),
    ],
)  # fmt: skip
def test_calls_that_are_refused(codecs: Codecs, work: Callable[[Codecs], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        work(codecs)


def facts(file: Path) -> dict[str, Any]:
    import safetensors

    with safetensors.safe_open(file, framework="np") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["edgeclip"])
    return found


@pytest.mark.parametrize(
    ("tensors", "said", "message"),
    [
        ({}, {"format": "edgeclip.labels"}, "not a file of codecs"),
        ({}, {"version": 2}, "codecs of version 2, this edgeclip reads 1"),
        ({}, {"dim": 32}, "tensors and facts do not match"),
        ({}, {"dim": "wide"}, "damaged codecs"),
        ({}, {"cut": {"70": True}}, "tensors and facts do not match"),
        ({}, {"cut": [16]}, "damaged codecs"),
        ({"rotation": np.eye(8, DIM, dtype=np.float32)}, {}, "tensors and facts do not match"),
        ({"image.scale": np.zeros(DIM, np.float32)}, {}, "tensors and facts do not match"),
        ({"image.mean": np.full(DIM, np.nan, np.float32)}, {}, "tensors and facts do not match"),
        ({"text.mean": np.zeros(DIM)}, {}, "tensors and facts do not match"),
        ({"else": np.zeros(1, np.float32)}, {}, "tensors and facts do not match"),
    ],
)
def test_damaged_files(codecs: Codecs, tmp_path: Path, tensors: Any, said: Any, message: str) -> None:
    file = tmp_path / "codecs.safetensors"
    codecs.save(file)
    save_file({**load_file(file), **tensors}, file, {"edgeclip": json.dumps({**facts(file), **said})})
    with pytest.raises(InputError, match=message) as raised:
        Codecs.open(file)
    assert str(file) in str(raised.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no safetensors")
    for name in ("x", "absent"):
        with pytest.raises(InputError, match="not a file of codecs that can be read"):
            Codecs.open(tmp_path / name)
