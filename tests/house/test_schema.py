"""The published JSON Schema, with which programs in other languages read a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from edgeclip.bundle.schema import manifest_schema
from tests.runtime.toy import make_bundle

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/bundle.schema.json").read_text(encoding="utf-8"))
NANO = ROOT / "edgeclip/assets/nano/bundle.json"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy bundle's manifest."""
    bundle = make_bundle(tmp_path_factory.mktemp("schema") / "toy")
    return (bundle.root / "bundle.json").read_text(encoding="utf-8")


def check(content: object) -> None:
    Draft202012Validator(SCHEMA).validate(content)


def test_published_schema_is_the_one_that_the_code_makes() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert manifest_schema() == SCHEMA, "run: python -m edgeclip.bundle.schema > docs/bundle.schema.json"


def test_every_bundle_passes(text: str, tmp_path: Path) -> None:
    check(json.loads(text))
    for name, options in (("texts", {"image": False}), ("pictures", {"text": False})):
        bundle = make_bundle(tmp_path / name, **options)
        check(json.loads((bundle.root / "bundle.json").read_text(encoding="utf-8")))


@pytest.mark.skipif(not NANO.exists(), reason="the embedded model, nano, is not in this tree")
def test_nano_passes() -> None:
    check(json.loads(NANO.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("model_id"),
        lambda data: data.pop("digest"),
        lambda data: data.update(format="zip"),
        lambda data: data.update(version=[2, 0]),
        lambda data: data.update(version=[1]),
        lambda data: data.update(digest="0" * 63),
        lambda data: data.update(activation="relu"),
        lambda data: data.update(embedding_dim="8"),
        lambda data: data.update(licence=None),
        lambda data: data["files"]["tokenizer.json"].pop("sha256"),
        lambda data: data["variants"][0].update(tower="audio"),
        lambda data: data["variants"][0]["axes"].update(precision="fp12"),
        lambda data: data["variants"][0]["inputs"][0].update(shape=["N", 3.5]),
        lambda data: data["preprocessing"].update(mean=[0.5, 0.5]),
        lambda data: data["text"].update(eos_id="</s>"),
    ],
)
def test_damaged_manifests_fail(damage: Callable[[Any], object], text: str) -> None:
    data = json.loads(text)
    damage(data)
    with pytest.raises(ValidationError):
        check(data)


def test_newer_minor_version_with_unknown_fields_passes(text: str) -> None:
    check({**json.loads(text), "version": [1, 9], "invented_later": 1})
