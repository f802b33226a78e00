"""OWL-ViT and OWLv2 that transformers wrote, against transformers itself, at small sizes; real ones are in test_families.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from edgeclip.bundle.manifest import Detection, Preprocessing
from edgeclip.errors import SourceError
from edgeclip.models import detector as module
from edgeclip.models.detector import Detector, DetectorModel, RegionHead
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source, save_source
from tests.checkpoints import OPENAI, TEXTS
from tests.families import Written, models
from tests.families.owlvit import SIZES, write_owl
from tests.models.test_families import check_detector, check_towers, encoded
from tests.mutants import broken


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Written]:
    """Not to be changed."""
    written = models()["owlv2-base-patch16"](tmp_path_factory.mktemp("owlv2"), "tiny")
    return load_source(written.spec), written


@pytest.mark.parametrize("name", SIZES)
def test_boxes_scores_and_embeddings_are_transformers_own(name: str, tmp_path: Path) -> None:
    written = models()[name](tmp_path, "tiny")
    source = load_source(written.spec)
    check_towers(source, written)
    boxes, scores = check_detector(source, written)
    assert boxes < 1e-6  # measured: 0
    assert scores < 3e-6  # measured: 1.1e-6, most of it from the 1e-6 that transformers adds to its norms
    assert (source.activation, source.pooling) == ("sigmoid", "patches/argmax")
    assert source.detection == Detection(threshold=0.1, nms_iou=0.5)
    assert float(source.model.logit_scale.detach()) == 0  # CLIP's own belongs to whole pictures


class TestPlantedFaults:
    """Each moves boxes or scores by more than the tolerance of 4e-6; no fault moves them by 1.1e-6."""

    def _fails(self, pair: tuple[Source, Written]) -> None:
        with pytest.raises(AssertionError, match="boxes"):
            check_detector(*pair)

    @pytest.mark.parametrize(
        ("where", "name", "old", "new"),
        [
            (Detector, "features", "self.norm(x[:, 1:] * x[:, :1])", "self.norm(x[:, 1:])"),
            (Detector, "features", "self.norm(x[:, 1:] * x[:, :1])", "self.norm(x[:, 1:]) * x[:, :1]"),
            (Detector, "features", "self.trunk.norm_post is not None", "False"),
            (Detector, "forward", "F.elu(self.scale(x)[..., 0]) + 1", "F.elu(self.scale(x)[..., 0])"),
            (Detector, "forward", "biases=scales * self", "biases=self"),
            (Detector, "forward", "torch.sigmoid(self.box_head(x) + self.box_bias)", "torch.sigmoid(self.box_head(x)) + self.box_bias"),
            (RegionHead, "forward", 'activate(self.fc1(x), "gelu")', 'activate(self.fc1(x), "quick_gelu")'),
            (RegionHead, "forward", 'activate(self.fc1(x), "gelu")', 'activate(self.fc1(x), "gelu_tanh")'),
            (module, "corners", "boxes[..., 2:] / 2", "boxes[..., 2:]"),
        ],
    )  # fmt: skip
    def test_in_the_code(
        self,
        where: Any,
        name: str,
        old: str,
        new: str,
        owlv2: tuple[Source, Written],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(where, name, broken(getattr(where, name), old, new))
        self._fails(owlv2)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("torch.arange(1, columns + 1) / columns", "(torch.arange(columns) + 0.5) / columns"),  # cell centres
            ("[x, y, ", "[y, x, "),
            ("where + _EPS) - torch", "where) - torch"),
            ("view(-1, 4)", "transpose(0, 1).reshape(-1, 4)"),
        ],
    )  # fmt: skip
    def test_in_the_grid(
        self, old: str, new: str, owlv2: tuple[Source, Written], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, written = owlv2
        assert isinstance(source.model, DetectorModel)
        detector = source.model.detector
        faulty = broken(module.grid_bias, old, new)(detector.config.image.grid)
        monkeypatch.setitem(detector._buffers, "box_bias", faulty)
        self._fails((source, written))


def test_padding_says_nothing(owlv2: tuple[Source, Written]) -> None:
    """Texts of the batch's longest are those of 16 tokens, which transformers pads with id 0, the token "!"."""
    source, written = owlv2
    assert source.text is not None
    assert written.text is not None
    assert (source.text.pad_id, source.text.context_length, source.text.dynamic_length) == (0, 16, True)
    ids = torch.from_numpy(encoded(source, ["a cat", "two dogs"])).long()
    assert ids.shape == (2, 16)
    assert int(ids[0, -1]) == 0
    longest = int((ids != 0).sum(1).max())
    with torch.no_grad():
        whole, cut = written.text(ids), source.model.encode_text(ids[:, :longest])
    torch.testing.assert_close(F.normalize(cut, dim=-1), F.normalize(whole, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "legacy", [True, False]
)  # vocab.json and merges.txt, as the released ones are; tokenizer.json
def test_ids_are_transformers_own_even_where_the_padding_token_is_said(legacy: bool, tmp_path: Path) -> None:
    from tests.families.transformers_models import tokenize

    write_owl(tmp_path, "owlvit-base-patch32", legacy_tokenizer=legacy)
    texts = [*TEXTS, "!", "stop!", "a cat ! a dog", "hey!!", "A photo of a CAT."]
    ours = encoded(load_source(str(tmp_path)), texts)
    assert (ours == tokenize(tmp_path, 16)(texts)).all()
    assert (
        0 in ours[texts.index("a cat ! a dog")][:6]
    )  # the mark is the padding token wherever it stands, as there


def test_own_checkpoints_come_back_as_they_were(owlv2: tuple[Source, Written], tmp_path: Path) -> None:
    source, written = owlv2
    other = Detection(
        0.3, 0.6, True, True, Preprocessing((48, 48), "squash", "bicubic", (0, 0, 0), (1, 1, 1))
    )
    for name, detection in (("plain", source.detection), ("other", other), ("none", None)):
        save_source(
            tmp_path / name, model=source.model, preprocessing=source.preprocessing, text=source.text,
            tokenizer_json=source.tokenizer_json, licence=source.licence, templates=source.templates, detection=detection,
        )  # fmt: skip
        again = load_source(str(tmp_path / name))
        assert again.detection == detection
    again = load_source(str(tmp_path / "plain"))
    assert again.family == "detector"
    assert (again.pooling, again.preprocessing, again.text) == (
        source.pooling,
        source.preprocessing,
        source.text,
    )
    assert (again.activation, again.templates, again.embedding_dim) == (
        "sigmoid",
        ("{}",),
        source.embedding_dim,
    )
    check_detector(again, written)


OLD: dict[str, dict[str, Any]] = {
    "sizes in lists": {"size": [96, 96], "crop_size": [96, 96], "do_center_crop": False},
    "one number": {"size": 96, "crop_size": 96, "do_center_crop": True},
    "sides by name": {"size": {"height": 96, "width": 96}, "crop_size": {"height": 96, "width": 96}},
}


@pytest.mark.parametrize("name", OLD)
def test_preprocessing_of_any_release_squashes(name: str, tmp_path: Path) -> None:
    write_owl(tmp_path, "owlvit-base-patch32")
    data = {
        **{
            "feature_extractor_type": "OwlViTFeatureExtractor",
            "do_normalize": True,
            "do_resize": True,
            "resample": 3,
        },
        **{"image_mean": OPENAI["mean"], "image_std": OPENAI["std"], "rescale": True, **OLD[name]},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    found = load_source(str(tmp_path)).preprocessing
    assert found == Preprocessing((96, 96), "squash", "bicubic", tuple(OPENAI["mean"]), tuple(OPENAI["std"]))  # type: ignore[arg-type]


def _edit(file: str, *keys: str, to: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        (folder / file).write_text(json.dumps(data))

    return edit


def _tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    path = "model.safetensors"
    return lambda folder: save_file(change(load_file(folder / path)), folder / path)


def test_what_older_releases_kept_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    write_owl(tmp_path, "owlvit-base-patch32")
    _tensors(
        lambda own: {
            **own, "box_bias": torch.zeros(36, 4), "owlvit.text_model.embeddings.position_ids": torch.arange(16)[None],
            "owlvit.vision_model.embeddings.position_ids": torch.arange(37)[None],
        }
    )(tmp_path)  # fmt: skip
    load_source(str(tmp_path))


PIXELS = "preprocessor_config.json"
REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no heads": (
        "owlvit-base-patch32",
        _tensors(lambda own: {k.removeprefix("owlvit."): v for k, v in own.items() if k.startswith("owlvit.")}),
        "is missing",
    ),
    "no objectness": (
        "owlv2-base-patch16",
        _tensors(lambda own: {k: v for k, v in own.items() if "objectness" not in k}),
        "'objectness_head.dense0.bias' is missing",
    ),
    "an objectness too many": (
        "owlv2-base-patch16",
        _edit("config.json", "model_type", to="owlvit"),
        "'objectness_head.dense0.bias' has no place",
    ),
    "another projection": (
        "owlvit-base-patch32",
        _edit("config.json", "projection_dim", to=64),
        r"texts become 64 numbers \(projection_dim\), regions 32",
    ),
    "no square": ("owlvit-base-patch32", _edit("config.json", "vision_config", "image_size", to=[96, 64]), "expected a square"),
    "another size": ("owlvit-base-patch32", _edit(PIXELS, "size", to=[64, 64]), "makes pictures of|is not a way of preparing"),
    "no padding": ("owlv2-base-patch16", _edit(PIXELS, "do_pad", to=False), "expected do_pad true and resample 2, got False and 2"),
    "another filter": ("owlv2-base-patch16", _edit(PIXELS, "resample", to=3), "expected do_pad true and resample 2, got True and 3"),
    "padding where there is none": ("owlvit-base-patch32", _edit(PIXELS, "do_pad", to=True), "do_pad is True, which edgeclip cannot do"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    model, spoil, message = REFUSED[name]
    write_owl(tmp_path, model)
    spoil(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("detection", "threshold"), "high", "threshold is 'high'"),
        (("detection", "colour"), 1, "colour"),
        (("detection", "preprocessing"), {"size": 3}, "does not describe a model of family 'detector'"),
        (("detection", "preprocessing"), {"size": [64, 64], "mode": "squash", "resample": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]},
         r"detection.preprocessing.size is \(64, 64\), but the detector takes \(48, 48\)"),
        (("preprocessing", "size"), [64, 64], r"preprocessing.size is \(64, 64\), but the image tower takes \(48, 48\)"),
        (("config", "detector", "image", "class_token"), False, "describes no model that can be built"),
    ],
)  # fmt: skip
def test_own_checkpoints_that_were_edited_are_refused(
    keys: tuple[str, ...], value: Any, message: str, owlv2: tuple[Source, Written], tmp_path: Path
) -> None:
    source, _ = owlv2
    save_source(
        tmp_path / "own", model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence, detection=source.detection,
    )  # fmt: skip
    _edit("config.json", *keys, to=value)(tmp_path / "own")
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(tmp_path / "own"))
    assert "\n" not in str(caught.value)


def test_the_objectness_trains_its_head_and_not_the_tower(owlv2: tuple[Source, Written]) -> None:
    """As OWLv2's does: Minderer et al. 2023, section 3.2; the authors' config says stop_gradient."""
    source, _ = owlv2
    assert isinstance(source.model, DetectorModel)
    detector = source.model.detector
    objectness = detector(torch.zeros(1, 3, 48, 48)).objectness
    assert objectness is not None
    names = [name for name, parameter in detector.named_parameters() if parameter.requires_grad]
    found = torch.autograd.grad(
        objectness.sum(), [dict(detector.named_parameters())[n] for n in names], allow_unused=True
    )
    assert {n.split(".")[0] for n, g in zip(names, found, strict=True) if g is not None} == {
        "objectness_head"
    }


def test_labels_of_a_detector_do_not_compete(owlv2: tuple[Source, Written]) -> None:
    source, _ = owlv2
    assert isinstance(source.model, DetectorModel)
    assert replace(source, spec="x").activation == source.model.activation == "sigmoid"
