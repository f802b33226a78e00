"""What queries draw from: folders with good and bad pictures, pictures that edgeclip makes, texts."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.bench import generated, samples
from edgeclip.bench.samples import load_inputs
from edgeclip.bench.settings import Settings
from edgeclip.errors import InputError
from tests.photographs import needs_photographs, photographs
from tests.runtime.toy import picture


def write(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed, 40 + 8 * seed, 24)).save(folder / name)


@pytest.fixture
def settings():
    return Settings()


def test_a_folder_in_the_order_of_its_names(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, "b.jpg", "a.png", "c.webp")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", "d.bmp")
    found = load_inputs(tmp_path, "classify", settings)
    names = ["a.png", "b.jpg", "below/d.bmp", "c.webp"]
    assert found.pictures == tuple((tmp_path / name).read_bytes() for name in names)
    sizes = sorted(map(len, found.pictures))
    facts = found.facts
    assert (facts.kind, facts.count, facts.median_bytes, facts.median_pixels) == (
        "pictures",
        4,
        sizes[1],
        40 * 24,
    )
    sha = hashlib.sha256()
    for data in found.pictures:
        sha.update(len(data).to_bytes(8, "little") + data)
    assert facts.sha256 == sha.hexdigest()
    assert load_inputs(tmp_path / "b.jpg", "embed", settings).pictures == (found.pictures[1],)


def test_what_cannot_be_used_is_left_out_and_told(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "good.jpg", "cut.jpg", "empty.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = load_inputs(tmp_path, "classify", settings)
    assert found.pictures == ((tmp_path / "good.jpg").read_bytes(),)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "cut.jpg" in told[0]
    assert "empty.jpg: the file is empty" in told[1]


def test_bad_folders_are_refused_in_one_line(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(
        InputError, match=r"nowhere: no such file or folder\. Expected a folder of pictures\.$"
    ):
        load_inputs(tmp_path / "nowhere", "classify", settings)
    with pytest.raises(
        InputError, match=r"cannot be read \(File name too long\)\. Expected a folder of pictures\.$"
    ):
        load_inputs(tmp_path / ("a" * 300), "classify", settings)
    with pytest.raises(InputError, match=r"holds no pictures\. Their names end in \.avif, "):
        load_inputs(tmp_path, "classify", settings)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"none of its pictures can be used\. Pass a folder of photographs\.$"
    ):
        load_inputs(tmp_path, "classify", settings)
    with pytest.raises(InputError, match=r"task 'embed-text' reads texts, no pictures\. Drop --images\.$"):
        load_inputs(tmp_path, "embed-text", settings)
    with pytest.raises(
        InputError, match=r"^task 'segment': no such task\. Choose one of classify, detect, embed, "
    ):
        load_inputs(None, "segment", settings)


def test_of_too_many_the_seed_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *(f"{i}.png" for i in range(9)))
    monkeypatch.setattr(samples, "MOST_PICTURES", 4)
    found = [load_inputs(tmp_path, "classify", Settings(seed=seed)).pictures for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert set(found[0]) != set(found[2])
    assert [len(one) for one in found] == [4, 4, 4]


def test_at_most_so_many_bytes_but_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    write(tmp_path, "a.png", "b.png", "c.png")
    sizes = [len((tmp_path / name).read_bytes()) for name in ("a.png", "b.png")]
    monkeypatch.setattr(samples, "MOST_BYTES", sum(sizes))
    assert len(load_inputs(tmp_path, "classify", settings).pictures) == 2
    monkeypatch.setattr(samples, "MOST_BYTES", 1)
    assert len(load_inputs(tmp_path, "classify", settings).pictures) == 1


def test_without_a_folder_edgeclip_makes_pictures(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "COUNT", 3)
    found = load_inputs(None, "classify", settings)
    assert (found.facts.kind, found.facts.count, found.facts.median_pixels) == ("generated", 3, 640 * 480)
    assert found == load_inputs(None, "classify", settings)
    assert len(set(found.pictures)) == 3
    assert all(150_000 < len(data) < 200_000 for data in found.pictures)  # photographs: 176,000


def test_made_pictures_have_the_spectrum_of_photographs() -> None:
    grey = np.asarray(Image.open(io.BytesIO(generated._picture(0))).convert("L"), np.float64)
    power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)[None])
    edges = np.geomspace(0.01, 0.35, 9)
    middle = np.sqrt(edges[1:] * edges[:-1])
    means = [power[(frequency >= a) & (frequency < b)].mean() for a, b in pairwise(edges)]
    slope = np.polyfit(np.log(middle), np.log(means), 1)[0]
    assert -2.6 < slope < -1.6  # of power; photographs have -2, white noise 0 (Field 1987)


@pytest.mark.parity
@needs_photographs
def test_made_pictures_cost_what_photographs_do() -> None:
    found = [path.read_bytes() for path in photographs()]
    found = [data for data in found if Image.open(io.BytesIO(data)).size == (640, 480)]

    def cost(pictures):
        times = []
        for data in pictures:
            start = time.thread_time_ns()
            Image.open(io.BytesIO(data)).convert("RGB").load()
            times.append(time.thread_time_ns() - start)
        return np.array(times)

    made = generated.generated_pictures()
    rounds = [(cost(found), cost(made)) for _ in range(10)]  # in turn; the best of each picture
    ours, theirs = (np.median(np.min([one[i] for one in rounds], axis=0)) for i in (1, 0))
    assert 0.85 < ours / theirs < 1.1  # 0.94
    assert 0.95 < np.median(list(map(len, made))) / np.median(list(map(len, found))) < 1.1  # 1.02


def test_texts_are_sentences_or_the_labels(settings: Settings) -> None:
    found = load_inputs(None, "search", settings)
    assert found.texts == generated.SENTENCES
    assert found.pictures == ()
    assert (found.facts.kind, found.facts.count, found.facts.median_pixels) == ("texts", 16, 0)
    assert len({len(text.split()) for text in found.texts}) > 9  # of different lengths
    own = load_inputs(None, "embed-text", Settings(labels=("a cat", "ein Hund")))
    assert own.texts == ("a cat", "ein Hund")
    assert own.facts.sha256 != found.facts.sha256
