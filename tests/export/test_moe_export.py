"""From a source with mixtures of experts to a bundle: which forms and why, what each must agree with, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import edgeclip
from edgeclip.bundle import Axes, Experts, Port, Variant
from edgeclip.cli import run
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export import golden, parity, routing_parity
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.capacity import capacities, dropping, factor, fewest
from edgeclip.export.experts import ExpertForm
from edgeclip.export.routing import Routing, experts_of, margin, watches
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.export.targets import TARGETS, expert_forms_for, why
from edgeclip.export.towers import tower_of
from edgeclip.export.variants import Rows
from edgeclip.models.feed_forward import moe_layers
from edgeclip.runtime.replay import MAX_ABS_FP32, MERGED, inputs_of, limit_of
from edgeclip.runtime.verify import verify
from edgeclip.runtime.verify_routing import replay_routing, shares_of
from tests.export.sources import PREPROCESSING, clip_source, one_tower
from tests.export.traced import PIXELS, make_ids
from tests.mixtures import moe_source

Array = NDArray[Any]
EXPERTS = Experts((0, 1), (3, 4), 2)


@pytest.mark.parametrize(
    ("targets", "forms"),
    [
        (("portable",), ("dense",)),
        (("onnxruntime",), ("gather", "dense")),
        (("tensorrt10.3",), ("dense", "capacity")),
        (("tensorrt10.16", "onnxruntime"), ("gather", "dense", "capacity")),
        (("all",), ("gather", "dense", "capacity")),
    ],
)
def test_the_target_decides_the_forms(targets: tuple[str, ...], forms: tuple[str, ...]) -> None:
    assert expert_forms_for(targets) == forms
    assert expert_forms_for(targets, ("capacity", "gather")) == ("gather", "capacity")


def test_every_target_has_an_exact_form_and_every_form_a_reason() -> None:
    for target in TARGETS:
        assert "dense" in expert_forms_for([target])
    assert "computes 2 of 4 experts" in why("gather", 2, 4)
    assert "all 4 experts" in why("dense", 2, 4)
    assert "no place" in why("capacity", 2, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ExportSettings(moe=("dense",)),
            r"--moe dense: made-up has no mixtures of experts\. Export it without",
        ),
        (ExportSettings(moe=("sparse",)), r"--moe sparse: unknown\. Choose from gather, dense, capacity"),
        (ExportSettings(moe_drop=1.0), r"--moe-drop: expected a share from 0 to below 1, got 1\.0"),
        (ExportSettings(moe_drop=float("nan")), r"--moe-drop: expected a share from 0 to below 1, got nan"),
    ],
)
def test_what_cannot_be_met_is_refused_before_any_work(
    settings: ExportSettings, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(clip_source(layers=1), tmp_path / "out", settings=settings)


def test_the_command_line_refuses_an_unknown_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "nano", "-o", str(tmp_path / "out"), "--moe", "dense,gathr"]) == 2
    assert "--moe gathr: unknown. Choose from gather, dense, capacity" in capsys.readouterr().err


# 10 samples: nine of which send 10 tokens to an expert, one that sends 30
COUNTS = np.array([10] * 9 + [30])


@pytest.mark.parametrize(
    ("drop", "capacity"), [(0.0, 30), (0.05, 24), (20 / 120, 10), (20 / 120 - 1e-9, 11), (0.9, 2)]
)
def test_the_fewest_places_for_what_may_be_dropped(drop: float, capacity: int) -> None:
    assert fewest(COUNTS, drop) == capacity
    assert np.maximum(COUNTS - capacity, 0).sum() <= drop * COUNTS.sum() + 1e-6
    assert capacity == 1 or np.maximum(COUNTS - capacity + 1, 0).sum() > drop * COUNTS.sum()


def test_an_expert_that_nobody_takes_has_one_place() -> None:
    """A product of no rows is none: engines refuse it."""
    assert fewest(np.zeros(4, int), 0.0) == 1
    routing = Routing(np.ones(2), np.ones(2), (np.array([[4, 0], [2, 0]]),))
    assert capacities(routing, 0.0) == ((4, 1),)
    assert factor(replace(EXPERTS, capacities=((4, 1),)), routing) == pytest.approx(5 / 3)


def test_the_margin_is_of_the_last_that_is_taken() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5, 0.0], [1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(margin(logits, 2), torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(margin(logits, 1), torch.tensor([0.5, 0.0]))
    assert margin(logits, 4).isinf().all()


def observed(source: Any, pixels: Array | None = None, ids: Array | None = None) -> dict[str, Routing]:
    watching = watches([("image", source.model.image), ("text", source.model.text)])
    parity.source_rows(source, pixels, ids, watching)
    return {kind: watch.routing() for kind, watch in watching.items() if watch.parts}


def test_only_tokens_that_reach_the_embedding_count() -> None:
    """Padding of a text, and all but the pooled token of the last block, may be near a tie and full as they like."""
    source = moe_source((4, 4), (4, 4))
    ids = make_ids(4)
    found = observed(source, PIXELS[:3], ids)
    image, text = found["image"], found["text"]
    tokens = image.chosen[0].shape[1]
    assert [counts.sum(axis=1).tolist() for counts in image.counts] == [[2 * tokens] * 3, [2] * 3]
    ends = (ids == ids.max()).argmax(axis=1) + 1
    assert [counts.sum(axis=1).tolist() for counts in text.counts] == [(2 * ends).tolist(), [2] * 4]
    assert text.real is not None
    assert text.real.sum(axis=1).tolist() == ends.tolist()
    shorter = observed(source, ids=ids[:, : int(ends.max())])["text"]  # less padding
    np.testing.assert_allclose(shorter.margins, text.margins, atol=1e-6)
    assert (image.margins >= image.everywhere).all()
    assert (image.margins > image.everywhere).any(), "the last block's other tokens are counted"


def with_tie(source: Any) -> Any:
    """Two routers' rows alike: whoever takes one of the two for its last might as well take the other."""
    with torch.no_grad():
        (layer, *_) = moe_layers(source.model).values()
        layer.router.weight[1] = layer.router.weight[2]
    return source


def test_a_tie_is_found() -> None:
    assert not observed(moe_source(), PIXELS[:3])["image"].near_ties.any()
    assert observed(with_tie(moe_source()), PIXELS[:3])["image"].near_ties.all()


def test_no_golden_input_is_near_a_tie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert golden._clear((1, 8), 16, lambda i: False) == [1, 8]
    assert golden._clear((1, 8), 16, lambda i: i in (1, 0)) == [8, 2]
    assert golden._clear((1, 8), 16, lambda i: True) == [1, 8], "nothing better: the comparison says so"
    source = one_tower(moe_source(), "image")
    usual = golden.golden_inputs(source, tmp_path).pictures
    margins = observed(source, pixels_of(made_up_pictures(), PREPROCESSING))["image"].everywhere
    monkeypatch.setattr(golden, "NEAR", float(np.sort(margins)[-3:-1].mean()))  # two are above it
    order = [*golden.PICTURES, *(i for i in range(16) if i not in golden.PICTURES)]
    best = sorted(np.argsort(margins)[-2:], key=order.index)
    found = golden.golden_inputs(source, tmp_path).pictures
    every = made_up_pictures()
    for got, i in zip(found, best, strict=True):
        np.testing.assert_array_equal(got, every[i])
    assert len(usual) == len(found) == 2


@torch.no_grad()
def test_what_is_dropped_is_counted() -> None:
    """Against a count by hand of the first block's router, whose input the drops cannot have changed."""
    source = one_tower(moe_source((4, 4)), "image")
    found = experts_of(source.model.image)
    assert found == Experts((0, 1), (4, 4), 2)
    experts = replace(found, capacities=((5, 5, 5, 5), (1, 1, 1, 1)))
    form = ExpertForm("capacity", dict(enumerate(experts.capacities)))
    tower = tower_of(source, "image", ("decomposed",), experts=form)
    with dropping(tower.module, experts) as drops:
        for part in (PIXELS[:5], PIXELS[5:8]):
            tower.module(torch.from_numpy(part))
    counts = observed(source, PIXELS)["image"].counts[0]
    assert drops.dropped == np.maximum(counts - 5, 0).sum()
    assert drops.wanted == counts.sum() + 2 * len(PIXELS)
    assert drops.near.shape == (len(PIXELS),)
    assert not any(part._forward_pre_hooks for part in tower.module.modules()), "still watched"


def variant(**changes: Any) -> Variant:
    port, shares = Port("pixels", "float32", ("N", 3, 32, 32)), Port("shares", "float32", ("N", 2, 17, 4))
    made = Variant("v", "image", Axes(moe="dense"), ("v.onnx",), (port,), (shares,), experts=EXPERTS)
    return replace(made, **changes)


def good_shares() -> Array:
    """(3, 2, 17, 4): the first mixture has three experts."""
    shares = np.zeros((3, 2, 17, 4), np.float32)
    shares[..., 0], shares[..., 2] = 0.75, 0.25
    return shares


class Engine:
    """Gives the same shares for whatever it is asked."""

    def __init__(self, shares: Array, **changes: Any) -> None:
        self.shares, self.variant = shares, variant(**changes)
        self.name, self.max_batch, self.overlaps = "stand-in", None, False

    def slot(self, batch: int, sizes: Any = None) -> Any:
        from edgeclip.runtime.engines import Slot

        return Slot(
            {"pixels": np.zeros((batch, 3, 32, 32), np.float32)}, {"shares": self.shares.copy()}, None
        )

    def submit(self, slot: Any) -> None:
        pass

    def wait(self, slot: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((0, 0, 0, 0), np.nan, "not finite"),
        ((0, 0, 0, 0), 0.5, "not one together"),
        ((0, 0, 0), (1.25, -0.25, 0, 0), "not one together"),
        ((1, 1, 3), (0.4, 0.3, 0.3, 0), "other than 2 of 4 experts"),
        ((1, 0, 3), (0.5, 0, 0, 0.5), "mixture 0 other than 2 of 3 experts"),
        ((), 0.0, "no expert any share"),
    ],
)
def test_what_is_no_share_of_experts_is_found_anywhere(place: Any, value: Any, message: str) -> None:
    good = good_shares()
    assert shares_of(Engine(good), PIXELS[:3]).shape == good.shape  # type: ignore[arg-type]
    good[place] = value
    with pytest.raises(CheckFailed, match=message):
        shares_of(Engine(good), PIXELS[:3])  # type: ignore[arg-type]


def test_golden_shares_are_met() -> None:
    good = good_shares()
    engine: Any = Engine(good)
    assert replay_routing(engine, PIXELS[:3], good) == "3 golden inputs, shares 0.0e+00 away"
    other = good.copy()
    other[2, 1, 16] = (0.25, 0, 0.75, 0)
    with pytest.raises(CheckFailed, match=r"shares are 5\.0e-01 from the golden ones"):
        replay_routing(engine, PIXELS[:3], other)


def routing_like(shares: Array, everywhere: Array) -> Routing:
    chosen = tuple(shares[:, i, :, :count] > 0 for i, count in enumerate(EXPERTS.counts))
    return Routing(everywhere, everywhere, (), chosen, np.ones(shares.shape[:1] + shares.shape[2:3], bool))


def test_routing_agrees_outside_near_ties() -> None:
    shares = good_shares()
    wide = routing_like(shares, np.ones(3))
    routing_parity._check(variant(), shares, wide)
    other = shares.copy()
    other[1, 1, 5] = (0, 0.75, 0.25, 0)
    with pytest.raises(CheckFailed, match="1 of 102 tokens take other experts than in PyTorch"):
        routing_parity._check(variant(), other, wide)
    routing_parity._check(variant(), other, routing_like(shares, np.array([1, 1e-6, 1])))  # set aside
    with pytest.raises(
        CheckFailed, match="in 3 of 3 samples a token is within 1e-05 of taking another expert"
    ):
        routing_parity._check(variant(), other, routing_like(shares, np.zeros(3)))
    padded = replace(wide, real=np.arange(17) != 5 * np.ones((3, 1)))
    cut = replace(padded, chosen=tuple(rows & padded.real[..., None] for rows in padded.chosen))  # type: ignore[index]
    routing_parity._check(variant(), other, cut)  # padding may go where it likes


def test_the_limits_of_a_replay_do_not_hide_a_fault() -> None:
    """A capacity variant is far from the source and states so; its golden rows are its own, and met as exactly as any."""
    from edgeclip.bundle import Fidelity

    far = Fidelity(16, 0.2, 0.99, 0.9, 0.9, 0.08, 1.0)
    assert limit_of(variant(axes=Axes(moe="capacity"), fidelity=far)).absolute == MAX_ABS_FP32
    assert limit_of(variant(axes=Axes(moe="capacity"), fidelity=far)).relative is None
    assert limit_of(variant(fidelity=replace(far, max_abs=1e-7))).absolute == MAX_ABS_FP32
    assert limit_of(variant(), "fp16").relative == MERGED  # a token takes another expert now and then


def test_golden_rows_that_rounding_may_change_are_not_replayed() -> None:
    rows = np.eye(3, dtype=np.float32)
    held: dict[str, Any] = {
        "pixels": PIXELS[:3],
        "image_embeddings": rows,
        "image_embeddings/capacity": rows.copy(),
    }
    held["image_embeddings/capacity"][1] = np.nan
    capacity: Any = variant(axes=Axes(moe="capacity"))
    inputs, want = inputs_of(None, capacity, held)  # type: ignore[arg-type]
    np.testing.assert_array_equal(inputs, PIXELS[[0, 2]])
    np.testing.assert_array_equal(want, rows[[0, 2]])  # type: ignore[arg-type]
    inputs, want = inputs_of(None, variant(), held)  # type: ignore[arg-type]
    assert want is rows
    rows[0] = np.nan
    assert np.isnan(inputs_of(None, variant(), held)[1]).any(), "of exact forms it is damage, and found"  # type: ignore[arg-type]
    held["image_embeddings/capacity"][:] = np.nan
    assert inputs_of(None, capacity, held)[1] is None  # type: ignore[arg-type]


def test_dropping_too_much_fails_with_what_to_do() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    source = np.roll(rows, 1, axis=1)
    capacity = variant(axes=Axes(moe="capacity"), experts=replace(EXPERTS, dropped=0.2))
    kept = np.arange(6)
    far = parity.measure(source, rows)
    (line,) = parity._gates(capacity, far, Rows(rows), rows, kept, None)
    assert (
        "dropping 20.00% of the tokens' choices of experts moves embeddings by a relative distance of" in line
    )
    assert "Pass a smaller --moe-drop, or --moe dense,gather" in line
    near = parity.measure(rows, rows)
    assert parity._gates(capacity, near, Rows(rows), rows, kept, None) == []
    (line,) = parity._gates(capacity, near, Rows(rows + np.float32(1e-4)), rows, kept, None)
    assert "to PyTorch with the same drops is 1.0" in line


# From here on whole bundles: each graph takes seconds to trace.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = moe_source((3, 4), (4, 0))
    settings = ExportSettings(("all",), threads=1, moe_drop=0.02, uint8=True)
    return source, export_bundle(source, tmp_path_factory.mktemp("moe") / "out", settings=settings)


@pytest.mark.parity
def test_every_form_gives_what_the_source_gives(exported: Any) -> None:
    source, report = exported
    manifest = report.bundle.manifest
    names = [v.id for v in manifest.variants if v.tower == "image" and v.axes.input == "float32"]
    assert names == [
        "image-fp32-decomposed-gather", "image-fp32-op-gather", "image-fp32-decomposed-dense", "image-fp32-op-dense",
        "image-fp32-decomposed-capacity", "image-fp32-op-capacity", "image-fp32-decomposed-dense-routing",
    ]  # fmt: skip
    pictures, texts = made_up_pictures(9), ["a photo of a cat", "two dogs"]
    with torch.no_grad():
        pixels = torch.from_numpy(pixels_of(pictures, PREPROCESSING))
        want = F.normalize(source.model.encode_image(pixels), dim=-1).numpy()
    for form in ("gather", "dense"):
        with edgeclip.load(report.bundle.root, variants=[f"image-fp32-decomposed-{form}"]) as model:
            for n in (1, 3, 8):
                np.testing.assert_allclose(model.embed_images(pictures[:n]), want[:n], rtol=0, atol=2e-6)
            ids = torch.from_numpy(model.encode_texts(texts).input_ids)
            with torch.no_grad():
                rows = F.normalize(source.model.encode_text(ids), dim=-1).numpy()
            np.testing.assert_allclose(model.embed_texts(texts), rows, rtol=0, atol=2e-6)
            scores = np.argsort(want @ rows.T, axis=1)[:, -1]
            found = model.classify(pictures, texts)
            assert [one.label_index for one in found] == scores.tolist()
    assert verify(report.bundle, threads=1).to_dict()["passed"]


@pytest.mark.parity
def test_the_manifest_says_what_the_forms_are(exported: Any) -> None:
    _, report = exported
    variants = {v.id: v for v in report.bundle.manifest.variants}
    capacity = variants["image-fp32-decomposed-capacity"]
    assert capacity.experts is not None
    assert capacity.experts.counts == (3, 4)
    assert capacity.experts.capacities[1] == (1, 1, 1, 1)  # the last block computes one token
    assert 0 < capacity.experts.dropped <= 0.02  # type: ignore[operator]
    assert capacity.fidelity is not None
    assert capacity.fidelity.max_abs > 1e-5, "nothing was dropped: the test shows nothing"
    assert variants["image-fp32-decomposed-dense"].fidelity.max_abs < 2e-6
    assert {v.requires["tensorrt"] for v in variants.values() if v.axes.moe == "gather"} == {"none"}
    assert capacity.requires["tensorrt"] == "10.3"
    routing = variants["image-fp32-decomposed-dense-routing"]
    assert routing.outputs == (Port("shares", "float32", ("N", 2, 17, 4)),)
    text = variants["text-fp32-decomposed-dense-routing"]
    assert text.outputs == (Port("shares", "float32", ("N", 1, "L", 4)),)
    assert not any("roomy" in name for name in (*variants, *report.bundle.manifest.files))
    assert not list(report.bundle.root.rglob("*roomy*"))
    assert any(line.startswith("image tower, gather: onnxruntime takes sizes") for line in report.experts)


@pytest.mark.parity
def test_one_tower_with_mixtures_and_merged_tokens_and_regions(tmp_path: Path) -> None:
    source = moe_source((4, 4))
    settings = ExportSettings(
        ("portable",), threads=1, token_merging=(3,), regions=True, resolution=(48, 64), store="fp16"
    )
    report = export_bundle(source, tmp_path / "out", settings=settings)
    assert [v.id for v in report.bundle.manifest.variants] == [
        "image-fp16-decomposed-dense", "image-fp16-decomposed-merge3-dense", "image-fp16-decomposed-dense-routing",
        "tokens-fp16-decomposed-dense", "text-fp16-decomposed", "regions-fp16",
    ]  # fmt: skip


@pytest.mark.parity
def test_routers_that_are_alike_fail_with_what_to_do(tmp_path: Path) -> None:
    source = with_tie(one_tower(moe_source(), "image"))
    with pytest.raises(CheckFailed, match=r"in 16 of 16 samples a token is within 1e-05 of taking another"):
        export_bundle(source, tmp_path / "out", settings=ExportSettings(("portable",), threads=1))


@pytest.mark.parity
def test_tensorrt_reads_dense_and_capacity(exported: Any) -> None:
    from tests.runtime.tensorrt.graphs import rtx, why_not_read

    rtx()
    _, report = exported
    bundle = report.bundle
    for found in bundle.manifest.variants:
        if found.tower == "image" and found.axes.moe != "gather":
            assert why_not_read(bundle.root / found.files[0]) == "", found.id


@pytest.mark.parity
def test_tensorrt_builds_dense_and_capacity_and_refuses_gather(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeclip.errors import EngineError
    from edgeclip.runtime.tensorrt.api import build_engines
    from edgeclip.runtime.tensorrt.settings import BuildSettings
    from tests.runtime.tensorrt.graphs import rtx

    rtx()
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    _, report = exported
    settings = BuildSettings(precision="fp32", archs=("sm86",), batches=("1:2:4",), towers=("image",))
    (record,) = build_engines(report.bundle, "tensorrt-rtx", settings)
    assert record.variant.id == "image-fp32-decomposed-dense"
    named = replace(settings, variants=("image-fp32-decomposed-capacity",))
    (record,) = build_engines(report.bundle, "tensorrt-rtx", named)
    assert record.variant.axes.moe == "capacity"
    named = replace(settings, variants=("image-fp32-decomposed-gather",))
    with pytest.raises(EngineError, match="The form gather has sizes that depend on data"):
        build_engines(report.bundle, "tensorrt-rtx", named)
