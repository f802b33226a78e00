"""The model: values against numpy, shapes for one and for many, order, errors, labels, threads, forks, idling."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.bundle import Bundle
from edgeclip.errors import BundleError, EdgeClipError, EngineError, InputError
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.engines.onnxruntime_cpu import OnnxRuntimeCpu
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.model import Model, load
from edgeclip.runtime.results import Classification, rank, to_scores
from tests.runtime.toy import DIM, PREPROCESSING, TEXT, image_reference, make_bundle, picture, text_reference

TOLERANCE = 1e-6  # float32 noise of one product of 3,072 terms is 2e-7


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


@pytest.fixture
def model(bundle: Bundle) -> Iterator[Model]:
    with load(bundle, threads=2) as opened:
        yield opened


def expected(*pictures: np.ndarray) -> np.ndarray:
    return image_reference(np.stack([preprocess(one, PREPROCESSING) for one in pictures]))


def jpeg(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("count", [1, 2, 3, 7])  # with batches of 3: less than one, one, and a remainder
def test_images_equal_the_reference_in_order(model: Model, count: int) -> None:
    pictures = [picture(seed) for seed in range(count)]
    found = model.embed_images(pictures, batch_size=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(*pictures), rtol=0, atol=TOLERANCE)
    assert np.abs(found[0] - expected(picture(11))[0]).max() > 0.01, "different pictures must differ"


def test_one_in_one_out_and_none(model: Model, tmp_path: Path) -> None:
    array = picture(3)
    (tmp_path / "p.png").write_bytes(jpeg(array))
    want = expected(array)[0]
    for one in (array, jpeg(array), tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(array)):
        found = model.embed_images(one)
        assert found.shape == (DIM,)
        np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE)
    assert model.embed_images(np.stack([array, array])).shape == (2, DIM)  # an array of four axes is a batch
    assert model.embed_images(one for one in [array]).shape == (1, DIM)
    assert model.embed_images([]).shape == (0, DIM)
    assert model.embed_texts([]).shape == (0, DIM)
    assert model.embed_texts("a cat").shape == (DIM,)
    assert model.classify([], ["cat"]) == []


def test_bgr_frames(model: Model) -> None:
    array = picture(4)
    found = model.embed_images(np.ascontiguousarray(array[:, :, ::-1]), color="bgr")
    np.testing.assert_allclose(found, expected(array)[0], rtol=0, atol=TOLERANCE)


def test_pixels(model: Model) -> None:
    pixels = np.stack([preprocess(picture(seed), PREPROCESSING) for seed in range(5)])
    np.testing.assert_allclose(
        model.embed_pixels(pixels, batch_size=2), image_reference(pixels), rtol=0, atol=TOLERANCE
    )
    assert model.embed_pixels(pixels[0]).shape == (DIM,)
    with pytest.raises(InputError, match=r"expected float32 \(N, 3, 32, 32\), got float64"):
        model.embed_pixels(pixels.astype(np.float64))
    with pytest.raises(InputError, match=r"got float32 \(5, 32, 32, 3\)"):
        model.embed_pixels(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))


def test_texts_of_every_length_keep_their_order(model: Model) -> None:
    texts = [
        "a cat",
        "a photo of a dog",
        "cat",
        "a photo of a photo of a bicycle",
        "DOG",
    ] * 9  # more than one batch
    ids = np.zeros((len(texts), TEXT.context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        encoded = model.encode_texts([text]).input_ids[0]
        row[: len(encoded)] = encoded
    np.testing.assert_allclose(model.embed_texts(texts), text_reference(ids), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        model.embed_texts(texts[::-1]), text_reference(ids)[::-1], rtol=0, atol=TOLERANCE
    )


def test_text_cache_is_bounded_and_does_not_change_values(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(bundle, threads=1) as model:
        model._prompts._capacity = 2
        first = model.embed_texts(["cat", "dog", "bicycle"])
        assert list(model._prompts._known) == ["dog", "bicycle"]
        np.testing.assert_array_equal(model.embed_texts(["bicycle", "cat", "cat"]), first[[2, 0, 0]])
        calls = []
        monkeypatch.setattr(model._prompts, "_run", lambda texts, numbers: calls.append(texts) or iter(()))
        model.embed_texts(["cat", "bicycle"])
        assert calls == [[]]


def test_overlong_text_is_cut_visibly_and_refused_when_strict(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    long = "dog " * 40
    with caplog.at_level(logging.WARNING):
        found = model.embed_texts(["cat", long])
    assert "1 of 2 texts are longer than 12 tokens, the first is texts[1] with 42" in caplog.text
    ids = model.encode_texts([long])
    assert ids.truncated == (0,)
    assert ids.input_ids[0].tolist() == [1] + [6] * 10 + [2], "the last id of a cut text is the end mark"
    np.testing.assert_allclose(found[1], text_reference(ids.input_ids)[0], rtol=0, atol=TOLERANCE)
    with pytest.raises(InputError, match="longer than 12 tokens"):
        model.embed_texts(["cat", long], strict=True)


def test_classify_matches_the_formula(model: Model) -> None:
    pictures, labels = [picture(1), picture(8)], ["cat", "dog", "bicycle"]
    results = model.classify(pictures, labels)
    prompts = model.embed_texts([f"a photo of a {label}" for label in labels]).astype(np.float64)
    logits = 10 * expected(*pictures) @ prompts.T
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for result, row in zip(results, scores, strict=True):
        order = np.argsort(-row)
        assert result.labels == tuple(labels[i] for i in order)
        assert result.label == labels[order[0]]
        assert result.label_index == order[0]
        np.testing.assert_allclose(result.scores, row[order], rtol=0, atol=1e-5)
        assert result.to_dict()["labels"] == list(result.labels)
    assert isinstance(model.classify(pictures[0], labels), Classification)
    assert model.classify(pictures[0], labels, top_k=2).labels == results[0].labels[:2]
    assert model.classify(pictures[0], labels, top_k=2).score == results[0].score


def test_sigmoid_and_bias(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "s", activation="sigmoid", logit_bias=-3.0)
    with load(bundle, threads=1) as model:
        result = model.classify(picture(1), ["cat", "dog"])
        cosine = expected(picture(1))[0] @ model.embed_texts("a photo of a dog").astype(np.float64)
    score = dict(result.ranked())["dog"]
    assert score == pytest.approx(1 / (1 + np.exp(-(10 * cosine - 3))), abs=1e-5)
    assert to_scores(np.array([[1e6, -1e6]], np.float32), 1.0, 0.0, "sigmoid").tolist() == [[1.0, 0.0]]


def test_templates_are_averaged_and_normalised_again(model: Model) -> None:
    templates = ["a {}", "a photo of a {}", "{}"]
    pack = model.make_labels(["cat", "dog"], templates)
    for row, label in zip(pack.vectors, ["cat", "dog"], strict=True):
        mean = model.embed_texts([t.replace("{}", label) for t in templates]).astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=0, atol=TOLERANCE)
    with pytest.raises(InputError, match=r"'a photo' has no \{\}"):
        model.classify(picture(1), ["cat"], ["a photo"])


def test_the_last_labels_are_put_together_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, templates = ["cat", "dog"], ["a {}", "a photo of a {}"]
    first = model.classify(picture(1), labels, templates)
    asked: list[int] = []
    embed = model._prompts.embed
    monkeypatch.setattr(
        model._prompts, "embed", lambda texts, **k: (asked.append(len(texts)), embed(texts, **k))[1]
    )
    assert model.classify(picture(1), list(labels), tuple(templates)) == first
    assert asked == []
    other = model.classify(picture(1), labels, templates[:1])
    turned = model.classify(picture(1), labels[::-1], templates)
    assert asked == [2, 4]
    assert other.scores != first.scores
    assert (turned.labels, turned.label_indices) == (first.labels, tuple(1 - i for i in first.label_indices))
    model.classify(picture(1), labels, templates)
    model.make_labels(labels, templates).vectors[:] = 0
    assert model.classify(picture(1), labels, templates) == first, "a pack is its owner's"
    for most in (0, 1):  # two labels are more than are to be kept
        model.keep_texts(most)
        asked.clear()
        for _ in range(2):
            assert model.classify(picture(1), labels, templates) == first
        assert asked == [4, 4]


def test_none_of_these(model: Model) -> None:
    result = model.classify(picture(1), ["cat", "dog"], threshold=0.999)
    assert (result.label, result.label_index) == (None, -1)
    assert result.score == result.scores[0] < 0.999
    assert model.classify(picture(1), ["cat", "dog"], threshold=0.0).label == result.labels[0]
    # of each label its own: the best one misses its threshold, the second reaches its
    ranked = rank(np.array([0.2, 0.5, 0.3]), ["x", "y", "z"], 2, [0.1, 0.9, 0.3])
    assert (ranked.label, ranked.label_index, ranked.score, ranked.labels) == ("z", 2, 0.3, ("y", "z"))
    ties = rank(np.array([0.01, 0.02] * 50), [str(i) for i in range(100)], None, None)
    assert ties.label_indices == (*range(1, 100, 2), *range(0, 100, 2)), "ties keep the caller's order"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "expected at least one"),
        (["cat", " "], r"labels\[1\]: expected a text"),
        (["cat", "dog", "cat"], r"labels\[2\]: 'cat' is also labels\[0\]"),
        ("cat", "expected a list of labels, got the one string"),
        (["cat", 7], r"labels\[1\]: expected a text, got 7"),
    ],
)
def test_labels_that_are_refused(model: Model, labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.classify(picture(1), labels)


def test_wrong_settings_are_refused(model: Model, bundle: Bundle) -> None:
    for bad in ({"top_k": 0}, {"threshold": 1.5}, {"batch_size": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            model.classify(picture(1), ["cat"], **bad)
    with pytest.raises(InputError, match="decode: expected"):
        load(bundle, decode="quick")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="no image tower in int8; it has fp32"):
        load(bundle, precision="int8")
    with pytest.raises(InputError, match=r"texts\[1\]: expected a str, got int"):
        model.embed_texts(["a", 3])  # type: ignore[list-item]


def test_a_bad_picture_is_named_and_never_stops_the_rest(model: Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    items = [picture(1), bad, picture(2), b"", picture(3)]
    found = list(model.embed_each(items, batch_size=2))
    want = expected(picture(1), picture(2), picture(3))
    for i, row in zip((0, 2, 4), want, strict=True):
        np.testing.assert_allclose(found[i], row, rtol=0, atol=TOLERANCE)
    assert isinstance(found[1], InputError)
    assert str(bad) in str(found[1])
    assert "images[3]: the file is empty" in str(found[3])
    with pytest.raises(InputError, match=r"bad\.jpg: not a picture"):
        model.embed_images(items)
    results = list(model.classify_each(items, ["cat", "dog"]))
    assert [isinstance(result, Classification) for result in results] == [True, False, True, False, True]


def test_towers_open_on_demand_and_apart(model: Model) -> None:
    assert model.info().towers == {}
    model.embed_images(picture(1))
    assert set(model.info().towers) == {"image"}
    assert model.info().towers["image"]["provider"] == "CPUExecutionProvider"
    assert "image-fp32 on onnxruntime-cpu" in str(model.info())
    model.warmup()
    assert set(model.info().towers) == {"image", "text"}
    assert not model._prompts._known, "warming up leaves no text behind"


def test_bundles_with_one_tower(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path / "image", text=False)) as model:
        assert model.embed_images(picture(1)).shape == (DIM,)
        model.warmup()
        with pytest.raises(EngineError, match="has no text tower"):
            model.classify(picture(1), ["cat"])
    with load(make_bundle(tmp_path / "text", image=False)) as model:
        assert model.embed_texts("cat").shape == (DIM,)
        with pytest.raises(EngineError, match="has no image tower"):
            model.embed_images(picture(1))


def test_closed_model_refuses(bundle: Bundle) -> None:
    model = load(bundle)
    model.embed_images(picture(1))
    model.close()
    model.close()
    for call in (
        lambda: model.embed_images(picture(1)),
        lambda: model.embed_texts("a"),
        lambda: model.classify([], ["a"]),
    ):
        with pytest.raises(EngineError, match="was closed"):
            call()


def test_an_engine_that_does_not_close_is_forgotten_all_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that is lost: the next call opens another one."""

    def lost(engine: OnnxRuntimeCpu) -> None:
        raise EngineError("lost")

    with load(bundle) as model:
        model.embed_texts("a cat")
        (tower,) = (tower for tower in model.towers if tower.name == "text")
        monkeypatch.setattr(OnnxRuntimeCpu, "close", lost)
        with pytest.raises(EngineError, match="lost"):
            tower.close()
        monkeypatch.undo()
        assert tower.engine is None


def test_idle_towers_are_unloaded_and_come_back(bundle: Bundle) -> None:
    with load(bundle, unload_after=0.2) as model:
        first = model.embed_images(picture(1))
        assert "image" in model.info().towers
        deadline = time.monotonic() + 5
        while model.info().towers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert model.info().towers == {}
        np.testing.assert_array_equal(model.embed_images(picture(1)), first)
        rows = model.embed_each([picture(2)] * 3, batch_size=1)
        next(rows)
        time.sleep(0.5)
        assert "image" in model.info().towers, "a tower in use is not unloaded"
        rows.close()


def test_many_threads_get_their_own_results(model: Model) -> None:
    want = expected(*[picture(seed) for seed in range(8)])
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(20):
            if np.abs(model.embed_images(picture(seed)) - want[seed]).max() > TOLERANCE:
                wrong.append(seed)
            if np.abs(np.linalg.norm(model.embed_texts(f"a {'photo ' * seed}cat")) - 1) > 1e-5:
                wrong.append(-seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


FORKING = """
import os, sys
import numpy as np
from edgeclip.runtime.model import load

pictures = [np.full((40, 40, 3), value, np.uint8) for value in (9, 99, 199)]
model = load(sys.argv[1], threads=8)  # the destructor of an inherited session crashes from four threads on
want, words = model.embed_images(pictures), model.embed_texts(["cat"])  # engines and decoding threads are alive now
child = os.fork()
found = model.embed_images(pictures)
good = np.array_equal(found, want) and np.array_equal(model.embed_texts(["dog", "cat"])[1:], words)
if child == 0:
    os._exit(0 if good else 1)  # as multiprocessing ends its children; onnxruntime itself hangs in the exit handlers of one
sys.exit(0 if good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_engines(bundle: Bundle) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(bundle.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_files_added_or_changed_after_opening_are_seen_before_the_engine_reads_them(
    bundle: Bundle, tmp_path: Path
) -> None:
    outside = tmp_path / "weights.bin"
    outside.write_bytes(b"secret")
    os.link(outside, bundle.root / "graphs" / "weights.bin")
    with load(bundle) as model, pytest.raises(BundleError, match=r"weights\.bin: the manifest does not list"):
        model.embed_images(picture(1))
    (bundle.root / "graphs" / "weights.bin").unlink()
    with load(bundle) as model:
        (bundle.root / "graphs" / "image-fp32.onnx").write_bytes(b"other")
        with pytest.raises(BundleError, match="5 bytes, the manifest says"):
            model.embed_images(picture(1))


def test_works_on_a_read_only_disk_without_home(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "EDGECLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = sorted((path, path.stat().st_mtime_ns) for path in bundle.root.rglob("*"))
    for path, _ in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with load(bundle.root) as model:
        assert model.classify(picture(1), ["cat", "dog"]).label in ("cat", "dog")
    assert sorted((path, path.stat().st_mtime_ns) for path in bundle.root.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    for path, _ in before:
        path.chmod(0o755)


def test_engine_that_does_not_exist(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="Choose one of onnxruntime-cpu"):
        load(bundle, engine="tpu")
    with load(
        bundle, options=EngineOptions(threads=1, spinning=False, arena=False, prepacking=False)
    ) as model:
        np.testing.assert_allclose(
            model.embed_images(picture(1)), expected(picture(1))[0], rtol=0, atol=TOLERANCE
        )
        assert model.info().threads == 1


def test_newer_onnxruntime_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    variants = tuple(replace(v, requires={"onnxruntime": "99.1"}) for v in bundle.manifest.variants)
    picky = make_bundle(tmp_path / "picky", variants=variants)
    with load(picky) as model, pytest.raises(EngineError, match=r"needs onnxruntime 99\.1, this is"):
        model.embed_images(picture(1))
    assert issubclass(EngineError, EdgeClipError)
