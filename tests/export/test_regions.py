"""Region encoders as graphs: equal to their source at any number of boxes, in operators that every engine reads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

import edgeclip
from edgeclip.bundle import Axes, Bundle, Variant
from edgeclip.errors import CheckFailed
from edgeclip.export import region_parity, region_towers
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.onnx_graph import capture, count, write
from edgeclip.export.parity import TOLERANCES
from edgeclip.export.tensorrt_rules import required
from edgeclip.export.towers import tower_of
from edgeclip.models.source import Source
from edgeclip.runtime.tensorrt.builder import build
from edgeclip.runtime.tensorrt.library import load_library
from edgeclip.runtime.tensorrt.record import BuildOptions
from edgeclip.runtime.verify import verify
from edgeclip.runtime.verify_regions import made_up_boxes
from tests.export.regions import prompted_source, roi_source, source_of
from tests.export.sources import clip_source
from tests.export.traced import PIXELS, opened
from tests.mutants import broken

# Noise of unit rows is 7e-7 in a prompter and 1e-7 elsewhere; the faults planted below move them by 1e-5 and more.
NOISE = 2e-6
TOWERS = [
    ("roi", "tokens"),
    ("roi", "regions"),
    ("prompted", "tokens"),
    ("prompted", "regions"),
    ("prompted", "grounding"),
]
TRACED = [pair for pair in TOWERS if pair != ("roi", "regions")]  # slow: tracing takes 3 to 8 s each


def asked(kind: str, n: int, r: int) -> torch.Tensor:
    """Boxes or texts, others for each picture."""
    if kind == "regions":
        boxes = made_up_boxes(n * r + 1)[1:]
        return torch.from_numpy(boxes).view(n, r, 4)
    return normalize(torch.randn(n, r, 24, generator=torch.Generator().manual_seed(8)), dim=-1)


def inputs_of(source: Source, kind: str, n: int = 3, r: int = 17) -> list[torch.Tensor]:
    pixels = torch.from_numpy(PIXELS[:n])
    if kind == "tokens":
        return [pixels]
    with torch.no_grad():
        return [source.model.tokens(pixels), asked(kind, n, r)]


def said(source: Source, kind: str, inputs: list[torch.Tensor]) -> list[NDArray[Any]]:
    """What the source says; embeddings of unit length."""
    with torch.no_grad():
        found = getattr(source.model, kind)(*inputs)
    every = list(found) if isinstance(found, tuple) else [found]
    if kind != "tokens":
        every[0] = normalize(every[0], dim=-1)
    return [each.numpy() for each in every]


def form_of(source: Source, kind: str) -> Any:
    return tower_of(source, kind, ("decomposed",))  # type: ignore[arg-type]


@cache
def graph_of(name: str, kind: str) -> ir.Model:
    source = source_of(name)
    tower = form_of(source, kind)
    return write(capture(tower), tower, tower.flavours[0])[0]


def apart(found: Any, want: list[NDArray[Any]]) -> float:
    every = found if isinstance(found, (list, tuple)) else [found]
    return max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(every, want, strict=True))


@pytest.mark.parametrize(("name", "kind"), TOWERS, ids=map(" ".join, TOWERS))
@torch.no_grad()
def test_the_traceable_forward_is_the_sources(name: str, kind: str) -> None:
    source = source_of(name)
    inputs = inputs_of(source, kind)
    want = said(source, kind, inputs)
    assert np.ptp(want[0], axis=1).max() > 0.1  # what is asked makes a difference
    assert apart(form_of(source, kind).module(*inputs), want) < NOISE * max(1.0, float(np.abs(want[0]).max()))


@torch.no_grad()
def test_a_map_whose_last_block_attends_is_exported_too() -> None:
    source = clip_source("openclip-avg", layers=2)
    from edgeclip.models.regions import RegionEncoder

    source = replace(source, model=RegionEncoder.of(source.model, "attention"))
    inputs = inputs_of(source, "tokens")
    assert apart(form_of(source, "tokens").module(*inputs), said(source, "tokens", inputs)) < NOISE


@pytest.mark.parametrize(
    ("name", "kind", "where", "function", "old", "new"),
    [
        ("roi", "tokens", region_towers, "_value_path", " + out.bias.double()", ""),
        ("roi", "tokens", region_towers, "_value_path", "qkv.weight[2 * width :]", "qkv.weight[width : 2 * width]"),
        ("prompted", "regions", region_towers, "_query_path", " * width**-0.5", ""),
        ("prompted", "regions", region_towers, "_query_path", "qkv.weight[width : 2 * width].double().T", "qkv.weight[width : 2 * width].double()"),
        ("prompted", "grounding", region_towers, "_query_path", "keys @ qkv.bias[:width].double()", "qkv.bias[:width].double() * 0"),
    ],
)  # fmt: skip
@torch.no_grad()
def test_faults_are_seen(
    name: str, kind: str, where: Any, function: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(name)
    inputs = inputs_of(source, kind)
    monkeypatch.setattr(where, function, broken(getattr(where, function), old, new))
    assert apart(form_of(source, kind).module(*inputs), said(source, kind, inputs)) > 5 * NOISE


def _check_graph(name: str, kind: str) -> None:
    source, model = source_of(name), graph_of(name, kind)
    assert required(model) == "10.3"
    assert not {"Loop", "If", "Scan", "RoiAlign", "NonMaxSuppression", "GridSample"} & set(count(model))
    session = opened(ir.to_proto(model))
    names = [port.name for port in session.get_inputs()]
    every = None
    for n, r in ((3, 17), (1, 1), (3, 3)):
        inputs = inputs_of(source, kind, n, r)
        if every is not None and kind != "tokens":  # the first of those asked before: padding changes no row
            inputs[1] = every[1][:n, :r]
        every = every or inputs
        found = session.run(None, dict(zip(names, (each.numpy() for each in inputs), strict=True)))
        want = said(source, kind, inputs)
        assert apart(found, want) < NOISE * max(1.0, float(np.abs(want[0]).max()))


def test_boxes_are_pooled_by_the_graph() -> None:
    _check_graph("roi", "regions")


@pytest.mark.parity
@pytest.mark.parametrize(("name", "kind"), TRACED, ids=map(" ".join, TRACED))
def test_graphs_agree_with_their_source(name: str, kind: str) -> None:
    _check_graph(name, kind)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "kind"), TOWERS, ids=map(" ".join, TOWERS))
def test_tensorrt_rtx_builds_an_engine(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds without a GPU; not installed")
    tower = form_of(source_of(name), kind)
    variant = Variant("v", kind, Axes(), ("a",), tower.inputs, tower.outputs)  # type: ignore[arg-type]
    (tmp_path / "a.onnx").write_bytes(ir.to_proto(graph_of(name, kind)).SerializeToString())
    sizes = {size: (1, 2, 17) for port in tower.inputs for size in port.shape if isinstance(size, str)}
    built = build(
        load_library("tensorrt-rtx"), tmp_path / "a.onnx", variant, BuildOptions((sizes,), archs=("sm86",))
    )
    assert set(built.network.products) == {"fp32"}


@pytest.fixture(scope="module", params=["roi", "prompted"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export") / "b"
    source = clip_source(layers=1) if request.param == "roi" else prompted_source()
    settings = ExportSettings(targets=("portable",), threads=1, uint8=True, regions=request.param == "roi")
    return export_bundle(source, folder, settings=settings).bundle


@pytest.mark.parity
def test_a_bundle_of_regions_proves_itself(bundle: Bundle) -> None:
    facts = bundle.manifest
    assert all(check.passed for check in verify(bundle, threads=1).checks)
    assert facts.region_preprocessing is not None
    assert (facts.region_preprocessing.mode, facts.region_preprocessing.size) == ("pad", (32, 32))
    for variant in facts.variants:
        assert variant.fidelity is not None
        assert variant.fidelity.max_abs < TOLERANCES["fp32"][1]
    pictures, tokens = facts.variants_of("image"), facts.variants_of("tokens")
    assert set(pictures[0].files[1:]) == set(tokens[0].files[1:]) != set()  # most weights are there once


@pytest.mark.parity
def test_verify_sees_other_golden_rows(bundle: Bundle) -> None:
    from edgeclip.runtime import replay

    golden = replay.read_golden(bundle)
    for name in ("tokens/tokens", "regions/embeddings", "grounding/boxes"):
        if name not in golden:
            continue
        array = golden[name].copy()
        array[0, 0] += 1e-3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgeclip.runtime.verify.read_golden", lambda _, n=name, a=array: {**golden, n: a})
            failed = [check.name for check in verify(bundle, threads=1).checks if not check.passed]
        assert any(check.startswith(name.split("/")[0]) for check in failed), name


@pytest.mark.parity
def test_the_runtime_gives_what_the_source_gives(bundle: Bundle) -> None:
    source = roi_source() if not bundle.manifest.variants_of("grounding") else prompted_source()
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    with edgeclip.load(bundle, threads=1) as model:
        found = model.embed_regions(picture, [(0, 0, 32, 32), (3, 8, 20, 17)])
    spec = bundle.manifest.region_preprocessing
    assert spec is not None
    pixels = ((picture / 255 - spec.mean) / spec.std).transpose(2, 0, 1)[None].astype(np.float32)
    boxes = torch.tensor([[[0, 0, 1, 1], [3 / 32, 8 / 32, 20 / 32, 17 / 32]]])
    with torch.no_grad():
        want = source.model.regions(source.model.tokens(torch.from_numpy(pixels)), boxes)
    np.testing.assert_allclose(found, normalize(want, dim=-1)[0].numpy(), rtol=0, atol=5e-6)


@pytest.mark.parity
def test_a_graph_that_disagrees_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = broken(region_towers._value_path, " + out.bias.double()", "")
    monkeypatch.setattr(region_towers, "_value_path", mutant)
    settings = ExportSettings(targets=("portable",), threads=1, regions=True)
    with pytest.raises(CheckFailed, match="tokens-fp32: max_abs to the source is"):
        export_bundle(clip_source(layers=1), tmp_path / "b", settings=settings)
    assert not (tmp_path / "b").exists()


def test_a_proof_allows_for_the_sources_own_rounding() -> None:
    """A prompter that looks at single tokens rounds more than 1e-6 by itself; nothing can be nearer to it than that."""
    source = prompted_source()
    with torch.no_grad():
        source.model.prompter.block.attention.qkv.weight.mul_(4)
    from edgeclip.export.golden import golden_pictures
    from edgeclip.export.proofs import Material, open_proof
    from edgeclip.export.samples import made_up_pictures

    material = Material(made_up_pictures(4), golden_pictures(), None, None, 1)
    sharp, plain = (open_proof(one, "regions", material) for one in (source, roi_source()))
    assert isinstance(sharp, region_parity.RegionProof)
    assert isinstance(plain, region_parity.RegionProof)
    assert plain.rounding < 1e-6 < sharp.rounding < 1e-3
