"""Engines are built by the real TensorRT-RTX, for GPUs that are not here: chosen, judged, kept, found again, and refused."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from edgeclip.bundle import Bundle, Fidelity, Variant, open_bundle
from edgeclip.errors import CheckFailed, EngineError, InputError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import EngineOptions, tensorrt_place
from edgeclip.runtime.tensorrt import api, graphs
from edgeclip.runtime.tensorrt.api import build_engines
from edgeclip.runtime.tensorrt.builder import Built
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import BuildOptions, NetworkReport
from edgeclip.runtime.tensorrt.settings import FOUND, BuildSettings
from edgeclip.runtime.tensorrt.store import Store, store_of
from tests.runtime.tensorrt.attending import make_attending
from tests.runtime.tensorrt.kept import files
from tests.runtime.tensorrt.stand_ins import forget, install
from tests.runtime.tensorrt.tensorrt_stand_in import Engine, plan_of

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
RTX = "tensorrt-rtx"
FP32 = BuildSettings(precision="fp32", archs=("sm86",), batches=("1:2:4",))


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, a build fails the test."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it is built again")

    return lambda: monkeypatch.setattr(api, "build", fail)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Heads of 64: TensorRT-RTX has a kernel for them."""
    return make_attending(tmp_path_factory.mktemp("wide") / "b", 64)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Heads of 8: it has none."""
    return make_attending(tmp_path_factory.mktemp("narrow") / "b", 8)


def test_each_tower_is_built_once_and_found_again(
    store: Store, toy: Bundle, nothing_is_built: Callable[[], None]
) -> None:
    records = build_engines(toy, RTX, FP32)
    assert [record.variant.id for record in records] == ["image-fp32", "text-fp32"]
    image, text = records
    assert (image.options.archs, image.device, image.fidelity) == (("sm86",), None, None)
    assert image.options.profiles == ({"N": (1, 2, 4)},)
    assert text.options.profiles == ({"N": (1, 2, 4), "L": (1, 12, 12)},)
    assert (image.network.products, image.bundle) == ({"fp32": 1}, toy.digest)
    assert sorted(store.records(), key=lambda r: r.variant.id) == records
    nothing_is_built()
    told: list[tuple[str, str, float]] = []
    assert build_engines(toy, RTX, FP32, tell=lambda *what: told.append(what)) == records
    assert told == [("image-fp32", FOUND, 1.0), ("text-fp32", FOUND, 1.0)]
    for other in (
        replace(FP32, batches=("1:2:8",)),
        replace(FP32, archs=("sm89",)),
        replace(FP32, rebuild=True),
    ):
        with pytest.raises(AssertionError, match="built again"):
            build_engines(toy, RTX, other)


def test_an_engine_that_was_tampered_with_is_built_again(
    store: Store, toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    one = replace(FP32, towers=("text",))
    (record,) = build_engines(toy, RTX, one)
    path = store.plan_path(record)
    plan = bytearray(path.read_bytes())
    plan[len(plan) // 2] ^= 1
    path.write_bytes(plan)
    with caplog.at_level(logging.WARNING):
        (again,) = build_engines(toy, RTX, one)
    assert "changed or cut short" in caplog.text
    assert again.created > record.created
    assert store.plan(again)


def test_the_operator_is_taken_where_it_has_a_kernel(cache: Path, wide: Bundle, tmp_path: Path) -> None:
    settings = BuildSettings(archs=("sm86", "sm89"), output=tmp_path / "engines")
    (record,) = build_engines(wide, RTX, settings)
    assert record.variant.id == "image-fp16-op"
    assert (record.network.attention, record.network.unfused, record.notes) == (1, 0, ())
    assert record.options.archs == ("sm86", "sm89")
    own = Store(tmp_path / "engines", wide)
    assert own.records() == [record]
    assert not store_of(wide, EngineOptions()).records()


def test_without_a_kernel_the_decomposed_one_is_next(
    cache: Path, narrow: Bundle, caplog: pytest.LogCaptureFixture, nothing_is_built: Callable[[], None]
) -> None:
    settings = BuildSettings(archs=("sm86",))
    with caplog.at_level(logging.WARNING):
        (record,) = build_engines(narrow, RTX, settings)
    assert record.variant.id == "image-fp16-decomposed"
    assert "image-fp16-op" in record.notes[0]
    assert "no fused kernel" in record.notes[0]
    assert "Next: image-fp16-decomposed" in caplog.text
    assert len(store_of(narrow, EngineOptions()).records()) == 1
    nothing_is_built()
    for patient in (settings, replace(settings, on_shortfall="report")):
        assert build_engines(narrow, RTX, patient) == [record]  # the operator is not tried once more


def test_what_falls_short_is_reported_only_where_nothing_better_is_left(cache: Path, narrow: Bundle) -> None:
    settings = BuildSettings(archs=("sm86",), on_shortfall="report")
    assert build_engines(narrow, RTX, settings)[0].variant.id == "image-fp16-decomposed"
    (named,) = build_engines(narrow, RTX, replace(settings, variants=("image-fp16-op",)))
    assert named.variant.id == "image-fp16-op"
    assert "1 of 1 operators have no fused kernel" in named.notes[0]


def test_a_decomposed_engine_that_was_asked_for_does_not_stand_for_the_operator(
    cache: Path, wide: Bundle
) -> None:
    settings = BuildSettings(archs=("sm86",))
    (plain,) = build_engines(wide, RTX, replace(settings, variants=("image-fp16-decomposed",)))
    (chosen,) = build_engines(wide, RTX, settings)
    assert (plain.variant.id, chosen.variant.id) == ("image-fp16-decomposed", "image-fp16-op")


def lying(bundle: Bundle) -> Bundle:
    """The toy, whose fp32 graphs say that they were made fp16."""
    made = Fidelity(8, 1e-3, 1, 1, 1, 1e-3, 1, against="image-fp32")
    variants = [
        replace(variant, axes=replace(variant.axes, precision="fp16"), fidelity=made)
        for variant in bundle.manifest.variants
    ]
    return replace(bundle, manifest=replace(bundle.manifest, variants=tuple(variants)))


def test_what_falls_short_of_its_graph_is_not_kept_unless_asked_for(
    store: Store, toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(FP32, precision="fp16", towers=("image",))
    with pytest.raises(
        CheckFailed,
        match=r"image-fp32: types: fp16 was promised.*multiply in 100% fp32.*--on-shortfall report",
    ):
        build_engines(lying(toy), RTX, settings)
    assert files(store) == []
    with caplog.at_level(logging.WARNING):
        (record,) = build_engines(lying(toy), RTX, replace(settings, on_shortfall="report"))
    assert "fp16 was promised" in record.notes[0]
    assert "fp16 was promised" in caplog.text
    with pytest.raises(CheckFailed, match="fp16 was promised"):  # also now that it is there
        build_engines(lying(toy), RTX, settings)
    assert build_engines(lying(toy), RTX, replace(settings, on_shortfall="report")) == [record]


def stored_in_fp16(bundle: Bundle) -> Bundle:
    """The toy, whose fp32 graphs say that their weights are stored in fp16."""
    variants = tuple(replace(v, fidelity=None) for v in lying(bundle).manifest.variants)
    return replace(bundle, manifest=replace(bundle.manifest, variants=variants))


def test_an_interrupted_build_leaves_nothing(store: Store, toy: Bundle) -> None:
    stored = stored_in_fp16(toy)  # its graphs are copied first

    def tell(what: str, doing: str, done: float) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(stored, RTX, FP32, tell=tell)
    assert files(store) == []
    (image, _) = build_engines(stored, RTX, FP32)
    assert (image.made_from, image.variant.axes.precision) == ("image-fp32", "fp32")
    assert store.graph(image).parent == store.folder / "graphs"
    assert len(files(store)) == 5  # two records, two plans, graphs/


def test_a_full_disk_while_a_graph_is_made(
    store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(graphs.shutil, "copyfile", full)
    with pytest.raises(
        InputError, match=r"engines: the graph could not be made there.*No space left on device.*Make room"
    ):
        build_engines(stored_in_fp16(toy), RTX, FP32)
    assert files(store) == []


def test_drafts_of_builders_that_were_killed_are_gone_after_a_day(store: Store, toy: Bundle) -> None:
    store.prepare()
    for name, days in (("old", 1.1), ("new", 0.9)):
        draft = store.folder / f"{graphs.DRAFT}{name}"
        draft.mkdir()
        (draft / "weights.bin").write_bytes(b"half")
        os.utime(draft, (time.time() - days * graphs.DAY,) * 2)
    build_engines(stored_in_fp16(toy), RTX, replace(FP32, towers=("text",)))
    assert [path.name for path in store.folder.glob(f"{graphs.DRAFT}*")] == [".graph.new"]


def test_without_a_gpu(
    cache: Path, toy: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        (record,) = build_engines(toy, RTX, replace(FP32, archs=(), towers=("text",)))
    assert record.options.archs == api.AHEAD[""]
    assert "no NVIDIA GPU here: built ahead of time for sm80, sm86, sm89, sm120" in caplog.text
    proper = replace(api.load_library(RTX), name="tensorrt", version="10.3.0.30")
    monkeypatch.setattr(api, "load_library", lambda name: proper)
    with pytest.raises(
        EngineError,
        match=r"tensorrt 10\.3\.0\.30: builds on the GPU that it builds for.*--target tensorrt-rtx",
    ):
        build_engines(toy, "tensorrt", FP32.__class__())
    with pytest.raises(EngineError, match=r"engines for GPUs that are not here"):
        build_engines(toy, "tensorrt", FP32)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"precision": "fp16"}, EngineError, r"its image tower is in fp32 only\. To convert it: edgeclip build .* --target tensorrt-rtx --precision fp16"),
        ({"variants": ("image-fp8",)}, EngineError, r"no variant 'image-fp8'; it has image-fp32, text-fp32\."),
        ({"batches": ("8:1",)}, InputError, r"batch '8:1': expected least:best:most"),
        ({"archs": ("sm42",)}, EngineError, r"arch 'sm42'.*Choose of sm75, sm80"),
        ({"hardware_compatible": "same"}, EngineError, r"tensorrt 10\.9 or newer"),
        ({"version_compatible": True}, EngineError, r"engines that outlive a release"),
        ({"level": 9}, EngineError, r"level 9: expected 0 "),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_met(
    changes: dict[str, Any], error: type[Exception], said: str, store: Store, toy: Bundle
) -> None:
    with pytest.raises(error, match=said):
        build_engines(toy, RTX, replace(FP32, **changes))
    assert not store.records()


def test_a_tower_that_is_not_there(cache: Path, wide: Bundle) -> None:
    with pytest.raises(InputError, match=r"--tower text: .* has no text tower"):
        build_engines(wide, RTX, BuildSettings(towers=("text",), archs=("sm86",)))


def test_too_little_memory(store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeclip.runtime.tensorrt import memory

    monkeypatch.setattr(memory, "available_memory", lambda *_, **__: 100 << 20)
    one = replace(FP32, towers=("text",))
    with pytest.raises(EngineError, match=r"building needs about \d+ MiB of memory, 100 MiB are free"):
        build_engines(toy, RTX, one)
    assert build_engines(toy, RTX, replace(one, force=True))


def test_a_file_that_changed_since_the_bundle_was_opened(store: Store, toy: Bundle, tmp_path: Path) -> None:
    shutil.copytree(toy.root, tmp_path / "copy")
    copy = open_bundle(tmp_path / "copy")
    graph = copy.path(copy.manifest.variants[0].files[0])
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(Exception, match=r"bytes, the manifest says"):
        build_engines(copy, RTX, FP32)


def test_a_graph_that_is_not_what_the_manifest_says(store: Store, toy: Bundle, tmp_path: Path) -> None:
    """Its size says nothing, and without a GPU there is no proof that would see it."""
    shutil.copytree(toy.root, tmp_path / "copy")
    copy = open_bundle(tmp_path / "copy")
    graph = copy.path(copy.manifest.variants[0].files[0])
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of its weights
    graph.write_bytes(data)
    with pytest.raises(CheckFailed, match=r"image-fp32\.onnx: SHA-256 is"):
        build_engines(copy, RTX, FP32)
    assert store_of(copy, EngineOptions()).records() == []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for CUDA and TensorRT, whose builder gives what the stand-in runs."""
    install(monkeypatch)

    def stand_in(
        library: Library, graph: Path, variant: Variant, options: BuildOptions, **more: Any
    ) -> Built:
        assert more["device"] == 0
        built.append(more.get("timing_cache"))
        plan = plan_of(bent.get(variant.id, graph.read_bytes()), [dict(each) for each in options.profiles])
        network = NetworkReport(3, {"fp32": 1}, {"fp32": 99}, 0, {"fp32": 3})
        return Built(memoryview(plan), network, b"timings", 1.5)

    built: list[bytes | None] = []
    bent: dict[str, bytes] = {}
    monkeypatch.setattr(api, "build", stand_in)
    stand_in.built, stand_in.bent = built, bent  # type: ignore[attr-defined]
    yield stand_in
    tensorrt_place._places.clear()
    forget()


def test_a_gpu_that_is_not_there(gpu: Any, store: Store, toy: Bundle) -> None:
    with pytest.raises(
        EngineError, match=r"^GPU 7: not found; there is 0 \(NVIDIA Stand-in 0\)\. See `edgeclip doctor`\.$"
    ):
        build_engines(toy, "tensorrt", BuildSettings(precision="fp32", device=7))


def test_on_a_gpu_an_engine_is_proved_before_it_is_accepted(gpu: Any, store: Store, toy: Bundle) -> None:
    records = build_engines(toy, "tensorrt", BuildSettings(precision="fp32"))
    for record in records:
        assert record.device == cuda.devices()[0]
        assert record.fidelity is not None
        assert record.fidelity.max_abs < 1e-6
        assert record.engine is not None
        assert record.options.archs == ()
    assert gpu.built == [None, b"timings"]  # what the first build learnt helps the second
    assert build_engines(toy, "tensorrt", BuildSettings(precision="fp32")) == records
    assert len(gpu.built) == 2


def test_on_a_gpu_other_embeddings_are_refused(gpu: Any, store: Store, toy: Bundle) -> None:
    image, _ = toy.manifest.variants
    model = onnx.load(toy.path(image.files[0]))
    (weight,) = model.graph.initializer
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    gpu.bent[image.id] = model.SerializeToString()
    with pytest.raises(CheckFailed, match=r"image-fp32 on tensorrt: .*The engine is not used"):
        build_engines(toy, "tensorrt", BuildSettings(precision="fp32"))
    assert store.records() == []


def test_on_a_gpu_what_the_inspector_finds_is_refused_or_reported(
    gpu: Any, store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = api.judge

    def judge(variant: Variant, network: NetworkReport, engine: Any) -> tuple[str, ...]:
        return (*real(variant, network, engine), *(["engine attention: none fused"] if engine else []))

    for module in (api, sys.modules["edgeclip.runtime.tensorrt.network"]):
        monkeypatch.setattr(module, "judge", judge)
    settings = BuildSettings(precision="fp32", towers=("text",))
    with pytest.raises(CheckFailed, match="text-fp32: engine attention: none fused"):
        build_engines(toy, "tensorrt", settings)
    assert store.records() == []
    caplog.clear()
    (record,) = build_engines(toy, "tensorrt", replace(settings, on_shortfall="report"))
    assert record.notes == ("engine attention: none fused",)
    assert store.records() == [record]
    assert caplog.text.count("none fused") == 1


def test_on_a_gpu_an_inspector_that_tells_nothing_is_noted(
    gpu: Any, store: Store, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "create_engine_inspector", lambda self: None)
    (record,) = build_engines(toy, "tensorrt", BuildSettings(precision="fp32", towers=("text",)))
    assert record.fidelity is not None
    assert record.notes == ("engine: its inspector told nothing, only its network is known",)
    assert store.records() == [record]
