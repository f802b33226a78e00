"""Graphs that are made beside an engine: what they lose, what is refused, and what is told instead."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import edgeclip
from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed, InputError, MissingExtraError
from edgeclip.export import prepare
from edgeclip.export.compress.budget import parse_budgets
from edgeclip.export.prepare import Converter, documented
from edgeclip.export.samples import TEXTS, encode, made_up_pictures
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.settings import Made
from tests.export.compress.small import make_small

RTX, OLD = Library("tensorrt-rtx", None, "1.7.1.116"), Library("tensorrt", None, "10.3.0.30")


@pytest.fixture(scope="module")
def nano() -> Bundle:
    """Stores fp16 and computes in fp32."""
    return edgeclip.open_bundle("nano")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(made_up_pictures(12)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def text_of(bundle: Bundle) -> Variant:
    return next(v for v in bundle.manifest.variants if v.tower == "text")


def made_of(
    bundle: Bundle, precision: str, folder: Path, converter: Converter | None = None, **changes: Any
) -> Made:
    settings: dict[str, Any] = {"base": text_of(bundle), "library": RTX, "archs": ("sm89",), **changes}
    return (converter or Converter(threads=1)).convert(
        bundle, precision=precision, folder=folder, tell=lambda step: None, **settings
    )


def rows(graph: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(graph))
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: ids})[0]
    return found.astype(np.float64)


@pytest.mark.parametrize(("precision", "at_least", "at_most"), [("fp16", 1e-5, 0.002), ("int8", 0.003, 0.1)])
def test_a_conversion_is_as_far_from_fp32_as_it_says(
    precision: str, at_least: float, at_most: float, nano: Bundle, tmp_path: Path
) -> None:
    made = made_of(nano, precision, tmp_path)
    variant, base = made.variant, text_of(nano)
    assert (variant.id, variant.axes.precision, variant.computes_in) == (
        f"text-{precision}",
        precision,
        precision,
    )
    assert (variant.inputs, variant.outputs) == (base.inputs, base.outputs)
    # our own arithmetic on texts, beside what is stated of the held-out half
    assert nano.manifest.text is not None
    ids = encode(TEXTS, nano.path(nano.manifest.text.tokenizer), nano.manifest.text).input_ids[1::2]
    a, b = rows(nano.path(base.files[0]), ids), rows(tmp_path / variant.files[0], ids)
    apart = np.linalg.norm(a[:, None] - a[None], axis=2)[np.triu_indices(len(a), 1)]
    distance = np.linalg.norm(a - b, axis=1).mean() / np.median(apart)
    assert variant.fidelity is not None
    # onnxruntime's CPU leaves out fp16's roundings between nodes: it is closer to fp32 than what is stated
    assert distance <= variant.fidelity.relative_distance * 1.3
    assert at_least < variant.fidelity.relative_distance < at_most
    assert variant.fidelity.against == base.id
    assert variant.requires == {"tensorrt": "10.3"}


def test_bytes_are_symmetric_for_tensorrt(nano: Bundle, tmp_path: Path) -> None:
    made = made_of(nano, "int8", tmp_path)
    graph = onnx.load(tmp_path / made.variant.files[0]).graph
    kinds = {w.name: w.data_type for w in graph.initializer}
    zeros = [node.input[2] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros
    assert {kinds[name] for name in zeros} == {onnx.TensorProto.INT8}


def test_out_of_bounds_is_refused_with_its_figures(nano: Bundle, tmp_path: Path) -> None:
    strict = Converter(budgets=parse_budgets(["distance=0.00001"]), threads=1)
    with pytest.raises(CheckFailed, match=r"no engine is built.*distance 0\.000\d+, at most 1e-05 allowed"):
        made_of(nano, "fp16", tmp_path, strict)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_what_the_bundle_promises_is_refused(nano: Bundle, tmp_path: Path) -> None:
    """The graph's own fp32 rows would agree: only the golden rows tell that it is another model's."""
    other = replace(nano, root=tmp_path / "other")
    shutil.copytree(nano.root, other.root)
    golden = other.root / nano.manifest.golden
    with safe_open(golden, framework="np") as file:
        arrays, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**arrays, "text_embeddings": arrays["text_embeddings"][::-1].copy()}, golden, metadata=facts)
    with pytest.raises(
        CheckFailed, match=r"text-fp16: relative distance to the golden rows is .*No engine is built"
    ):
        made_of(other, "fp16", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_rules_refuse_never_reaches_tensorrt(tmp_path: Path) -> None:
    small = make_small(tmp_path / "small")  # 48 wide: no multiple of 64
    with pytest.raises(
        CheckFailed, match=r"text-int4: TensorRT 11\.4 would not take it: .*blocks of 16.*and \d+ more"
    ):
        made_of(small, "int4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_type_that_the_gpu_has_not(nano: Bundle, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--precision fp8: sm86 has no fp8, which needs compute capability 8\.9"
    ):
        made_of(nano, "fp8", tmp_path, archs=("sm89", "sm86"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_pictures_to_calibrate_on(precision: str, nano: Bundle, photos: Path, tmp_path: Path) -> None:
    image = nano.manifest.variants_of("image")[0]
    with pytest.raises(InputError, match=rf"--precision {precision}: needs pictures.*--images FOLDER"):
        made_of(nano, precision, tmp_path, base=image)
    with pytest.raises(InputError, match=r"--images .*nowhere: no such folder"):
        made_of(nano, precision, tmp_path, Converter(images=tmp_path / "nowhere"), base=image)


def test_without_onnx_it_says_where_to_convert(nano: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "NEEDS", ("onnx_that_is_not_there",))
    with pytest.raises(
        MissingExtraError,
        match=r"no graph that computes in fp16.*at the workstation.*edgeclip compress BUNDLE -o OUT --precision fp16 --unproven",
    ):
        Converter().plan(text_of(nano), "fp16")


@pytest.mark.parametrize("precision", ["int8-dynamic", "int3"])
def test_precisions_that_tensorrt_has_not(precision: str, nano: Bundle) -> None:
    with pytest.raises(
        InputError, match=rf"--precision {precision}: .*Choose from fp32, fp16, bf16, int8, fp8, int4"
    ):
        Converter().plan(text_of(nano), precision)


@pytest.mark.parametrize(
    ("name", "version", "rules"),
    [
        ("tensorrt", "10.3.0.30", "10.3"), ("tensorrt", "10.7.0.1", "10.3"), ("tensorrt", "10.16.1.1", "10.16"),
        ("tensorrt", "11.4.1.2", "11.4"), ("tensorrt", "12.0.0.1", "11.4"), ("tensorrt-rtx", "1.7.1.116", "11.4"),
    ],
)  # fmt: skip
def test_rules_of_the_nearest_release(name: str, version: str, rules: str) -> None:
    assert documented(Library(name, None, version)) == rules


def test_what_a_conversion_depends_on(nano: Bundle, photos: Path, tmp_path: Path) -> None:
    image, text = nano.manifest.variants_of("image")[0], text_of(nano)
    plain = Converter().facts(image, "fp16")
    assert plain == {"precision": "fp16", "samples": "made up", "budget": "distance=0.02"}
    with_photos = Converter(images=photos).facts(image, "fp16")
    (tmp_path / "more").mkdir()
    for path in photos.iterdir():
        (tmp_path / "more" / path.name).write_bytes(path.read_bytes())
    assert Converter(images=tmp_path / "more").facts(image, "fp16") == with_photos != plain
    first = tmp_path / "more" / "0.png"
    first.write_bytes(first.read_bytes() + b"\0")
    assert Converter(images=tmp_path / "more").facts(image, "fp16") != with_photos
    first.unlink()
    assert Converter(images=tmp_path / "more").facts(image, "fp16") != with_photos
    assert Converter(images=photos).facts(text, "fp16")["samples"] == "built in"
    assert Converter(budgets=parse_budgets(["cosine=0.9"])).facts(text, "fp16")["budget"] == "cosine=0.9"
